"""Tune every optimiser alike on every task, and count its steps to frozen targets on fresh seeds."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

# The decompositions are of small matrices, whose threads would only wait for each other; NumPy and SciPy read
# this when they are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import Progress

from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console
from benchmarks.shared.records import Records
from benchmarks.time_to_target.defaults import choices
from benchmarks.time_to_target.freeze import frozen
from benchmarks.time_to_target.methods import METHODS, OURS, RATE_FREE, UNTUNED, untuned_exponent
from benchmarks.time_to_target.search import FULL, QUICK, Search, sanity
from benchmarks.time_to_target.table import table
from benchmarks.time_to_target.targets import NAMES, TARGETS, Targets
from benchmarks.time_to_target.task import quick
from benchmarks.time_to_target.tasks import TASKS

QUICK_TASKS = ("regression", "digits_mlp")
QUICK_METHODS = ("momentum", "AdamW", "metric")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_target", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "time_to_target",
        help="folder of the records, one file per task",
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="all by default")
    parser.add_argument("--optimizers", nargs="+", choices=[*METHODS, *RATE_FREE], help="all by default")
    parser.add_argument("--freeze", action="store_true", help="tune the two baselines and show the targets")
    parser.add_argument(
        "--defaults", action="store_true", help="run on each task what the records of the others choose"
    )
    parser.add_argument("--quick", action="store_true", help="twenty steps of a few, which show nothing")
    options = parse_with_folder(parser, arguments)
    options.tasks = options.tasks or (QUICK_TASKS if options.quick else tuple(TASKS))
    options.optimizers = options.optimizers or (QUICK_METHODS if options.quick else (*METHODS, *RATE_FREE))
    return options


def searches(
    task_name: str, records: Records, options: argparse.Namespace, progress: Progress
) -> Callable[[str], Search]:
    """Return what makes the search of a method on a task, with a progress bar of the task's runs."""
    bar = progress.add_task(task_name, total=None)
    task, tuning = TASKS[task_name](), FULL
    if options.quick:
        task, tuning = quick(task), QUICK
    # A quick run only asks whether everything runs: it reaches no target of a full one.
    targets = Targets(2.0, 1.0) if options.quick else TARGETS[task_name]

    def search(name: str) -> Search:
        progress.update(bar, description=f"{task_name}: {name}")
        return Search(
            name, task_name, task, targets, records, tuning, lambda runs: progress.advance(bar, runs)
        )

    return search


def freeze(all_records: Mapping[str, Records], console: Console) -> None:
    """Show the targets as they came about."""
    for task_name, records in all_records.items():
        console.print(f'    "{task_name}": {frozen(task_name, TASKS[task_name](), records)},', soft_wrap=True)


def main(arguments: list[str]) -> None:
    """Run what is not recorded yet, and print the table of it all."""
    options = parse(arguments)
    command = ["python", "-m", "benchmarks.time_to_target"]
    command += [f"--{name}" for name in ("quick", "freeze", "defaults") if getattr(options, name)]
    console = wide_console()
    all_records = {name: Records(options.out / f"{name}.jsonl", command) for name in options.tasks}
    if options.freeze:
        freeze(all_records, console)
        return
    with Progress(console=Console(stderr=True)) as progress:
        for task_name, records in all_records.items():
            search = searches(task_name, records, options, progress)
            if options.defaults:
                for choice in choices(all_records, task_name).values():
                    for exponent in (choice.own_exponent, choice.other_exponent):
                        search(choice.name).fresh(choice.point, exponent)
                continue
            sanity(search(OURS))
            for name in options.optimizers:
                one = search(name)
                if name in UNTUNED:
                    one.fresh({}, untuned_exponent(name, one.task.init(0)))
                if name in RATE_FREE:
                    continue
                trials = one.tune()
                for target in NAMES:
                    best = one.best(trials, target)
                    one.fresh(best.point, best.exponent)
    for task_name, records in all_records.items():
        console.print(table(task_name, records))


if __name__ == "__main__":
    main(sys.argv[1:])

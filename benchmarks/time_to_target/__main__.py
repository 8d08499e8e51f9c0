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
from rich.progress import Progress, TaskID

from benchmarks.shared.command import (
    RESULTS,
    OutOfTimeError,
    deadline,
    minutes,
    parse_with_folder,
    wide_console,
)
from benchmarks.shared.records import Records
from benchmarks.time_to_target.defaults import choices
from benchmarks.time_to_target.freeze import BASELINES, frozen
from benchmarks.time_to_target.methods import (
    METHODS,
    OURS,
    RATE_FREE,
    RATE_ONLY,
    UNTUNED,
    untuned_exponent,
)
from benchmarks.time_to_target.mnist import MNIST
from benchmarks.time_to_target.search import FULL, QUICK, Search, sanity
from benchmarks.time_to_target.summary import chosen
from benchmarks.time_to_target.table import table
from benchmarks.time_to_target.targets import NAMES, TARGETS, Targets
from benchmarks.time_to_target.task import Task, quick
from benchmarks.time_to_target.tasks import FAST, available
from benchmarks.time_to_target.tasks import NAMES as TASK_NAMES
from riemann_optax.examples.errors import InputError

QUICK_TASKS = ("regression", "digits_mlp")
QUICK_METHODS = ("momentum", "AdamW", "metric")
ALL_METHODS = (*METHODS, *RATE_FREE)
# The tasks and the optimisers of a size; what one has recorded the other takes over.
SIZES = {"quick": (FAST, (*RATE_ONLY, *RATE_FREE)), "full": (TASK_NAMES, ALL_METHODS)}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_target", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "time_to_target",
        help="folder of the records, one file per task",
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="full",
        help="full (the default): all tasks and optimisers; quick: tasks of seconds, and optimisers with "
        "nothing but a rate to tune, some minutes in all",
    )
    parser.add_argument("--tasks", nargs="+", choices=TASK_NAMES, help="instead of those of the size")
    parser.add_argument("--optimizers", nargs="+", choices=ALL_METHODS, help="instead of those of the size")
    parser.add_argument(
        "--data-dir", type=Path, help=f"folder of MNIST's parquet files, for {' and '.join(MNIST)}"
    )
    parser.add_argument("--minutes", type=minutes, help="stop then; the same command goes on")
    parser.add_argument("--freeze", action="store_true", help="tune the two baselines and show the targets")
    parser.add_argument(
        "--defaults", action="store_true", help="run on each task what the records of the others choose"
    )
    parser.add_argument(
        "--memory", action="store_true", help="note how many bytes a training step holds; compiles, runs none"
    )
    parser.add_argument("--quick", action="store_true", help="twenty steps of a few, which show nothing")
    options = parse_with_folder(parser, arguments)
    tasks, optimizers = (QUICK_TASKS, QUICK_METHODS) if options.quick else SIZES[options.size]
    options.optimizers = options.optimizers or optimizers
    try:
        choose_tasks(options, tasks)
    except InputError as error:
        parser.error(str(error))
    return options


def recorded(options: argparse.Namespace, task_name: str) -> Path:
    """Return the file of a task's results; what a quick run finds is no result and has one of its own."""
    return options.out / f"{task_name}{'.quick' * options.quick}.jsonl"


def choose_tasks(options: argparse.Namespace, by_default: tuple[str, ...]) -> None:
    """Make the tasks that are asked for, and note in ``left_out`` why others of the size are not run.

    Raises:
      riemann_optax.examples.errors.InputError: if a task was asked for by its name and cannot be run.
    """
    makers = available(options.data_dir)
    options.made, options.left_out = {}, {}
    for name in options.tasks or by_default:
        if name not in makers:
            reason = "needs --data-dir FOLDER"
        elif not (name in TARGETS or options.freeze or options.quick):
            reason = "has no targets yet: run it with --freeze, and write them in targets.py"
        else:
            task = makers[name]()
            seen = {entry["key"].get("examples") for entry in Records(recorded(options, name))}
            if seen <= {task.examples}:
                options.made[name] = task
                continue
            reason = f"is recorded with {max(seen)} examples and not with {task.examples}: give another --out"
        if options.tasks:
            raise InputError(f"--tasks {name} {reason}")
        options.left_out[name] = reason


def searches(
    task_name: str, task: Task, records: Records, options: argparse.Namespace, progress: Progress
) -> Callable[[str], Search]:
    """Return what makes the search of a method on a task, with a progress bar of the task's runs."""
    bar, tuning = progress.add_task(task_name, total=None), FULL
    if options.quick:
        task, tuning = quick(task), QUICK
    # A quick run only asks whether everything runs: it reaches no target of a full one.
    targets = Targets(2.0, 1.0) if options.quick else TARGETS[task_name]
    kept = single_runs(options, task_name)

    def search(name: str) -> Search:
        progress.update(bar, description=f"{task_name}: {name}")

        def advance(runs: int) -> None:
            options.check(f"{name} on {task_name}")
            progress.advance(bar, runs)

        return Search(name, task_name, task, targets, records, tuning, advance, kept=kept)

    return search


def single_runs(options: argparse.Namespace, task_name: str) -> Records | None:
    """Return where the single runs of a slow task are kept, to all digits, until its search is over."""
    return Records(file_of_runs(options, task_name), digits=None) if options.made[task_name].slow else None


def file_of_runs(options: argparse.Namespace, task_name: str) -> Path:
    """Return the file of a task's single runs."""
    return recorded(options, task_name).with_suffix(".runs.jsonl")


def freeze(
    all_records: Mapping[str, Records], options: argparse.Namespace, console: Console, progress: Progress
) -> None:
    """Show the targets as they came about."""
    for task_name, records in all_records.items():
        task, bar = options.made[task_name], progress.add_task(f"{task_name}: baselines", total=None)

        def advance(runs: int, task_name: str = task_name, bar: TaskID = bar) -> None:
            options.check(f"a baseline on {task_name}")
            progress.advance(bar, runs)

        # The single runs stay: those of the baselines are trials of the comparison as well.
        kept = single_runs(options, task_name)
        targets = frozen(task_name, task, records, advance, kept)
        console.print(f'    "{task_name}": {targets},', soft_wrap=True)


def compare(all_records: Mapping[str, Records], options: argparse.Namespace, progress: Progress) -> None:
    """Run what is not recorded yet."""
    for task_name, records in all_records.items():
        search = searches(task_name, options.made[task_name], records, options, progress)
        if options.memory:
            for name in options.optimizers:
                options.check(f"the memory of {name} on {task_name}")
                search(name).memory()
            continue
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
        # All of it that matters is then in the records; what freezing left are trials of the baselines.
        if options.quick or BASELINES.keys() <= chosen(records).keys():
            file_of_runs(options, task_name).unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Run what is not recorded yet, and print the table of it all."""
    options = parse(arguments)
    options.check = deadline(options.minutes)
    command = ["python", "-m", "benchmarks.time_to_target"]
    command += [f"--{name}" for name in ("quick", "freeze", "defaults", "memory") if getattr(options, name)]
    console = wide_console()
    all_records = {name: Records(recorded(options, name), command) for name in options.made}
    with Progress(console=Console(stderr=True)) as progress:
        try:
            if options.freeze:
                freeze(all_records, options, console, progress)
            else:
                compare(all_records, options, progress)
        except OutOfTimeError as stopped:
            console.print(str(stopped))
    for task_name, records in all_records.items() if not options.freeze else ():
        console.print(table(task_name, records))
    for name, reason in options.left_out.items():
        console.print(f"{name} is left out: it {reason}.", soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Tune every optimiser alike on every task, and count its steps to frozen targets on fresh seeds."""

import argparse
import os
import sys
from pathlib import Path

# The decompositions are of small matrices, whose threads would only wait for each other; NumPy and SciPy read
# this when they are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import Progress

from benchmarks.command import RESULTS, parse_with_folder
from benchmarks.records import Records
from benchmarks.time_to_target.contestants import CONTESTANTS
from benchmarks.time_to_target.freeze import frozen
from benchmarks.time_to_target.search import FULL, QUICK, Search
from benchmarks.time_to_target.table import table
from benchmarks.time_to_target.targets import NAMES, TARGETS, Targets
from benchmarks.time_to_target.tasks import TASKS

QUICK_TASKS = ("regression", "digits_mlp")
QUICK_CONTESTANTS = ("momentum", "AdamW", "metric")


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
    parser.add_argument("--optimizers", nargs="+", choices=CONTESTANTS, help="all by default")
    parser.add_argument("--freeze", action="store_true", help="tune the two baselines and show the targets")
    parser.add_argument("--quick", action="store_true", help="twenty steps of a few, which show nothing")
    options = parse_with_folder(parser, arguments)
    options.tasks = options.tasks or (QUICK_TASKS if options.quick else tuple(TASKS))
    options.optimizers = options.optimizers or (QUICK_CONTESTANTS if options.quick else tuple(CONTESTANTS))
    return options


def main(arguments: list[str]) -> None:
    """Run what is not recorded yet, and print the table of it all."""
    options = parse(arguments)
    size = QUICK if options.quick else FULL
    command = ["python", "-m", "benchmarks.time_to_target", *["--quick"] * options.quick]
    console = Console(highlight=False)
    with Progress(console=Console(stderr=True)) as progress:
        for task_name in options.tasks:
            bar = progress.add_task(task_name, total=None)
            task = TASKS[task_name]()
            records = Records(options.out / f"{task_name}.jsonl", command)
            if options.freeze:
                console.print(f'    "{task_name}": {frozen(task_name, task, records, size)},', soft_wrap=True)
                continue
            for name in options.optimizers:
                progress.update(bar, description=f"{task_name}: {name}")

                def advance(runs: int, bar=bar) -> None:
                    progress.advance(bar, runs)

                # A quick run only asks whether everything runs: it reaches no target of a full one.
                targets = Targets(2.0, 1.0) if options.quick else TARGETS[task_name]
                search = Search(name, task_name, task, targets, records, size, advance)
                trials = search.tune()
                for target in NAMES:
                    best = search.best(trials, target)
                    search.fresh(best.point, best.exponent)
    if not options.freeze:
        console.width = max(console.width, 110)
        for task_name in options.tasks:
            console.print(table(task_name, Records(options.out / f"{task_name}.jsonl", command)))


if __name__ == "__main__":
    main(sys.argv[1:])

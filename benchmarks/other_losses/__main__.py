"""Train where the loss is no mean over fixed examples, and where averages of weights may lag behind."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.other_losses.problems import PROBLEMS
from benchmarks.other_losses.runs import FULL, METHODS, QUICK, row
from benchmarks.other_losses.table import Rows, legend, table_rows
from benchmarks.shared import terminal
from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console
from benchmarks.shared.records import Records


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_losses", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of other_losses.jsonl")
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=tuple(PROBLEMS), help="all by default"
    )
    parser.add_argument("--quick", action="store_true", help="five steps, which show nothing")
    return parse_with_folder(parser, arguments)


def main(arguments: list[str]) -> None:
    """Run what is not recorded yet, and print the table."""
    options = parse(arguments)
    name = "other_losses.quick" if options.quick else "other_losses"
    command = ["python", "-m", "benchmarks.other_losses", *["--quick"] * options.quick]
    records = Records(options.out / f"{name}.jsonl", command)
    found: Rows = {problem: {} for problem in options.problems}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(found) * len(METHODS))
        for problem, by_method in found.items():
            for method in METHODS:
                by_method[method] = row(
                    records,
                    problem,
                    method,
                    QUICK if options.quick else FULL,
                    lambda text: progress.update(bar, description=text),
                )
                progress.advance(bar)
    console = wide_console(150)
    console.print(terminal.table("At the rate that other seeds chose", *table_rows(found)))
    console.print(legend(found))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Tune the rate undisturbed, then change one thing at a time and keep the rate."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.robustness.disturbances import PANELS
from benchmarks.robustness.picture import draw
from benchmarks.robustness.runs import FULL, METHODS, QUICK, Laboratory, makes
from benchmarks.robustness.summary import NEAR, rows, table_rows
from benchmarks.shared import terminal
from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console
from benchmarks.shared.records import Records


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of robustness.jsonl and its picture"
    )
    parser.add_argument("--panels", nargs="+", choices=PANELS, default=tuple(PANELS), help="all by default")
    parser.add_argument("--quick", action="store_true", help="twenty steps, which show nothing")
    return parse_with_folder(parser, arguments)


def main(arguments: list[str]) -> None:
    """Run what is not recorded yet; print the table and draw the picture."""
    options = parse(arguments)
    name = "robustness.quick" if options.quick else "robustness"
    command = ["python", "-m", "benchmarks.robustness", *["--quick"] * options.quick]
    records = Records(options.out / f"{name}.jsonl", command)
    count = sum(
        makes(one, c) for key in options.panels for c in PANELS[key].levels.values() for one in METHODS
    )
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=count)
        laboratory = Laboratory(
            records,
            QUICK if options.quick else FULL,
            lambda text: progress.update(bar, advance=1, description=text),
        )
        found = rows(laboratory, options.panels)
        progress.update(bar, completed=count)
    draw(options.out / f"{name}.png", found)
    headings, lines = table_rows(found)
    console = wide_console(160)
    console.print(terminal.table("Held-out loss at the rate chosen undisturbed", headings, lines))
    console.print(
        f"In brackets: the loss at the rate tuned anew; octaves of rates within {NEAR:g} of the least loss."
    )


if __name__ == "__main__":
    main(sys.argv[1:])

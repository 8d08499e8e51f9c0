"""Train Transformers of many shapes with AdamW and with ours, at the same rates on the same batches."""

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.drop_in.picture import draw
from benchmarks.drop_in.report import curves_table, million_table, relative_rows
from benchmarks.drop_in.runs import ADAMW, AT_ONE_RATE, OURS, RATES, RELATIVE, Laboratory, Run, rates_of
from benchmarks.drop_in.shapes import MILLION, SEEDS, SHAPES, TUNING_SEED, Shape
from benchmarks.shared import terminal
from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console
from benchmarks.shared.records import Records

PARTS = ("shapes", "million", "relative")
TINY = Shape(width=16, depth=1, batch=2, window=8, steps=10)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drop_in", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for drop_in.jsonl and drop_in.png")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all by default")
    parser.add_argument("--quick", action="store_true", help="ten steps of tiny models, which show nothing")
    return parse_with_folder(parser, arguments, ["quick"])


def curves(
    laboratory: Laboratory, shape: Shape, names: tuple[str, ...] = (ADAMW, OURS)
) -> dict[str, list[Run]]:
    """Return the runs of AdamW and of ours, or of others, at every rate."""
    return {
        name: [laboratory.run(shape, name, rate, TUNING_SEED) for rate in rates_of(name)] for name in names
    }


def million(laboratory: Laboratory, shape: Shape) -> tuple[float, dict[str, list[Run]]]:
    """Return AdamW's best rate, of a seed that is not reported, and all optimisers at it on fresh seeds."""
    tuning = [laboratory.run(shape, ADAMW, rate, TUNING_SEED).validation for rate in RATES]
    rate = RATES[int(np.argmin(tuning))]
    return rate, {name: [laboratory.run(shape, name, rate, seed) for seed in SEEDS] for name in AT_ONE_RATE}


def main(arguments: list[str]) -> None:
    """Run what is not recorded yet; print the tables and draw the picture."""
    options = parse(arguments)
    command = ["python", "-m", "benchmarks.drop_in", *["--quick"] * options.quick]
    console = wide_console()
    shapes = {"tiny": TINY} if options.quick else SHAPES
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=None)
        records = Records(options.out / "drop_in.jsonl", command)
        laboratory = Laboratory(records, lambda text: progress.update(bar, description=text))
        if "shapes" in options.parts:
            found = {label: curves(laboratory, shape) for label, shape in shapes.items()}
            draw(options.out / "drop_in.png", found)
            console.print(curves_table(found))
        if "relative" in options.parts:
            both = {label: curves(laboratory, shape, (OURS, RELATIVE)) for label, shape in shapes.items()}
            headings, rows = relative_rows(both)
            console.print(terminal.table("Best rate of steps as they are, and relative", headings, rows))
        if "million" in options.parts:
            rate, runs = million(laboratory, TINY if options.quick else MILLION)
            console.print(million_table(rate, runs))


if __name__ == "__main__":
    main(sys.argv[1:])

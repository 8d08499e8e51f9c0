"""Train a byte-level language model with the metric in an eigenbasis and its rivals, each rate tuned."""

import argparse
import os
import sys
from pathlib import Path

# The decompositions are of small matrices, whose threads would only wait for each other; NumPy and SciPy read
# this when they are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import Progress

from benchmarks.language_model.contestants import CONTESTANTS
from benchmarks.language_model.report import LEGEND, Row, claims, draw, table, write_record
from benchmarks.language_model.runs import FULL, QUICK, Records, tune
from benchmarks.shared.command import RESULTS, parse_with_folder


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_model", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for language_model.json and .png")
    parser.add_argument("--runs", type=Path, help="file that keeps each run as it is done, to go on from")
    parser.add_argument("--quick", action="store_true", help="twenty steps, which show nothing")
    return parse_with_folder(parser, arguments)


def main(arguments: list[str]) -> None:
    """Tune, run on fresh seeds, then write record and picture and print the table."""
    options = parse(arguments)
    size = QUICK if options.quick else FULL
    path = options.runs or options.out / "language_model.runs.jsonl"
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("language model", total=None)
        records = Records(path, size, lambda text: progress.update(task, description=text))
        best, tuning = tune(CONTESTANTS, records, size)
        rows = []
        for contestant in CONTESTANTS:
            exponent = best[contestant.rate_of or contestant.name]
            runs = [records.get(contestant, exponent, seed) for seed in size.seeds]
            tuned = contestant.rate_of is None
            rows.append(Row(contestant.name, exponent, tuned, tuning.get(contestant.name, {}), runs))
    command = ["python", "-m", "benchmarks.language_model", *["--quick"] * options.quick]
    write_record(options.out / "language_model.json", command, size, rows)
    draw(options.out / "language_model.png", rows)
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    console.print(table(rows))
    console.print(LEGEND)
    for claim, holds in claims(rows).items():
        console.print(f"{claim}: {'holds' if holds else 'DOES NOT HOLD'}.", soft_wrap=True)
    if options.runs is None:
        path.unlink()  # all of it that matters is in the record


if __name__ == "__main__":
    main(sys.argv[1:])

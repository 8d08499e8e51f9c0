"""Ablate metric, anchor and noise on the slowly-changing regression, beside SGD and RMSprop, each tuned."""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.shared.command import RESULTS, parse_with_folder
from benchmarks.slowly_changing.report import ALL, CLAIM, LEGEND, claim_holds, make_row, record, table
from benchmarks.slowly_changing.runs import PUBLISHED, QUICK, Records


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slowly_changing", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for slowly_changing.json")
    parser.add_argument(
        "--runs", type=Path, help="file that keeps each run as it is done, to go on from after a stop"
    )
    parser.add_argument("--quick", action="store_true", help="a few hundred steps, which show nothing")
    return parse_with_folder(parser, arguments)


def main(arguments: list[str]) -> None:
    """Run all methods, then write the record and print the table."""
    options = parse(arguments)
    size = QUICK if options.quick else PUBLISHED
    runs = options.runs or options.out / "slowly_changing.runs.json"
    records, rows = Records(runs, size), []
    log = Console(stderr=True, highlight=False)
    for method in ALL:
        began = time.perf_counter()
        rows.append(make_row(method, records, size))
        log.print(f"{method.name}: {time.perf_counter() - began:.0f} s")
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    console.print(table(rows))
    console.print(LEGEND)
    console.print(f"\n{CLAIM}: {'holds' if claim_holds(rows) else 'DOES NOT HOLD'}.", soft_wrap=True)
    (options.out / "slowly_changing.json").write_text(json.dumps(record(rows, size), indent=1) + "\n")
    if options.runs is None:
        runs.unlink()  # all of it that matters is in the record


if __name__ == "__main__":
    main(sys.argv[1:])

"""Learn streams that change, with the metric, its controls and published rules, each with as many trials."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.continual.family import APART, FAMILIES, JUDGED, TOGETHER, Family, judged
from benchmarks.continual.images import load
from benchmarks.continual.laboratory import Laboratory
from benchmarks.continual.streams import STREAMS, adjusted, quick
from benchmarks.continual.summary import rows, sweep_rows
from benchmarks.continual.table import LEGEND, family_table, sweep_table, table
from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console, without_folders
from benchmarks.shared.records import Records
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.hub import SOURCES


def positive(text: str) -> int:
    """Read a number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return value


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continual", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of continual.jsonl, which goes on")
    learned = parser.add_mutually_exclusive_group()
    learned.add_argument("--streams", nargs="+", choices=STREAMS, default=tuple(STREAMS), metavar="STREAM")
    learned.add_argument(
        "--family", choices=FAMILIES, help="one setting for all of these streams, and without each one's say"
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these")
    parser.add_argument(
        "--data", choices=("digits", *SOURCES), default="digits", help="for streams of images"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the hub's parquet files")
    online = parser.add_argument_group("online streams of images, and random labels")
    online.add_argument(
        "--tasks", type=positive, metavar="N", help="100 by default, 20 of them in tuning; published 800"
    )
    online.add_argument("--images", type=positive, metavar="N", help="of a task; to memorise 400, or 1200")
    online.add_argument("--hidden", type=positive, nargs="+", metavar="N", help="100 100, or 2000 2000 2000")
    parser.add_argument("--quick", action="store_true", help="a few steps, which show nothing")
    options = parse_with_folder(parser, arguments)
    if options.family:
        options.streams = FAMILIES[options.family]
    length = {name: getattr(options, name) for name in ("tasks", "images", "hidden")}
    options.of_name = {name: adjusted(STREAMS[name], **length) for name in options.streams}
    if any(length.values()) and all(options.of_name[name] is STREAMS[name] for name in options.streams):
        parser.error("--tasks, --images and --hidden are of online streams of images: add one to --streams")
    known = {method for stream in options.of_name.values() for method in stream.methods}
    if unknown := set(options.methods or ()) - (set(JUDGED) if options.family else known):
        parser.error(f"--methods: unknown {', '.join(sorted(unknown))}")
    if options.quick:
        options.of_name = {name: quick(stream) for name, stream in options.of_name.items()}
    try:
        options.images = load(options.data, options.data_dir)
    except InputError as error:
        parser.error(str(error))
    return options


def family(options: argparse.Namespace, records: Records) -> None:
    """Run the methods with one setting for all streams of a family."""
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(options.family, total=None)

        def advance(method: str, phase: str, share: float) -> None:
            progress.update(bar, description=f"{options.family}: {method}, {phase}")

        together = Family(
            {
                name: Laboratory(name, stream, options.data, options.images, records, advance)
                for name, stream in options.of_name.items()
            }
        )
        asked = [method for method in JUDGED if options.methods is None or method in options.methods]
        chosen = [method for method in asked if together.takes_part(method)]
        progress.update(bar, total=len(chosen))
        for method in chosen:
            together.work(method)
            progress.advance(bar)
    console = wide_console(150)
    for phase in (TOGETHER, APART):
        found = [
            judged(records, name, phase, options.data, stream.size.length)
            for name, stream in options.of_name.items()
        ]
        console.print(family_table(found, phase))


def main(arguments: list[str]) -> None:
    """Run what is not in the records yet."""
    options = parse(arguments)
    path = options.out / ("continual.quick.jsonl" if options.quick else "continual.jsonl")
    records = Records(path, ["python", "-m", "benchmarks.continual", *without_folders(arguments)])
    if options.family:
        family(options, records)
        return
    with Progress(console=Console(stderr=True)) as progress:
        for name, stream in options.of_name.items():
            chosen = [m for m in stream.methods if options.methods is None or m in options.methods]
            bar = progress.add_task(name, total=len(chosen))

            def advance(method: str, phase: str, share: float, bar=bar, name=name) -> None:
                progress.update(bar, description=f"{name}: {method}, {phase}")

            laboratory = Laboratory(name, stream, options.data, options.images, records, advance)
            for method in chosen:
                laboratory.work(method)
                progress.advance(bar)
    console = wide_console(150)
    for name, stream in options.of_name.items():
        if found := rows(records, name, options.data, stream.size.length):
            console.print(table(found))
        if swept := sweep_rows(records, name, options.data):
            console.print(sweep_table(swept))
    console.print(LEGEND)


if __name__ == "__main__":
    main(sys.argv[1:])

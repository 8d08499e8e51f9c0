"""Train to an accuracy with every rule and count the energy; each rule tuned with as many trials."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.energy.laboratory import FULL, QUICK, SIZES, Laboratory
from benchmarks.energy.methods import methods
from benchmarks.energy.protocols import PROTOCOLS, load
from benchmarks.energy.table import LEGEND, rows, table
from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console, without_folders
from benchmarks.shared.records import Records
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.hub import SOURCES


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.energy", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of energy.jsonl, which goes on")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=tuple(PROTOCOLS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these")
    parser.add_argument("--data", choices=("digits", *SOURCES), default="digits")
    parser.add_argument("--data-dir", type=Path, help="folder of the hub's parquet files")
    parser.add_argument("--hidden", type=int, nargs="+", help="sizes of the hidden layers")
    parser.add_argument("--quick", action="store_true", help="a few steps, which show nothing")
    options = parse_with_folder(parser, arguments)
    if options.hidden is not None and min(options.hidden) < 1:
        parser.error("--hidden must be sizes of at least 1")
    unknown = set(options.methods or ()) - {name for protocol in PROTOCOLS for name in methods(protocol)}
    if unknown:
        parser.error(f"--methods: unknown {', '.join(sorted(unknown))}")
    try:
        options.images = load(options.data, options.data_dir)
    except InputError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str]) -> None:
    """Run what is not in the records yet."""
    options = parse(arguments)
    path = options.out / ("energy.quick.jsonl" if options.quick else "energy.jsonl")
    records = Records(path, ["python", "-m", "benchmarks.energy", *without_folders(arguments)])
    console = wide_console(150)
    with Progress(console=Console(stderr=True)) as progress:
        for name in options.protocols:
            protocol = PROTOCOLS[name]
            if options.hidden is not None:
                protocol = protocol._replace(hidden=tuple(options.hidden))
            size = QUICK if options.quick else SIZES.get(name, FULL)
            chosen = [m for m in methods(name) if options.methods is None or m in options.methods]
            bar = progress.add_task(name, total=len(chosen))

            def advance(method: str, phase: str, bar=bar, name=name) -> None:
                progress.update(bar, description=f"{name}: {method}, {phase}")

            laboratory = Laboratory(name, protocol, size, options.data, options.images, records, advance)
            for method in chosen:
                laboratory.work(method)
                progress.advance(bar)
            if found := rows(records, name, options.data, protocol.hidden):
                console.print(table(f"{protocol.title}; {options.data}", found))
    console.print(LEGEND)


if __name__ == "__main__":
    main(sys.argv[1:])

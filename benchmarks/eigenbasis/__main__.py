"""Train a byte-level language model in an eigenbasis beside its rivals, and count what the basis costs."""

import argparse
import os
import sys
from pathlib import Path

# The decompositions are of small matrices, whose threads would only wait for each other; NumPy and SciPy read
# this when they are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import Progress

from benchmarks.eigenbasis import controls, cost, forms
from benchmarks.eigenbasis.methods import METHODS
from benchmarks.eigenbasis.report import LEGEND, Row, claims, content, draw, table
from benchmarks.eigenbasis.runs import FULL, FULL_GRID, QUICK, QUICK_GRID, Laboratory
from benchmarks.eigenbasis.sizes import MODELS, SCALES, python_sources
from benchmarks.eigenbasis.tables import TABLES
from benchmarks.shared.command import (
    RESULTS,
    OutOfTimeError,
    deadline,
    minutes,
    parse_with_folder,
    wide_console,
)
from benchmarks.shared.records import Records, write_record

KNOWN = forms.FORMS | controls.CONTROLS | TABLES
PARTS = ("forms", "quality", "cost")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.eigenbasis", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder for eigenbasis_forms.json, language_model.json and .png, and eigenbasis_cost.json",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS[:1],
        help="forms (the default): all forms and peers; quality: an older protocol; cost: counted, not timed",
    )
    parser.add_argument("--runs", type=Path, help="file that keeps each run as it is done, to go on from")
    parser.add_argument(
        "--size",
        choices=[name for name in SCALES if name != "quick"],
        default="small",
        help="of the forms' network: small 0.13 million weights, full 0.65, 20m_cpu 19 for 160 steps; "
        "long is small for 10,000 steps, full_long full for 3,000; 20m and 120m are for a GPU. In these four "
        "the GPT learns the sources of Python's standard library",
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="gpt",
        help="gpt (the default) learns bytes, vit synthetic textures with about as many weights",
    )
    parser.add_argument("--text-file", type=Path, help="a file of bytes to learn instead")
    parser.add_argument("--minutes", type=minutes, help="stop then; the same command goes on")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=KNOWN,
        metavar="FORM",
        help="only these, or controls of one; the record keeps the others",
    )
    parser.add_argument("--quick", action="store_true", help="training for twenty steps, which shows nothing")
    options = parse_with_folder(parser, arguments, ["quick", "text_file"])
    if options.text_file is not None and options.model != "gpt":
        parser.error("--text-file is not used by --model vit: leave it out")
    if options.text_file is not None and not options.text_file.is_file():
        parser.error(f"--text-file: there is no file {options.text_file}")
    return options


def quality(options: argparse.Namespace, command: list[str], console: Console) -> None:
    """Tune, run on fresh seeds, then write record and picture and print the table."""
    size, grid = (QUICK, QUICK_GRID) if options.quick else (FULL, FULL_GRID)
    path = options.runs or options.out / "language_model.runs.jsonl"
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("language model", total=None)
        laboratory = Laboratory(
            Records(path, command), size, lambda text: progress.update(task, description=text)
        )
        best, tuning = laboratory.tune(grid)
        rows = []
        for name, method in METHODS.items():
            exponent = best[method.point_of or name]
            runs = [laboratory.run(name, exponent, seed) for seed in size.seeds]
            rows.append(Row(name, exponent, method.point_of is None, tuning.get(name, {}), runs))
    found = content(size, rows)
    write_record(options.out / "language_model.json", command, found)
    draw(found["rows"], options.out / "language_model.png")
    console.print(table(rows))
    console.print(LEGEND)
    for claim, holds in claims(rows).items():
        console.print(f"{claim}: {'holds' if holds else 'DOES NOT HOLD'}.", soft_wrap=True)
    if options.runs is None:
        path.unlink()  # all of it that matters is in the record


def names_of_size(options: argparse.Namespace) -> list[str]:
    """Return what distinguishes the record of a model and a size from that of the smallest GPT."""
    return [options.model] * (options.model != "gpt") + [options.size] * (options.size != "small")


def compare(options: argparse.Namespace, command: list[str], console: Console) -> None:
    """Compare all forms and peers, write the record and print the table; a stopped run goes on."""
    scale = MODELS[options.model]["quick" if options.quick else options.size]
    stem = "_".join(["eigenbasis_forms", *names_of_size(options)])
    path, record = options.runs or options.out / f"{stem}.runs.jsonl", options.out / f"{stem}.json"
    text = options.text_file or (python_sources(options.out) if scale.text else None)
    if options.only:
        try:
            forms.with_recorded([], record, scale.size, text)
        except ValueError as error:  # better known before the hours of work than after
            sys.exit(str(error))
    check = deadline(options.minutes)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("forms", total=None)

        def show(what: str) -> None:
            check(what)
            progress.update(task, description=what)

        try:
            records, names = Records(path, command), options.only or list(forms.FORMS)
            rows = forms.compare(names, scale, records, show, text, KNOWN)
        except OutOfTimeError as stopped:
            console.print(str(stopped))
            return
    if options.only:
        rows = forms.with_recorded(rows, record, scale.size, text)
    write_record(record, command, forms.content(scale.size, rows, text))
    console.print(forms.table(rows))
    if shares := controls.kept(rows):
        console.print(controls.table(shares))
    for claim, holds in forms.claims(rows).items():
        console.print(f"{claim}: {'holds' if holds else 'DOES NOT HOLD'}.", soft_wrap=True)
    if options.runs is None:
        path.unlink()  # all of it that matters is in the record


def main(arguments: list[str]) -> None:
    """Run the parts that are asked for."""
    options = parse(arguments)
    command = ["python", "-m", "benchmarks.eigenbasis", *["--quick"] * options.quick]
    command += ["--model", options.model] * (options.model != "gpt")
    command += ["--size", options.size] * (options.size != "small")
    console = wide_console()
    if "forms" in options.parts:
        compare(options, command, console)
    if "quality" in options.parts:
        quality(options, command, console)
    if "cost" in options.parts:
        found = cost.count()
        for part in cost.tables(found):
            console.print(part)
        write_record(options.out / "eigenbasis_cost.json", command, cost.content(found))


if __name__ == "__main__":
    main(sys.argv[1:])

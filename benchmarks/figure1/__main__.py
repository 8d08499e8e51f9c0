"""Draw the paper's figure: paths of SGD, momentum, Adam and the metric on three valleys, each tuned."""

import argparse
import math
import sys
import textwrap
import time
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress

from benchmarks.figure1.methods import METHODS, Method
from benchmarks.figure1.near_minimum import NOTE, outlooks, spectrum_table
from benchmarks.figure1.picture import LABELS, Paths, draw
from benchmarks.figure1.report import CLAIM, LEGEND, claim_holds, content, sentences, surface_table
from benchmarks.figure1.rows import make_rows
from benchmarks.figure1.search import FULL, QUICK, search
from benchmarks.figure1.surfaces import paper_surfaces
from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console, without_folders
from benchmarks.shared.records import write_record


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figure1", description=__doc__)
    parser.add_argument("--kappa", type=float, default=50.0, help="curvature of the steep axis (default: 50)")
    parser.add_argument("--angle", type=float, default=17.0, help="turn of the second surface in degrees")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for figure1.json and figure1.png")
    parser.add_argument("--quick", action="store_true", help="a coarser grid and shorter runs")
    options = parse_with_folder(parser, arguments, ["kappa", "angle", "quick"])
    if not 1 <= options.kappa < math.inf:
        parser.error(f"--kappa must be a number of at least 1, got {options.kappa}")
    if not math.isfinite(options.angle):
        parser.error(f"--angle must be a finite number of degrees, got {options.angle}")
    return options


def main(arguments: list[str]) -> None:
    """Search, then write the picture and the record and print the tables."""
    options = parse(arguments)
    surfaces = paper_surfaces(options.kappa, options.angle)
    began = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress, jax.enable_x64(True):
        task = progress.add_task("searching")

        def show(fraction: float, method: Method) -> None:
            progress.update(task, description=f"{method.name} {method.role or ''}", completed=100 * fraction)

        results, grid, runners = search(METHODS, surfaces, QUICK if options.quick else FULL, show)
        progress.update(task, description="fresh starts and picture")
        rows = make_rows(surfaces, results, grid, runners)
        shown = [row for row in rows if row.best and (row.method.name, row.method.role) in LABELS]
        paths: dict[str, Paths] = {name: {} for name in surfaces}
        for row in shown:
            found = runners[row.method].path(row.best.point, surfaces[row.surface])
            paths[row.surface][row.method.name, row.method.role] = found
        draw(options.out / "figure1.png", surfaces, paths)
        near_minimum = outlooks(surfaces, rows)
    seconds = time.perf_counter() - began
    command = ["python", "-m", "benchmarks.figure1", *without_folders(arguments)]
    write_record(options.out / "figure1.json", command, content(surfaces, grid, rows, seconds))

    console = wide_console(140)
    for name, surface in surfaces.items():
        turned = f", turned by {surface.angle:g} degrees" if surface.angle else ""
        own = [row for row in rows if row.surface == name]
        console.print(surface_table(f"{name} (kappa {surface.kappa:g}{turned})", own))
    verdict = f"{CLAIM}: {'holds' if claim_holds(rows) else 'DOES NOT HOLD'}."
    written = f"{seconds:.0f} s. Written: figure1.json and figure1.png in {options.out}"
    console.print(LEGEND, end="\n\n")
    for name, outlook in near_minimum.items():
        console.print(spectrum_table(name, outlook))
    console.print(NOTE)
    for paragraph in (*sentences(rows), verdict, written):
        console.print("\n" + textwrap.fill(paragraph, 110))


if __name__ == "__main__":
    main(sys.argv[1:])

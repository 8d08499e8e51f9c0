"""Write the report, its pictures and the tables of README and of the site from the recorded results alone."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.report import compose, details, packaged, pictures, redrawn, sentences, site, suite
from benchmarks.shared.command import RESULTS
from benchmarks.shared.records import Records
from riemann_optax.examples.train import chooser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "REPORT.md", help="file to write")
    parser.add_argument("--tables", action="store_true", help="write the pages' tables alone")
    options = parser.parse_args(arguments)
    if not list(options.results.glob("time_to_target/*.jsonl")):
        parser.error(f"--results {options.results} has no records of python -m benchmarks.time_to_target")
    return options


def main(arguments: list[str]) -> None:
    """Read the records, draw the pictures beside them, write the pages."""
    options = parse(arguments)
    found = suite.load(options.results / "time_to_target")
    say = Console(highlight=False).print
    if options.results == RESULTS:  # the pages show the committed records, never those of a trial
        entries = list(Records(RESULTS / "continual.jsonl"))
        packaged.write(packaged.table(found.complete, entries, RESULTS), chooser.TABLE)
        chooser.packaged.cache_clear()
        known = site.tables(found, entries, RESULTS)
        for page in site.PAGES:
            page.write_text(site.filled(page.read_text(), known))
        texts = sentences.fill(RESULTS)
        for path, text in texts.items():
            path.write_text(text)
        say(
            f"wrote the tables of {len(site.PAGES)} pages and the trainer's own, and the sentences of "
            f"{len(texts)} files"
        )
    if options.tables:
        return
    if options.results == RESULTS:
        for name, redraw in redrawn.PICTURES.items():
            redraw(RESULTS, RESULTS / name)
        say(f"wrote {len(redrawn.PICTURES)} pictures of other benchmarks")
    for name, draw in pictures.PICTURES.items():
        draw(found.complete, options.results / name)
    options.out.write_text(compose.page(found, options.results))
    tables = options.out.with_name("TABLES.md")
    tables.write_text(details.page(found.complete, options.results))
    say(f"wrote {options.out}, {tables} and {len(pictures.PICTURES)} pictures", soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])

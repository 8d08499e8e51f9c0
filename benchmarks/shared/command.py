"""What the command lines of the benchmarks have in common."""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

RESULTS = Path(__file__).parents[1] / "results"
OF_MACHINE = ("--out", "--data-dir", "--text-file")
PROBE = ".write-test"


def parse_with_folder(
    parser: argparse.ArgumentParser, arguments: list[str] | None, of_a_part: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse ``arguments`` and make the folder ``--out``; where that fails, say so and exit with status 2.

    Args:
      parser: of the program.
      arguments: its command line.
      of_a_part: options with which the program measures less, or something else. In the folder of the
        published records it would then write over what the pages are made of, which is refused.
    """
    options = parser.parse_args(arguments)
    other = [name for name in of_a_part if getattr(options, name) != parser.get_default(name)]
    if other and options.out.resolve() == RESULTS:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        parser.error(
            f"{named}: this is not what the pages show, so give it a folder of its own, --out FOLDER"
        )
    try:
        # Whether the folder can be written is better known before the hours of work than after.
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / PROBE).touch()
        (options.out / PROBE).unlink()
    except OSError as error:
        parser.error(f"--out must be a folder that can be written: {error}")
    return options


def minutes(text: str) -> float:
    """Return a number of minutes; what is none, or negative, is argparse's one-line error."""
    value = float(text)
    if not value >= 0:
        raise ValueError
    return value


class OutOfTimeError(Exception):
    """The minutes that were given are over."""


def deadline(limit: float | None) -> Callable[[str], None]:
    """Return what is told what is run next, and raises :class:`OutOfTimeError` once the minutes are over.

    Examples:
      >>> deadline(None)("the first run")
    """
    end = math.inf if limit is None else time.monotonic() + 60 * limit

    def check(what: str) -> None:
        if time.monotonic() >= end:
            raise OutOfTimeError(f"{limit:g} minutes are over, before {what}. The same command goes on.")

    return check


def without_folders(arguments: Sequence[str]) -> list[str]:
    """Return a command line as a record names it: without folders and files, which are of one machine.

    Examples:
      >>> without_folders(["--out", "/here", "--quick", "--data-dir=/there"])
      ['--quick']
    """
    kept, skipped = [], False
    for argument in arguments:
        if skipped or argument.split("=")[0] in OF_MACHINE:
            skipped = not skipped and argument in OF_MACHINE  # its value stands in the next argument
        else:
            kept.append(argument)
    return kept


def wide_console(columns: int = 110) -> Console:
    """Return a console at least so wide: in a narrow terminal tables wrap, which beats cutting them."""
    console = Console(highlight=False)
    console.width = max(console.width, columns)
    return console

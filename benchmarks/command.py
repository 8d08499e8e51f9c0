"""What the command lines of the benchmarks have in common."""

import argparse
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def parse_with_folder(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse ``arguments`` and make the folder ``--out``; where that fails, say so and exit with status 2."""
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written: {error}")
    return options

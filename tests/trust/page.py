"""The page ``tests/TRUST.md``, from the records alone."""

from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "TRUST.md"


def write_page() -> str:
    """Return the page."""
    return ""

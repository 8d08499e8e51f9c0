"""Tables as the terminal shows them; :mod:`benchmarks.shared.markdown` has those of the report."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table


def table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[str] | None = None
) -> Table:
    """Lay out a table: columns named in ``left``, or else the first, to the left, the others to the right.

    Examples:
      >>> table("rates", ["method", "rate"], [["SGD", "0.1"]]).row_count
      1
    """
    result = Table(title=title, box=box.SIMPLE, title_justify="left")
    at_left = set(headings[:1] if left is None else left)
    for heading in headings:
        result.add_column(heading, justify="left" if heading in at_left else "right")
    for row in rows:
        result.add_row(*row)
    return result

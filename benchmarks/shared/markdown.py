"""Tables and numbers as Markdown shows them."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.shared import statistics

# By what is said behind the name of an alias.
OPTIONS = {"": "", "one-sided": '(sides="smaller")', "of gradients": "(gradient_share=1.0)"}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table: columns that begin with a word to the left, columns of numbers to the right.

    Examples:
      >>> print(table(["a", "b", "c"], [["x", "1", "y"], ["x", "**-2**", "1"]]))
      | a | b | c |
      |:--|--:|:--|
      | x | 1 | y |
      | x | **-2** | 1 |
    """
    cells = [list(row) for row in rows]
    marks = [":--" if any(_is_text(row[i]) for row in cells) else "--:" for i in range(len(headings))]
    lines = ["| " + " | ".join(headings) + " |", "|" + "|".join(marks) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join(lines)


def _is_text(cell: str) -> bool:
    """Return whether a cell begins with a word other than "missed"."""
    return bool(re.match(r"[^\W\d_]|`", cell.lstrip("* "))) and not cell.startswith(("missed", "inf", "nan"))


def number(value: float, digits: int = 2) -> str:
    """Write a number with some decimals; what is infinite as a miss.

    Examples:
      >>> number(0.756), number(np.inf), number(np.nan)
      ('0.76', 'missed', '-')
    """
    if np.isnan(value):
        return "-"
    return f"{value:.{digits}f}" if np.isfinite(value) else "missed"


def two_digits(value: float) -> str:
    """Write a standard error with at most two significant digits, and no exponent.

    Examples:
      >>> two_digits(987.6), two_digits(12_345.0), two_digits(2.84), two_digits(0.0512), two_digits(4.0)
      ('990', '12,000', '2.8', '0.051', '4')
    """
    return f"{float(f'{value:.2g}'):,.10g}"


def quartiles(values: np.ndarray) -> str:
    """Write median and interquartile range; an infinite one as a miss.

    Examples:
      >>> quartiles(np.array([100.0, 120.0, 110.0])), quartiles(np.array([1.0, np.inf, np.inf]))
      ('110 [105, 115]', 'missed')
    """
    low, middle, high = (number(value, 0) for value in statistics.quartiles(values))
    return middle if middle == "missed" else f"{middle} [{low}, {high}]"


def title(name: str) -> str:
    """Return the name of a task or a stream in words.

    Examples:
      >>> title("digits_mlp")
      'digits mlp'
    """
    return name.replace("_", " ")


def in_code(alias: str) -> str:
    """Return how an alias of the library is called.

    Examples:
      >>> print(in_code("riemannian_adamw"), in_code("riemannian_schedule_free, one-sided"))
      `ro.riemannian_adamw` `ro.riemannian_schedule_free(sides="smaller")`
    """
    name, _, form = alias.partition(", ")
    return f"`ro.{name}{OPTIONS[form]}`"

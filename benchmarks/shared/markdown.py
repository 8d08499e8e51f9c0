"""Tables and numbers as Markdown shows them."""

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.shared import statistics


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right.

    Examples:
      >>> print(table(["a", "b"], [["x", "1"]]))
      | a | b |
      |:--|--:|
      | x | 1 |
    """
    marks = ":--|" + "--:|" * (len(headings) - 1)
    lines = ["| " + " | ".join(headings) + " |", "|" + marks]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float, digits: int = 2) -> str:
    """Write a number with some decimals; what is infinite as a miss.

    Examples:
      >>> number(0.756), number(np.inf), number(np.nan)
      ('0.76', 'missed', '-')
    """
    if np.isnan(value):
        return "-"
    return f"{value:.{digits}f}" if np.isfinite(value) else "missed"


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

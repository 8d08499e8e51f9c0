"""Tables and numbers as Markdown shows them."""

from collections.abc import Iterable, Sequence

import numpy as np


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
    ordered = np.sort(values)
    low, middle, high = (_quantile(ordered, share) for share in (0.25, 0.5, 0.75))
    if not np.isfinite(middle):
        return "missed"
    top = f"{high:.0f}" if np.isfinite(high) else "missed"
    return f"{middle:.0f} [{low:.0f}, {top}]"


def _quantile(ordered: np.ndarray, share: float) -> float:
    """Interpolate between order statistics without making infinity times 0."""
    place = share * (len(ordered) - 1)
    low, weight = int(place), place - int(place)
    return float(ordered[low] if weight == 0 else (1 - weight) * ordered[low] + weight * ordered[low + 1])


def title(task: str) -> str:
    """Return the name of a task in words."""
    return task.replace("_", " ")

"""What a disturbance costs whoever chose the rate before it came."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmarks.robustness.disturbances import CALM, PANELS, Conditions
from benchmarks.robustness.runs import EXPONENTS, METHODS, Laboratory, makes
from benchmarks.shared.statistics import standard_error

NEAR = 1.2  # times the least loss is as good


class Row(NamedTuple):
    """An optimiser under one disturbance.

    Attributes:
      rate: chosen undisturbed, on the tuning seeds.
      loss: at that rate, mean over the fresh seeds; infinite where any run diverged.
      error: its standard error.
      retuned: loss at the rate that the tuning seeds choose under the disturbance itself.
      octaves: how far the rates reach, in octaves, whose loss is at most 1.2 times the least one.
    """

    rate: float
    loss: float
    error: float
    retuned: float
    octaves: int


# By panel, optimiser and level.
Rows = dict[str, dict[str, dict[str, Row]]]


def row(laboratory: Laboratory, name: str, conditions: Conditions) -> Row:
    """Return what the runs of an optimiser come to."""
    undisturbed, _ = laboratory.losses(name, CALM)
    tuning, fresh = laboratory.losses(name, conditions)
    chosen, again = int(undisturbed.mean(1).argmin()), int(tuning.mean(1).argmin())
    means = fresh.mean(1)
    near = np.flatnonzero(np.isfinite(means) & (means <= NEAR * means.min()))
    return Row(
        rate=2.0 ** EXPONENTS[chosen],
        loss=float(means[chosen]),
        error=standard_error(fresh[chosen]) if np.isfinite(means[chosen]) else np.inf,
        retuned=float(means[again]),
        octaves=int(near[-1] - near[0]) if len(near) else 0,
    )


def rows(laboratory: Laboratory, panels: Iterable[str] = tuple(PANELS)) -> Rows:
    """Return all rows, by panel, optimiser and level."""
    return {
        key: {
            name: {
                level: row(laboratory, name, conditions)
                for level, conditions in panel.levels.items()
                if makes(name, conditions)
            }
            for name in METHODS
            if all(makes(name, conditions) for conditions in panel.levels.values())
        }
        for key, panel in ((key, PANELS[key]) for key in panels)
    }


def table_rows(found: Rows) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells; in brackets what the best rate gives, and how far the good ones reach."""
    cells = []
    for key, by_name in found.items():
        panel = PANELS[key]
        for level in panel.levels:
            line = [f"{panel.title}: {panel.axis}", level]
            for name in METHODS:
                line.append(_cell(by_name[name][level]) if name in by_name else "-")
            cells.append(line)
    return ["disturbance", "level", *(f"`{name}`" for name in METHODS)], cells


def _cell(row: Row) -> str:
    loss = f"{row.loss:.3f}" if np.isfinite(row.loss) else "diverged"
    retuned = f"{row.retuned:.3f}" if np.isfinite(row.retuned) else "diverged"
    return f"{loss} ({retuned}; {row.octaves})"

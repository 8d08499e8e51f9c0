"""The table, the claims, the record and the picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.eigenbasis.methods import METHODS, MUON, OURS, OURS_SELDOM
from benchmarks.eigenbasis.runs import BIN, LAST, Run, rate_value
from benchmarks.shared import terminal
from benchmarks.shared.experiment import Size
from benchmarks.shared.statistics import standard_error
from benchmarks.shared.style import ADAMW, METRIC, styled
from riemann_optax.plot import name_lines

AT_MOST, LOST = 1.50, 0.05

LEGEND = f"""\
Nats per byte after all steps: mean and standard error over fresh seeds, all methods on the same weights
to begin with and on the same batches. "loss" is the mean of the last {LAST} training batches, "validation"
that of text never trained on. Each row has its own best rate of one grid for all, chosen on other seeds
(* one on the edge of the grid, = taken over from the metric's). The metric is the conformal activity metric
at alpha 30 with Nesterov momentum on the tangent, in the eigenbasis, refreshed every 10 steps unless said
otherwise."""


class Row(NamedTuple):
    """A method at its rate on the language model.

    Attributes:
      name: of the method.
      exponent: of its rate.
      tuned: whether the rate is its own.
      tuning: mean loss on the tuning seeds by exponent; empty where it was not tuned.
      runs: on the fresh seeds.
    """

    name: str
    exponent: int
    tuned: bool
    tuning: dict[int, float]
    runs: list[Run]

    def mean(self, quantity: str = "loss") -> float:
        """Return the mean over the fresh seeds."""
        return float(np.mean([getattr(run, quantity) for run in self.runs]))

    def error(self, quantity: str = "loss") -> float:
        """Return its standard error."""
        return standard_error(np.array([getattr(run, quantity) for run in self.runs]))

    def mark(self) -> str:
        """Return what follows the rate in the table."""
        if not self.tuned:
            return "="
        return "*" if self.exponent in (min(self.tuning), max(self.tuning)) else ""


def table(rows: list[Row]) -> Table:
    """Lay out all rows, the lowest loss first."""
    cells = [
        [
            row.name,
            f"{rate_value(row.exponent):g}{row.mark()}",
            f"{row.mean():.3f} +- {row.error():.3f}",
            f"{row.mean('validation'):.3f} +- {row.error('validation'):.3f}",
            f"{np.median([run.seconds for run in row.runs]):.0f}",
        ]
        for row in sorted(rows, key=Row.mean)
    ]
    headings = ["method", "rate", "loss", "validation", "seconds"]
    return terminal.table("Byte-level language model", headings, cells)


def claims(rows: list[Row]) -> dict[str, bool]:
    """Return what was to be shown, and whether it holds."""
    by_name = {row.name: row.mean() for row in rows}
    return {
        f"metric: loss {by_name[OURS]:.3f}, at most {AT_MOST:.2f}": by_name[OURS] <= AT_MOST,
        f"metric: below Muon's {by_name[MUON]:.3f}": by_name[OURS] < by_name[MUON],
        f"refreshed every 50 steps instead of 10: loses {by_name[OURS_SELDOM] - by_name[OURS]:.3f}, at most "
        f"{LOST:.2f}": by_name[OURS_SELDOM] - by_name[OURS] <= LOST,
    }


def content(size: Size, rows: list[Row]) -> dict[str, Any]:
    """Return everything the table shows, for the record."""
    return {
        "protocol": {"length": size.length, "tuning_seeds": size.tuning_seeds, "seeds": size.seeds},
        "claims": claims(rows),
        "rows": [
            {
                "method": row.name,
                "rate": rate_value(row.exponent),
                "tuned": row.tuned,
                "tuning_loss_by_rate": {f"{rate_value(k):g}": loss for k, loss in row.tuning.items()},
                "loss": {"mean": row.mean(), "standard_error": row.error()},
                "validation": {"mean": row.mean("validation"), "standard_error": row.error("validation")},
                "loss_by_seed": [run.loss for run in row.runs],
                "seconds": [round(run.seconds, 1) for run in row.runs],
                "curve": mean_curve(row),
            }
            for row in rows
        ],
    }


def mean_curve(row: Row) -> list[float]:
    """Return the mean curve over the fresh seeds, empty where one diverged."""
    curves = [run.curve for run in row.runs]
    return np.mean(curves, axis=0).tolist() if all(curves) else []


@styled()
def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the mean curves of a record's rows that did not diverge."""
    figure = Figure(figsize=(6.5, 4.4))
    axis = figure.subplots()
    ours = iter((METRIC, "#cc79a7", "#e69f00", "#000000", "0.6"))
    peers = iter((ADAMW, "#56b4e9", "#009e73", "0.35"))
    for row in sorted(rows, key=lambda row: float(row["loss"]["mean"])):
        steps = (np.arange(len(row["curve"])) + 0.5) * BIN
        metric = METHODS[row["method"]].role == "ours"
        axis.plot(
            steps,
            row["curve"],
            "-" if metric else "--",
            color=next(ours if metric else peers),
            label=f"{row['method']}: {row['loss']['mean']:.3f}",
        )
    axis.set(xlabel="step", ylabel="training loss (nats per byte)", yscale="log")
    axis.set_title("byte-level language model, each method at its best rate, mean of fresh seeds")
    name_lines(axis, fontsize=9)
    figure.suptitle("In the eigenbasis, the metric reaches the lowest loss")
    figure.savefig(path)

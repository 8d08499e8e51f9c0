"""Loss under each disturbance, a panel for each."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from benchmarks.robustness.disturbances import PANELS
from benchmarks.robustness.runs import ADAMW, DROP_IN, FREE, FREE_ADAMW, NADAMW
from benchmarks.robustness.summary import Rows
from benchmarks.shared import style

STYLES = {  # ours are solid
    ADAMW: {"color": style.ADAMW, "linestyle": "--"},
    NADAMW: {"color": "#56b4e9", "linestyle": "--"},
    FREE_ADAMW: {"color": "#009e73", "linestyle": "--"},
    DROP_IN: {"color": style.METRIC, "linestyle": "-"},
    FREE: {"color": "#cc79a7", "linestyle": "-"},
}


@style.styled()
def draw(path: Path, found: Rows) -> None:
    """Draw the loss at the rate chosen undisturbed; a cross at the top is a run that diverged."""
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(6.5, 2 * lines + 1))
    grid = figure.subplots(lines, columns, squeeze=False)
    for axis, (key, by_name) in zip(grid.flat, found.items(), strict=False):
        panel = PANELS[key]
        finite = [r.loss for levels in by_name.values() for r in levels.values() if np.isfinite(r.loss)]
        top = 1.3 * max(finite, default=1.0)
        for name, levels in by_name.items():
            values = np.array([r.loss for r in levels.values()])
            errors = [r.error if np.isfinite(r.error) else 0.0 for r in levels.values()]
            places, arrived = np.arange(len(values)), np.isfinite(values)
            shown = np.where(arrived, values, np.nan)
            axis.errorbar(places, shown, errors, marker="o", markersize=4, **STYLES[name])
            colour = STYLES[name]["color"]
            axis.plot(places[~arrived], np.full((~arrived).sum(), top), "x", color=colour, clip_on=False)
        axis.set_yscale("log")
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter(LogFormatter(minor_thresholds=(2, 0.7)))
        axis.tick_params(which="both", axis="y", labelsize=9)
        axis.set_xticks(range(len(panel.levels)), panel.levels)
        axis.set_xlim(-0.3, len(panel.levels) - 0.7)
        axis.set_title(f"{panel.title}: {panel.axis}")
    figure.supylabel("held-out loss (nats), logarithmic", fontsize=10)
    handles = [Line2D([], [], label=name, **kind) for name, kind in STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle("The rate was chosen undisturbed, then one thing changed")
    figure.savefig(path)

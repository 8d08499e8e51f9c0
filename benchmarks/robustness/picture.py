"""Loss under each disturbance, a panel for each."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

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
WIDE = 4  # times the least loss: from there on the axis is logarithmic


@style.styled()
def draw(path: Path, found: Rows) -> None:
    """Draw the loss at the rate chosen undisturbed; a cross at the top is a run that diverged."""
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(6.5, 2.1 * lines + 1.4))
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
            if not arrived.all():
                missed = places[~arrived]
                axis.plot(missed, np.full(len(missed), top), "x", color=colour, clip_on=False)
        if max(finite, default=1.0) > WIDE * min(finite, default=1.0):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
            axis.yaxis.set_minor_formatter("")
        axis.set_xticks(range(len(panel.levels)), panel.levels)
        axis.set_xlim(-0.3, len(panel.levels) - 0.7)
        axis.set_title(panel.title)
        axis.set_xlabel(panel.axis, fontsize=9)
    figure.supylabel("held-out loss (nats)", fontsize=10)
    handles = [Line2D([], [], label=name, **kind) for name, kind in STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle("The rate was chosen undisturbed, then one thing changed")
    figure.savefig(path)

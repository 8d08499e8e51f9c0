"""Loss over each disturbance, a panel for each."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.robustness.disturbances import PANELS
from benchmarks.robustness.runs import ADAMW, DROP_IN, FREE, FREE_ADAMW, NADAMW
from benchmarks.robustness.summary import Rows

# The first two are Optax's with a schedule, the third without one; ours are solid.
STYLES = {
    ADAMW: {"color": "#0072b2", "linestyle": "--"},
    NADAMW: {"color": "#56b4e9", "linestyle": "--"},
    FREE_ADAMW: {"color": "#009e73", "linestyle": "--"},
    DROP_IN: {"color": "#d55e00", "linestyle": "-", "linewidth": 2.2},
    FREE: {"color": "#cc79a7", "linestyle": "-", "linewidth": 2.2},
}


def draw(path: Path, found: Rows) -> None:
    """Draw the loss at the rate chosen in peace; a cross at the top is a run that diverged."""
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(3.25 * columns, 3.1 * lines), squeeze=False)
    for axis, (key, by_name) in zip(grid.flat, found.items(), strict=True):
        panel = PANELS[key]
        finite = [r.loss for levels in by_name.values() for r in levels.values() if np.isfinite(r.loss)]
        top = 1.3 * max(finite)
        for name, levels in by_name.items():
            values = np.array([r.loss for r in levels.values()])
            errors = [r.error if np.isfinite(r.error) else 0.0 for r in levels.values()]
            places = np.arange(len(values))
            arrived = np.isfinite(values)
            axis.errorbar(
                places, np.where(arrived, values, np.nan), errors, marker="o", markersize=4, **STYLES[name]
            )
            axis.plot(
                places[~arrived],
                np.full((~arrived).sum(), top),
                "x",
                color=STYLES[name]["color"],
                clip_on=False,
            )
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(mpl.ticker.LogFormatter(minor_thresholds=(2, 0.7)))
        axis.yaxis.set_minor_formatter(mpl.ticker.LogFormatter(minor_thresholds=(2, 0.7)))
        axis.tick_params(which="both", labelsize=9)
        axis.set_xticks(range(len(panel.levels)), panel.levels, fontsize=10)
        axis.set_xlim(-0.3, len(panel.levels) - 0.7)
        axis.set_title(panel.title, fontsize=12)
        axis.set_xlabel(panel.axis, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[:, 0]:
        axis.set_ylabel("held-out loss, nats", fontsize=10)
    styles = [mpl.lines.Line2D([], [], **style) for style in STYLES.values()]
    figure.legend(styles, STYLES, loc="lower center", ncols=len(STYLES), frameon=False, fontsize=10)
    figure.suptitle("The rate was chosen in peace, and kept when something changed", fontsize=14)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)

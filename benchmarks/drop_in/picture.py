"""Loss over rate, a panel for each shape."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.drop_in.report import losses
from benchmarks.drop_in.runs import ADAMW, OURS, RATES, Run
from benchmarks.shared import style

COLOURS = {ADAMW: style.ADAMW, OURS: style.METRIC}
MARKERS = {ADAMW: "s--", OURS: "o-"}


@style.styled()
def draw(path: Path, found: Mapping[str, Mapping[str, Sequence[Run]]]) -> None:
    """Draw both losses over the rate for each shape; the names stand at the first panel's curves."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(6.5, 2 * rows + 1))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axis, (label, by_name) in zip(grid.flat, found.items(), strict=False):
        top = max(np.max(losses(runs)[:4]) for runs in by_name.values())
        low = min(np.min(losses(runs)) for runs in by_name.values())
        for name, runs in by_name.items():
            axis.plot(RATES, losses(runs), MARKERS[name], markersize=4, color=COLOURS[name])
        best = int(np.argmin(losses(by_name[ADAMW])))
        axis.axvline(RATES[best], color="0.75", linewidth=1, zorder=0)
        axis.set_title(label)
        axis.set_xscale("log", base=2)
        axis.set_xticks(RATES[::2], [f"{rate:g}" for rate in RATES[::2]])
        axis.set_ylim(low - 0.05 * (top - low), top + 0.15 * (top - low))
    for name, height in ((ADAMW, 0.97), (OURS, 0.83)):
        first = grid.flat[0]
        words = name.removeprefix("optax.").removeprefix("ro.").replace("_", "_\n")
        first.text(
            0.9,
            height,
            words,
            transform=first.transAxes,
            color=COLOURS[name],
            fontsize=9,
            ha="right",
            va="top",
        )
    figure.supylabel("validation loss (nats per byte)", fontsize=10)
    figure.supxlabel("learning rate; grey line: AdamW's best", fontsize=10)
    figure.suptitle("At AdamW's best rate, no worse, at every size")
    figure.savefig(path)

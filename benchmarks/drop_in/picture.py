"""Loss over rate, a panel for each shape."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.drop_in.report import losses
from benchmarks.drop_in.runs import ADAMW, OURS, RATES, Run

COLOURS = {ADAMW: "#0072b2", OURS: "#d55e00"}


def draw(path: Path, found: Mapping[str, Mapping[str, Sequence[Run]]]) -> None:
    """Draw both losses over the rate for each shape; the names stand at the first panel's curves."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False, sharex=True
    )
    for axis, (label, by_name) in zip(grid.flat, found.items(), strict=False):
        top = max(np.max(losses(runs)[:4]) for runs in by_name.values())
        low = min(np.min(losses(runs)) for runs in by_name.values())
        for name, runs in by_name.items():
            axis.plot(RATES, losses(runs), "o-", markersize=4, color=COLOURS[name])
        best = int(np.argmin(losses(by_name[ADAMW])))
        axis.axvline(RATES[best], color="#bbbbbb", linewidth=1, zorder=0)
        axis.set_title(label, fontsize=11)
        axis.set_xscale("log", base=2)
        axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES], rotation=45, fontsize=9)
        axis.set_ylim(low - 0.05 * (top - low), top + 0.15 * (top - low))
        axis.spines[["top", "right"]].set_visible(False)
    for name, height in ((ADAMW, 0.9), (OURS, 0.78)):
        first = grid.flat[0]
        first.text(0.9, height, name, transform=first.transAxes, color=COLOURS[name], fontsize=9, ha="right")
    figure.supylabel("validation loss, nats per byte", fontsize=10)
    figure.supxlabel("learning rate (grey line: AdamW's best)", fontsize=10)
    figure.suptitle("At AdamW's best rate, no worse, at every size", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)

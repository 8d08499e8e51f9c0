"""README's picture: one valley, four optimisers, and how many steps each needs."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figure1.picture import LABELS, STYLES, level_lines, window
from benchmarks.figure1.recorded import recorded_paths
from benchmarks.figure1.surfaces import paper_surfaces
from benchmarks.shared.style import LANDMARK, styled

NAME = "readme.png"
SURFACE = "axis-aligned"


def paths(record: Path) -> dict[str, np.ndarray]:
    """Return the recorded best path of each optimiser, ``f[steps + 1, 2]``, run again from the record."""
    found = recorded_paths(json.loads(record.read_text()), SURFACE, paper_surfaces()[SURFACE], LABELS)
    return {LABELS[key]: path for key, path in found.items()}


@styled()
def draw(record: Path, file: Path) -> None:
    """Write the picture: a panel for each optimiser, from the slowest to the fastest."""
    surface = paper_surfaces()[SURFACE]
    first, second, losses = window(surface)
    start, minimum = np.asarray(surface.start), np.asarray(surface.minimum)
    found = paths(record)
    figure = Figure(figsize=(6.5, 2.6))
    panels = figure.subplots(1, len(LABELS), sharey=True)
    for axis, (key, words) in zip(panels, LABELS.items(), strict=True):
        path, ours, colour = found[words], words == "metric", STYLES[key]["color"]
        width, size = (2.6, 5) if ours else (1, 2.5)
        axis.contour(first, second, losses, levels=level_lines(surface), colors="0.75")
        axis.plot(*path.T, color=colour, linewidth=width, marker="o", markersize=size)
        axis.plot(*start, "D", markersize=6, **LANDMARK)
        axis.plot(*minimum, "*", markersize=12, **LANDMARK)
        weight = "bold" if ours else "normal"
        title = f"{words}\n{len(path) - 1} steps"
        axis.set_title(title, color=colour, fontsize=12, fontweight=weight, loc="center")
        axis.set(xlim=(0.5, 3.6), ylim=(-3.5, -0.5), xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="0.75")
    panels[0].text(start[0] + 0.25, start[1] + 0.1, "start", va="center")
    panels[-1].text(minimum[0] + 0.5, minimum[1] - 0.45, "minimum", ha="right", va="center")
    figure.suptitle("A steep valley: the metric goes straight down", fontsize=13)
    figure.savefig(file)

"""README's picture: one valley, four optimisers, and how many steps each needs."""

import json
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.figure1.methods import METHODS
from benchmarks.figure1.paths import follow
from benchmarks.figure1.picture import level_lines, window
from benchmarks.figure1.surfaces import paper_surfaces

NAME = "readme.png"
SURFACE = "axis-aligned"
# Name and role in the record, the words of the picture, the colour: all dark on white.
SHOWN = (
    ("SGD", None, "SGD", "#b36b00"),
    ("momentum", None, "momentum", "#0b4f8a"),
    ("Adam", None, "Adam", "#7b3fb0"),
    ("secant curvature", "metric", "metric", "#000000"),
)


def paths(record: Path) -> dict[str, np.ndarray]:
    """Return the recorded best path of each optimiser, ``f[steps + 1, 2]``, run again from the record."""
    surface = paper_surfaces()[SURFACE]
    recorded = {
        (row["method"], row["role"]): row["best"]
        for row in json.loads(record.read_text())["rows"]
        if row["surface"] == SURFACE
    }
    methods = {(method.name, method.role): method for method in METHODS}
    found = {}
    with jax.enable_x64(True):
        for name, role, words, _ in SHOWN:
            best, method = recorded[name, role], methods[name, role]
            transformation = method.build(best["rate"], best.get(method.second), jax.random.key(0))
            found[words] = np.asarray(follow(transformation, surface, int(best["steps"]))[0])
    return found


def draw(record: Path, file: Path) -> None:
    """Write the picture: a panel for each optimiser, from the slowest to the fastest."""
    surface = paper_surfaces()[SURFACE]
    first, second, losses = window(surface)
    start, minimum = np.asarray(surface.start), np.asarray(surface.minimum)
    found = paths(record)
    figure = Figure(figsize=(8, 3), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    landmark = {"color": "white", "markeredgecolor": "black", "zorder": 5}
    for axis, (_, _, words, colour) in zip(panels, SHOWN, strict=True):
        path, ours = found[words], words == "metric"
        width, size = (3, 6) if ours else (1.1, 2.5)
        axis.contour(first, second, losses, levels=level_lines(surface), colors="0.75", linewidths=0.7)
        axis.plot(*path.T, color=colour, linewidth=width, marker="o", markersize=size)
        axis.plot(*start, "D", markersize=7, **landmark)
        axis.plot(*minimum, "*", markersize=13, **landmark)
        weight = "bold" if ours else "normal"
        axis.set_title(f"{words}\n{len(path) - 1} steps", color=colour, fontsize=14, fontweight=weight)
        axis.set(xlim=(0.5, 3.6), ylim=(-3.5, -0.5), xticks=[], yticks=[])
        axis.spines[:].set_color("0.75")
    panels[0].text(start[0] + 0.2, start[1] + 0.12, "start", fontsize=11, va="center")
    panels[-1].text(minimum[0] + 0.5, minimum[1] - 0.4, "minimum", fontsize=11, ha="right", va="center")
    figure.suptitle("A steep valley: the metric goes straight down", fontsize=15, fontweight="bold")
    figure.savefig(file, dpi=150)

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
# Name and role in the record, the words of the picture, the colour: those of the figure, all dark on white.
SHOWN = (
    ("SGD", None, "SGD", "#b36b00"),
    ("momentum", None, "momentum", "#0b4f8a"),
    ("Adam", None, "Adam", "#7b3fb0"),
    ("secant curvature", "metric", "metric", "#000000"),
)


def paths(record: Path) -> dict[str, np.ndarray]:
    """Return the recorded best path of each optimiser, ``f[steps + 1, 2]``, run again from the record."""
    surface = paper_surfaces()[SURFACE]
    found = {}
    rows = json.loads(record.read_text())["rows"]
    with jax.enable_x64(True):
        for name, role, words, _ in SHOWN:
            (best,) = (
                row["best"] for row in rows if (row["surface"], row["method"], row["role"]) == (SURFACE, name, role)
            )
            (method,) = (method for method in METHODS if (method.name, method.role) == (name, role))
            transformation = method.build(best["rate"], best.get(method.second), jax.random.key(0))
            found[words] = np.asarray(follow(transformation, surface, int(best["steps"]))[0])
    return found


def draw(record: Path, file: Path) -> None:
    """Write the picture: a panel for each optimiser, from the slowest to the fastest."""
    surface = paper_surfaces()[SURFACE]
    first, second, losses = window(surface)
    found = paths(record)
    figure = Figure(figsize=(8, 3), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axis, (_, _, words, colour) in zip(panels, SHOWN, strict=True):
        path = found[words]
        axis.contour(first, second, losses, levels=level_lines(surface), colors="0.75", linewidths=0.7)
        ours = words == "metric"
        axis.plot(*path.T, color=colour, linewidth=3 if ours else 1.1, marker="o", markersize=6 if ours else 2.5)
        axis.plot(*surface.start, "D", color="white", markeredgecolor="black", markersize=7, zorder=5)
        axis.plot(*surface.minimum, "*", color="white", markeredgecolor="black", markersize=13, zorder=5)
        weight = "bold" if ours else "normal"
        axis.set_title(f"{words}\n{len(path) - 1} steps", color=colour, fontsize=14, fontweight=weight)
        axis.set(xlim=(0.5, 3.6), ylim=(-3.5, -0.5), xticks=[], yticks=[])
        axis.spines[:].set_color("0.75")
    note = {"fontsize": 11, "ha": "left", "va": "center"}
    panels[0].text(*np.asarray(surface.start) + (0.2, 0.12), "start", **note)
    panels[-1].text(*np.asarray(surface.minimum) + (0.5, -0.4), "minimum", **note | {"ha": "right"})
    figure.suptitle("A steep valley: the metric goes straight down", fontsize=15, fontweight="bold")
    figure.savefig(file, dpi=150)

"""The paper's picture: paths down a valley in three dimensions, and from above on all three surfaces."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figure1.near_minimum import FLOW_LABELS, FLOW_STYLES, flow_lines
from benchmarks.figure1.surfaces import Surface
from benchmarks.shared.style import ADAM, ADAMW, LANDMARK, METRIC, SGD, styled

Key = tuple[str, str | None]
Paths = dict[Key, np.ndarray]

# Few methods, by name and role, and how they are drawn: line and marker tell them apart without colour.
LABELS: dict[Key, str] = {
    ("SGD", None): "SGD",
    ("momentum", None): "momentum",
    ("Adam", None): "Adam",
    ("secant curvature", "metric"): "metric",
}
STYLES: dict[Key, dict[str, Any]] = {
    ("SGD", None): {"color": SGD, "linestyle": "-", "marker": ".", "linewidth": 0.9, "markersize": 3},
    ("momentum", None): {"color": ADAMW, "linestyle": "--", "marker": "s", "linewidth": 1.2, "markersize": 3},
    ("Adam", None): {"color": ADAM, "linestyle": ":", "marker": "^", "linewidth": 1.7, "markersize": 4.5},
    ("secant curvature", "metric"): {"color": METRIC, "marker": "o", "linewidth": 2.2, "markersize": 5},
}
# A surface in a reader's words.
WORDS = {"axis-aligned": "along the axes", "turned": "turned", "non-quadratic": "not quadratic"}
POINTS_PER_STEP = 20
FLOW_ALPHA = 10.0


def window(surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, weights and losses ``f[points, points]`` that show start, valley and the larger swings."""
    (x, y), (half_width, half_height) = np.asarray(surface.minimum), (2.6, 1.7)
    first, second = np.meshgrid(
        np.linspace(x - half_width, x + half_width, 161), np.linspace(y - half_height, y + half_height, 161)
    )
    return first, second, np.asarray(surface(np.stack([first, second], axis=-1)))


def level_lines(surface: Surface) -> np.ndarray:
    """Losses, two a decade, up from a thousandth of the initial loss."""
    return float(surface(surface.start)) * 10.0 ** np.arange(-3, 1.1, 0.5)


def on_surface(path: np.ndarray) -> np.ndarray:
    """Fill every step with points in between, so that drawn at their losses they follow the surface."""
    steps = np.arange(len(path))
    fine = np.linspace(0, len(path) - 1, POINTS_PER_STEP * (len(path) - 1) + 1)
    return np.stack([np.interp(fine, steps, weights) for weights in path.T], axis=1)


def draw_valley(axes: Any, surface: Surface, paths: Paths) -> None:
    """Draw the surface with the paths on it, as the paper does; ``axes`` are three-dimensional."""
    first, second, losses = window(surface)
    top = float(losses.max())
    axes.plot_surface(first, second, losses, cmap="Greys", vmin=-top / 3, vmax=2 * top, alpha=0.6, zorder=1)
    axes.contour(first, second, losses, levels=level_lines(surface), colors="0.6", linewidths=0.6, zorder=2)
    for order, (key, path) in enumerate(paths.items()):
        dense = on_surface(path)
        axes.plot(
            *dense.T, np.asarray(surface(dense)), zorder=5 + order, markevery=POINTS_PER_STEP, **STYLES[key]
        )
    for name, point, marker, shift in (
        ("start", surface.start, "D", 1),
        ("minimum", surface.minimum, "*", -2.6),
    ):
        x, y, z = float(point[0]), float(point[1]), float(surface(point))
        axes.plot([x], [y], [z], marker=marker, markersize=10, **LANDMARK)
        axes.text(x, y, z + shift * top / 15, name, zorder=21, ha="center")
    axes.set(xlabel="weight 1", ylabel="weight 2", zlabel="loss")
    axes.set(xticks=range(1, 6), yticks=(-3, -2, -1), zticks=(0, 30, 60))
    axes.view_init(elev=42, azim=-72)
    axes.set_box_aspect((1.5, 1.1, 0.8), zoom=1.0)


def draw_map(axes: Axes, surface: Surface, paths: Paths, flows: dict[str, np.ndarray]) -> None:
    """Draw flows and paths over level lines, both weights on one scale so that straight looks straight."""
    first, second, losses = window(surface)
    axes.contour(first, second, losses, levels=level_lines(surface), colors="0.8", linewidths=0.7)
    for name, line in flows.items():
        axes.plot(*line.T, zorder=4, **FLOW_STYLES[name])
    for order, (key, path) in enumerate(paths.items()):
        axes.plot(*path.T, zorder=5 + order, **STYLES[key])
    axes.plot(*surface.start, marker="D", markersize=6, **LANDMARK)
    axes.plot(*surface.minimum, marker="*", markersize=9, **LANDMARK)
    axes.set(aspect="equal", xlim=(first.min(), first.max()), ylim=(second.min(), second.max()))
    axes.set_xlabel("weight 1")


@styled()
def draw(file: Path, surfaces: dict[str, Surface], paths: dict[str, Paths]) -> None:
    """Write the best paths of the methods in ``LABELS``, by the name of the surface, as a PNG."""
    figure = Figure(figsize=(6.5, 6.8))
    grid = figure.add_gridspec(2, len(surfaces), height_ratios=(2.3, 1))
    for index, (name, surface) in enumerate(surfaces.items()):
        if index == 0:
            valley = figure.add_subplot(grid[0, :], projection="3d", computed_zorder=False)
            draw_valley(valley, surface, paths[name])
        axes = figure.add_subplot(grid[1, index])
        flows = flow_lines(surface, FLOW_ALPHA)
        draw_map(axes, surface, paths[name], {key: np.asarray(line) for key, line in flows.items()})
        axes.set_title(WORDS[name])
        axes.tick_params(labelleft=index == 0)
        for line, (key, path) in enumerate(paths[name].items()):
            axes.text(
                0,
                -0.62 - 0.2 * line,
                f"{LABELS[key]}: {len(path) - 1} steps",
                color=STYLES[key]["color"],
                transform=axes.transAxes,
            )
    figure.axes[1].set_ylabel("weight 2")
    handles = [Line2D([], [], label=label, **FLOW_STYLES[key]) for key, label in FLOW_LABELS.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles))
    figure.suptitle("A valley along the axes: the metric goes straight down")
    figure.savefig(file)

"""The paper's picture: paths down a valley in three dimensions, and from above on all three surfaces."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figure1.methods import Method
from benchmarks.figure1.near_minimum import FLOW_LABELS, FLOW_STYLES, flow_lines
from benchmarks.figure1.rows import Row
from benchmarks.figure1.search import Runner
from benchmarks.figure1.surfaces import Surface

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
    ("SGD", None): {"color": "#e69f00", "linestyle": "-", "marker": ".", "linewidth": 0.9, "markersize": 3},
    ("momentum", None): {"color": "#0b4f8a", "linestyle": "--", "marker": "s", "markersize": 3.5},
    ("Adam", None): {"color": "#9355c8", "linestyle": ":", "marker": "^", "linewidth": 1.7, "markersize": 5},
    ("secant curvature", "metric"): {"color": "black", "marker": "o", "linewidth": 2.2, "markersize": 5.5},
}
POINTS_PER_STEP = 20
FLOW_ALPHA = 10.0
LANDMARK = {"color": "white", "markeredgecolor": "black", "markersize": 10, "zorder": 20}


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
        ("minimum", surface.minimum, "*", -2),
    ):
        x, y, z = float(point[0]), float(point[1]), float(surface(point))
        axes.plot([x], [y], [z], marker=marker, **LANDMARK)
        axes.text(x, y, z + shift * top / 15, name, fontsize=12, zorder=21, ha="center")
    axes.set(xlabel="weight 1", ylabel="weight 2", zlabel="loss")
    axes.view_init(elev=42, azim=-72)
    axes.set_box_aspect((1.5, 1.1, 0.8))


def draw_map(axes: Axes, surface: Surface, paths: Paths, flows: dict[str, np.ndarray]) -> None:
    """Draw flows and paths over level lines, both weights on one scale so that straight looks straight."""
    first, second, losses = window(surface)
    axes.contour(first, second, losses, levels=level_lines(surface), colors="0.8", linewidths=0.7)
    for name, line in flows.items():
        axes.plot(*line.T, zorder=4, **FLOW_STYLES[name])
    for order, (key, path) in enumerate(paths.items()):
        axes.plot(*path.T, zorder=5 + order, **STYLES[key])
    axes.plot(*surface.start, marker="D", **LANDMARK)
    axes.plot(*surface.minimum, marker="*", **LANDMARK)
    axes.set(aspect="equal", xlim=(first.min(), first.max()), ylim=(second.min(), second.max()))
    axes.set_ylabel("weight 2")


def draw(file: Path, surfaces: dict[str, Surface], rows: list[Row], runners: dict[Method, Runner]) -> None:
    """Write the best paths of the methods in ``LABELS`` as a PNG."""
    figure = Figure(figsize=(14, 10), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.3, 1))
    for index, (name, surface) in enumerate(surfaces.items()):
        best = {(row.method.name, row.method.role): row for row in rows if row.surface == name and row.best}
        paths = {
            key: runners[best[key].method].path(best[key].best.point, surface)
            for key in LABELS
            if key in best
        }
        if index == 0:
            draw_valley(
                figure.add_subplot(grid[:, 0], projection="3d", computed_zorder=False), surface, paths
            )
        axes = figure.add_subplot(grid[index, 1])
        flows = flow_lines(surface, FLOW_ALPHA)
        draw_map(axes, surface, paths, {key: np.asarray(line) for key, line in flows.items()})
        steps = ", ".join(f"{LABELS[key]} {len(path) - 1}" for key, path in paths.items())
        axes.set_title(f"{name}. Steps: {steps}", fontsize=10.5)
    axes.set_xlabel("weight 1")
    handles = [Line2D([], [], label=label, **STYLES[key]) for key, label in LABELS.items()]
    handles += [Line2D([], [], label=label, **FLOW_STYLES[key]) for key, label in FLOW_LABELS.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=12, frameon=False)
    figure.suptitle(
        "From one start to the first arrival at 1e-8 of its loss, "
        "each at its best constant rate and beta or alpha.\n"
        "The metric: E = 1 + alpha * (secant curvature), no momentum, its first step a probe. "
        f"Eq. 2's flow: E = 1 + {FLOW_ALPHA:g} |H_ii(w)|.",
        fontsize=12,
    )
    figure.savefig(file, dpi=110)

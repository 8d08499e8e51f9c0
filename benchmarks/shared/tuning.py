"""The same number of trials for every method, whatever it has to be tuned.

A method declares an axis per hyper-parameter: a centre and a factor. The first trials are a grid round the
centre, of as many points for one axis as for three; the others are the neighbours of the best point so far,
beyond the grid where the best is on its edge.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Point = Mapping[str, float]  # a value of each hyper-parameter
Steps = tuple[float, ...]  # a point as steps from the centre along each axis

ROUND = 8  # trials in the first grid, and in every round after it
# How many values each axis has in the first grid, by the number of axes; their product is ROUND.
SHAPES = {0: (), 1: (8,), 2: (4, 2), 3: (2, 2, 2)}


class Axis(NamedTuple):
    """A hyper-parameter on a logarithmic scale.

    Attributes:
      centre: where the grid is.
      factor: between neighbouring values.
    """

    centre: float
    factor: float = 2.0


def point(axes: dict[str, Axis], steps: Steps) -> Point:
    """Return the values at some steps from the centre; four digits, so that equal points are equal.

    Examples:
      >>> point({"rate": Axis(0.1), "pull": Axis(1e-3, 10.0)}, (1, -0.5))
      {'rate': 0.2, 'pull': 0.0003162}
    """
    return {
        name: float(f"{axis.centre * axis.factor**step:.4g}")
        for (name, axis), step in zip(axes.items(), steps, strict=True)
    }


def first_grid(axes: dict[str, Axis]) -> list[Steps]:
    """Return the steps of the first :data:`ROUND` trials; one where there is nothing to tune."""
    spans = [range(-(n // 2), n - n // 2) for n in SHAPES[len(axes)]]
    return [tuple(map(float, steps)) for steps in itertools.product(*spans)]


def neighbours(best: Steps, tried: Sequence[Steps], count: int) -> list[Steps]:
    """Return the ``count`` next trials: one step along each axis, then half a step, then further away.

    A step beyond what was tried comes before one inside of it: a best value on the edge widens the grid.
    """
    spans = [(min(values), max(values)) for values in zip(*tried, strict=True)]
    candidates: list[Steps] = []
    for size in (1.0, 0.5, 2.0, 1.5, 3.0, 0.25, 0.75, 4.0, 5.0, 6.0, 1.25, 1.75, 7.0, 8.0):
        ring = [
            (*best[:axis], best[axis] + sign * size, *best[axis + 1 :])
            for axis in range(len(best))
            for sign in (1, -1)
        ]

        def inside(steps: Steps) -> bool:
            return all(low <= step <= high for step, (low, high) in zip(steps, spans, strict=True))

        candidates += sorted((steps for steps in ring if steps not in tried), key=inside)
    return candidates[:count]


def search(
    axes: dict[str, Axis], rounds: int, run: Callable[[list[Point]], list[float]]
) -> tuple[Point, dict[Steps, float]]:
    """Return the best point and the loss of every trial, by its steps.

    Args:
      axes: what is tuned; without any there is one trial.
      rounds: of :data:`ROUND` trials each.
      run: from points to what is to be made small, infinite where a run diverged.
    """

    def lost(points: list[Steps]) -> dict[Steps, float]:
        values = run([point(axes, steps) for steps in points])
        return {s: v if math.isfinite(v) else math.inf for s, v in zip(points, values, strict=True)}

    tried = lost(first_grid(axes))
    for _ in range(rounds - 1 if axes else 0):
        best = min(tried, key=tried.__getitem__)
        tried |= lost(neighbours(best, list(tried), ROUND))
    return point(axes, min(tried, key=tried.__getitem__)), tried

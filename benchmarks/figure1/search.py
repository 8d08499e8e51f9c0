"""The grid search: every method on the same rates, and on equally many values of its second dimension."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.figure1.methods import Method
from benchmarks.figure1.paths import PathStatistics, follow, path_statistics, steps_to_target
from benchmarks.figure1.surfaces import Surface

WIDENINGS = 4  # decades a side of the grid may grow before a best value on its edge is reported as such
SEEDS = (0, 1, 2)  # of the runs the grid is searched with; fresh starts come with other seeds

Point = tuple[int, int]
Trial = tuple[Point, Surface, int]  # and the seed
Trials = dict[Point, PathStatistics]
Results = dict[tuple[str, Method], Trials]


class Grid(NamedTuple):
    """A log grid of rates times a log grid of the second dimension, by whole numbers ``(i, k)``.

    Rates are ``10**(i / 12)``. The second dimension is ``alpha = 10**(k / 4)``, or ``beta`` with the odds
    ``beta / (1 - beta) = 10**(k / 12)``: the same ``k`` for all, so that all get equally many trials.

    Attributes:
      rates: first and last ``i``.
      seconds: first and last ``k``.
      rate_stride: distance of neighbouring ``i``.
      second_stride: distance of neighbouring ``k``.
      steps: updates in each run; a run that has not arrived by then is a miss.
    """

    rates: tuple[int, int] = (-48, 36)
    seconds: tuple[int, int] = (-12, 12)
    rate_stride: int = 1
    second_stride: int = 1
    steps: int = 1000

    def rate_indices(self) -> range:
        """All ``i``."""
        return range(self.rates[0], self.rates[1] + 1, self.rate_stride)

    def second_indices(self) -> range:
        """All ``k``."""
        return range(self.seconds[0], self.seconds[1] + 1, self.second_stride)

    def points(self, method: Method) -> set[Point]:
        """All pairs ``(i, k)`` of a method; ``k`` is 0 where there is no second dimension."""
        seconds = self.second_indices() if method.second else [0]
        return {(i, k) for i in self.rate_indices() for k in seconds}

    def widened(self, edges: Iterable[str]) -> "Grid":
        """Return the grid with the named edges a decade (of rates, of alpha) further out."""
        edges = set(edges)
        return self._replace(
            rates=(self.rates[0] - 12 * ("low rate" in edges), self.rates[1] + 12 * ("high rate" in edges)),
            seconds=(
                self.seconds[0] - 4 * ("low second" in edges),
                self.seconds[1] + 4 * ("high second" in edges),
            ),
        )


FULL = Grid()
QUICK = Grid(rate_stride=3, second_stride=4, steps=400)


def rate_value(i: int) -> float:
    """Return the learning rate of index ``i``."""
    return 10.0 ** (i / 12)


def second_value(method: Method, k: int) -> float | None:
    """Return the alpha or beta of index ``k``."""
    if method.second is None:
        return None
    return 10.0 ** (k / 4) if method.second == "alpha" else 1 / (1 + 10.0 ** (-k / 12))


# Compiled once for all methods that are run in chunks of the same size.
measure_paths = jax.jit(jax.vmap(path_statistics))


class Runner:
    """Runs one method, many trials at once, each with its own point, surface and seed."""

    def __init__(self, method: Method, grid: Grid):
        self.method = method
        self.chunk = len(grid.points(method))

        def path(rate: jax.Array, second: jax.Array, surface: Surface, seed: jax.Array):
            return follow(method.build(rate, second, jax.random.key(seed)), surface, grid.steps)

        # Surfaces are numbers, not code, and chunks have one size: a method compiles once. With one seed for
        # all trials, random numbers are drawn once for all of them, which is far quicker than for each.
        self._with_one_seed = jax.jit(jax.vmap(path, in_axes=(0, 0, 0, None)))
        self._with_own_seeds = jax.jit(jax.vmap(path))

    def run(self, trials: Sequence[Trial]) -> tuple[Surface, jax.Array, jax.Array]:
        """Run at most one chunk of trials; return their surfaces, paths and losses, padded to the chunk."""
        padded = [*trials, *trials[-1:] * (self.chunk - len(trials))]
        rates = jnp.array([rate_value(i) for (i, _), _, _ in padded])
        seconds = jnp.array([second_value(self.method, k) or 0.0 for (_, k), _, _ in padded])
        surfaces = jax.tree.map(lambda *numbers: jnp.array(numbers), *(surface for _, surface, _ in padded))
        seeds = [seed for _, _, seed in padded]
        if len(set(seeds)) == 1:
            return surfaces, *self._with_one_seed(rates, seconds, surfaces, seeds[0])
        return surfaces, *self._with_own_seeds(rates, seconds, surfaces, jnp.array(seeds))

    def measure(self, trials: Sequence[Trial]) -> list[PathStatistics]:
        """Return the statistics of each trial."""
        measured: list[PathStatistics] = []
        for first in range(0, len(trials), self.chunk):
            part = trials[first : first + self.chunk]
            columns = [np.asarray(column) for column in measure_paths(*self.run(part))]
            measured += [PathStatistics(*row) for row in zip(*columns, strict=True)][: len(part)]
        return measured

    def search(self, surface: Surface, points: Iterable[Point]) -> Trials:
        """Measure every point on a surface: where chance plays a part, by its run with the median steps."""
        seeds = SEEDS if self.method.random else SEEDS[:1]
        ordered = sorted(points)
        by_seed = [self.measure([(point, surface, seed) for point in ordered]) for seed in seeds]
        runs = zip(*by_seed, strict=True)
        medians = [sorted(run, key=lambda statistics: statistics.steps)[len(seeds) // 2] for run in runs]
        return dict(zip(ordered, medians, strict=True))

    def path(self, point: Point, surface: Surface) -> np.ndarray:
        """Return the path ``f[steps + 1, 2]`` of a point up to its arrival (or its end)."""
        _, paths, losses = self.run([(point, surface, SEEDS[0])])
        return np.asarray(paths)[0, : int(min(steps_to_target(losses[0]), losses.shape[1] - 1)) + 1]


def best_point(trials: Trials) -> Point | None:
    """Return the point with the fewest steps, of equals the straightest; None if no run arrived."""
    arrived = [point for point, statistics in trials.items() if np.isfinite(statistics.steps)]
    if not arrived:
        return None
    return min(arrived, key=lambda point: (trials[point].steps, -trials[point].straightness, point))


def edges(trials: Trials, grid: Grid, has_second: bool) -> set[str]:
    """Name the edges of the grid that alone have the fewest steps: beyond them there may be fewer still.

    Where no run arrived, the lowest loss takes the place of the fewest steps.
    """
    nothing = (np.inf, np.inf)

    def score(statistics: PathStatistics) -> tuple[float, float]:
        missed = not np.isfinite(statistics.steps)
        return float(statistics.steps), float(statistics.lowest) if missed else 0.0

    def fewest(points: Iterable[Point]) -> tuple[float, float]:
        return min((score(trials[point]) for point in points), default=nothing)

    def alone(axis: int, index: int) -> bool:
        on_edge = fewest(point for point in trials if point[axis] == index)
        return on_edge < fewest(point for point in trials if point[axis] != index)

    sides = [("low rate", 0, grid.rates[0]), ("high rate", 0, grid.rates[1])]
    if has_second:
        sides += [("low second", 1, grid.seconds[0]), ("high second", 1, grid.seconds[1])]
    return {name for name, axis, index in sides if alone(axis, index)}


def search(
    methods: Sequence[Method],
    surfaces: dict[str, Surface],
    grid: Grid,
    progress: Callable[[float, Method], None] = lambda fraction, method: None,
) -> tuple[Results, Grid, dict[Method, Runner]]:
    """Run every method on every surface, and again on a wider grid while one is best on the edge.

    Returns the trials by surface name and method, the grid they were all run on in the end, and the runners.
    """
    runners = {method: Runner(method, grid) for method in methods}
    results: Results = {(name, method): {} for name in surfaces for method in methods}
    left = dict.fromkeys(("low rate", "high rate", "low second", "high second"), WIDENINGS)
    while True:
        for index, (method, runner) in enumerate(runners.items()):
            progress(index / len(runners), method)
            for name, surface in surfaces.items():
                trials = results[name, method]
                trials |= runner.search(surface, grid.points(method) - trials.keys())
        found: set[str] = set()
        for (_, method), trials in results.items():
            found |= edges(trials, grid, has_second=method.second is not None)
        widen = {edge for edge in found if left[edge] > 0}
        if not widen:
            return results, grid, runners
        for edge in widen:
            left[edge] -= 1
        grid = grid.widened(widen)

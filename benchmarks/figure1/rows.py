"""One row of the table per method and surface: its best run, and how much of that was luck."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.figure1.methods import Method
from benchmarks.figure1.paths import PathStatistics
from benchmarks.figure1.search import (
    SEEDS,
    Grid,
    Point,
    Results,
    Runner,
    Trials,
    best_point,
    edges,
    rate_value,
    second_value,
)
from benchmarks.figure1.surfaces import Surface

# What the paper says of its figure, in numbers: a straight path without swings across the valley.
STRAIGHT = 0.95
SWINGS = 1

FRESH_STARTS = 21  # so that median and quartiles are runs, and none is between a number and infinity


class Configuration(NamedTuple):
    """A tuned method and what its path looks like.

    Attributes:
      point: of the grid, by whole numbers.
      rate, second: the values there.
      statistics: of the path.
    """

    point: Point
    rate: float
    second: float | None
    statistics: PathStatistics


class Row(NamedTuple):
    """A method on a surface.

    Attributes:
      surface: name of the surface.
      method: the method.
      trials: how many configurations were run.
      best: the one with the fewest steps, of equals the straightest; None if none arrived.
      ties: how many configurations needed as few steps.
      settled: fewest steps of any configuration to arrive and stay until the end of the run.
      straight: the one with the fewest steps among those that stay and draw the paper's figure, or None.
      lowest: lowest loss of any configuration, over the initial loss.
      edges: edges of the grid that alone have the fewest steps.
      fresh: sorted steps of the best configuration from other starts, with other seeds.
    """

    surface: str
    method: Method
    trials: int
    best: Configuration | None
    ties: int
    settled: float
    straight: Configuration | None
    lowest: float
    edges: tuple[str, ...]
    fresh: tuple[float, ...]


def like_figure(statistics: PathStatistics) -> bool:
    """Whether a path looks as in the paper's figure."""
    return bool(statistics.straightness >= STRAIGHT and statistics.sign_changes <= SWINGS)


def configuration(method: Method, trials: Trials) -> Configuration | None:
    """Return the best of these trials."""
    point = best_point(trials)
    if point is None:
        return None
    statistics = PathStatistics(*(float(value) for value in trials[point]))
    return Configuration(point, rate_value(point[0]), second_value(method, point[1]), statistics)


def fresh_surfaces(surface: Surface) -> list[Surface]:
    """Return the surface with other starts: either side, half to one and a half times as far on each axis."""
    random = np.random.default_rng(1)
    factors = random.uniform(0.5, 1.5, (FRESH_STARTS, 2)) * random.choice([-1.0, 1.0], (FRESH_STARTS, 2))
    return [
        surface._replace(offset=(surface.offset[0] * first, surface.offset[1] * second))
        for first, second in factors.tolist()
    ]


def steps_elsewhere(
    method: Method, runner: Runner, surfaces: dict[str, Surface], best: dict[str, Configuration]
) -> dict[str, tuple[float, ...]]:
    """Run the best configuration on each surface from fresh starts; return the sorted steps by surface."""
    reruns = [
        (best[name].point, elsewhere, len(SEEDS) + index if method.random else SEEDS[0])
        for name in best
        for index, elsewhere in enumerate(fresh_surfaces(surfaces[name]))
    ]
    steps = [float(statistics.steps) for statistics in runner.measure(reruns)]
    return {
        name: tuple(sorted(steps[index * FRESH_STARTS : (index + 1) * FRESH_STARTS]))
        for index, name in enumerate(best)
    }


def make_row(name: str, method: Method, trials: Trials, grid: Grid, fresh: tuple[float, ...]) -> Row:
    """Summarise the trials of a method on a surface."""
    best = configuration(method, trials)
    fewest = best.statistics.steps if best else np.nan
    straight = {
        point: statistics
        for point, statistics in trials.items()
        if like_figure(statistics) and statistics.settled == statistics.steps
    }
    return Row(
        surface=name,
        method=method,
        trials=len(trials),
        best=best,
        ties=sum(bool(statistics.steps == fewest) for statistics in trials.values()),
        settled=float(min(statistics.settled for statistics in trials.values())),
        straight=configuration(method, straight),
        lowest=float(np.nanmin([statistics.lowest for statistics in trials.values()])),
        edges=tuple(sorted(edges(trials, grid, has_second=method.second is not None))),
        fresh=fresh,
    )


def make_rows(
    surfaces: dict[str, Surface], results: Results, grid: Grid, runners: dict[Method, Runner]
) -> list[Row]:
    """Summarise all trials, surface by surface."""
    fresh: dict[tuple[str, Method], tuple[float, ...]] = {}
    for method, runner in runners.items():
        best = {name: configuration(method, results[name, method]) for name in surfaces}
        arrived = {name: chosen for name, chosen in best.items() if chosen is not None}
        steps = steps_elsewhere(method, runner, surfaces, arrived)
        fresh |= {(name, method): steps.get(name, ()) for name in surfaces}
    return [
        make_row(name, method, results[name, method], grid, fresh[name, method])
        for name in surfaces
        for method in runners
    ]


def record(row: Row) -> dict[str, Any]:
    """Lay out a row for the record, where infinity, a miss, becomes null."""

    def described(chosen: Configuration | None) -> dict[str, Any] | None:
        if chosen is None:
            return None
        return {
            "rate": chosen.rate,
            row.method.second or "second": chosen.second,
            **chosen.statistics._asdict(),
        }

    return {
        "surface": row.surface,
        "method": row.method.name,
        "role": row.method.role,
        "trials": row.trials,
        "best": described(row.best),
        "ties": row.ties,
        "fewest_steps_to_settle": row.settled,
        "best_like_figure": described(row.straight),
        "lowest_loss": row.lowest,
        "on_edge": row.edges,
        "steps_from_fresh_starts": row.fresh,
    }

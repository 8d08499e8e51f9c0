"""Tuning each method with as many trials, and running what was chosen on fresh seeds; all of it kept."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.continual.streams import SETTINGS, Stream
from benchmarks.shared.records import Records
from benchmarks.shared.tuning import Point, search

SUITE = "continual"
Advance = Callable[[str, str, float], None]


class Laboratory:
    """A stream with the records of its runs."""

    def __init__(self, name: str, stream: Stream, data: str, records: Records, advance: Advance) -> None:
        """``advance`` is told the method, the phase and the share of a run that has been done."""
        self.name, self.stream, self._data = name, stream, data
        self._records, self._advance = records, advance

    def key(self, method: str, phase: str, point: Point, seeds: range) -> dict[str, Any]:
        """Return all that determines a result."""
        return {
            "suite": SUITE,
            "stream": self.name,
            "data": self._data,
            "method": method,
            "phase": phase,
            "point": point,
            "seeds": [seeds.start, seeds.stop],
            "size": self.stream.size._asdict(),
            "settings": SETTINGS,
        }

    def results(self, method: str, phase: str, points: Sequence[Point], seeds: range) -> list[dict[str, Any]]:
        """Return the result of every point, from the file or by running all that are missing at once."""
        keys = [self.key(method, phase, point, seeds) for point in points]
        missing = [n for n, key in enumerate(keys) if key not in self._records]
        if missing:
            runs = self.stream.run(
                self.stream.methods[method],
                [points[n] for n in missing],
                seeds,
                self.stream.size,
                lambda share: self._advance(method, phase, share),
            )
            for n, scores in zip(missing, runs, strict=True):
                measures = {name: np.asarray(values) for name, values in scores.by_seed.items()}
                if phase == "tuning":
                    result: dict[str, Any] = {self.stream.measure: measures[self.stream.measure]}
                else:
                    result = measures
                if phase == "fresh":
                    result["curve"] = np.asarray(scores.curve)
                self._records.put(keys[n], result)
        return [self._records[key] for key in keys]

    def losses(self, method: str, points: Sequence[Point]) -> list[float]:
        """Return what tuning makes small."""
        results = self.results(method, "tuning", points, self.stream.tuning_seeds)
        return [loss_of(result[self.stream.measure], self.stream.higher) for result in results]

    def choose(self, method: str) -> Point:
        """Return the best point of a method, or that of the one it goes along with."""
        own = self.stream.methods[method]
        if own.point_of is not None:
            return self.choose(own.point_of)
        return search(own.axes, self.stream.rounds, lambda points: self.losses(method, points))[0]

    def work(self, method: str) -> None:
        """Tune a method, run it on the fresh seeds, and sweep one of its axes."""
        point = self.choose(method)
        self.results(method, "fresh", [point], self.stream.seeds)
        if self.stream.sweep is not None and method in self.stream.sweep[2]:
            axis, values, _ = self.stream.sweep
            points = [{**point, axis: value} for value in values(point[axis])]
            self.results(method, "sweep", points, self.stream.seeds)


def loss_of(values: Sequence[float | None], higher: bool) -> float:
    """Return the mean over seeds, with the sign of a loss; infinite where a run diverged."""
    if any(value is None for value in values):
        return np.inf
    return float(np.mean(values)) * (-1 if higher else 1)

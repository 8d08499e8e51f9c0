"""Tuning each method with as many trials, and running what was chosen on fresh seeds; all of it kept."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.continual.images import Images
from benchmarks.continual.job import Job
from benchmarks.continual.streams import Stream
from benchmarks.shared.records import Records
from benchmarks.shared.tuning import Point, point, search

SUITE = "continual"
Advance = Callable[[str, str, float], None]


class Laboratory:
    """A stream with the records of its runs."""

    def __init__(
        self, name: str, stream: Stream, data: str, images: Images, records: Records, advance: Advance
    ) -> None:
        """``data`` is the name of the images; ``advance`` is told method, phase and share of a run done."""
        self.name, self.stream, self._data, self._images = name, stream, data, images
        self._records, self._advance = records, advance

    def key(self, method: str, phase: str, point: Point, seeds: Sequence[int]) -> dict[str, Any]:
        """Return all that determines a result."""
        return {
            "suite": SUITE,
            "stream": self.name,
            "data": self._data,
            "method": method,
            "phase": phase,
            "point": point,
            "seeds": [seeds[0], seeds[-1] + 1],
            "size": self.length(phase),
            "settings": self.stream.settings,
        }

    def length(self, phase: str) -> dict[str, Any]:
        """Return how long a run is: tuning may see fewer tasks."""
        tuning = phase.endswith("tuning")
        return self.stream.tuning_length() if tuning else dict(self.stream.size.length)

    def results(
        self, method: str, phase: str, points: Sequence[Point], seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Return the result of every point, from the file or by running all that are missing at once."""
        keys = [self.key(method, phase, point, seeds) for point in points]
        missing = [n for n, key in enumerate(keys) if key not in self._records]
        if missing:
            job = Job(
                method,
                [points[n] for n in missing],
                seeds,
                self._images,
                lambda share: self._advance(method, phase, share),
            )
            runs = self.stream.run(job, **self.length(phase))
            for n, scores in zip(missing, runs, strict=True):
                result = {name: np.asarray(values) for name, values in scores.by_seed.items()}
                if phase.endswith("tuning"):
                    result = {self.stream.measure: result[self.stream.measure]}
                if phase == "fresh":
                    result["curve"] = np.asarray(scores.curve)
                self._records.put(keys[n], result)
        return [self._records[key] for key in keys]

    def losses(self, method: str, points: Sequence[Point], phase: str = "tuning") -> list[float]:
        """Return what tuning makes small."""
        results = self.results(method, phase, points, self.stream.size.tuning_seeds)
        return [loss_of(result[self.stream.measure], self.stream.higher) for result in results]

    def tried(self, method: str) -> list[tuple[Point, float]]:
        """Return every point of a method's trials and its loss."""
        axes = self.stream.methods[method].axes
        rounds = self.stream.rounds + 2 * (method in self.stream.longer)
        tried = search(axes, rounds, lambda points: self.losses(method, points))[1]
        return [(point(axes, steps), loss) for steps, loss in tried.items()]

    def choose(self, method: str) -> Point:
        """Return the best point of a method, or that of the one it goes along with."""
        followed = self.stream.methods[method].point_of
        return min(self.tried(followed or method), key=lambda pair: pair[1])[0]

    def work(self, method: str) -> None:
        """Tune a method, run it on the fresh seeds, and sweep one of its axes."""
        chosen, sweep = self.choose(method), self.stream.sweep
        self.results(method, "fresh", [chosen], self.stream.size.seeds)
        if sweep is not None and method in sweep.methods:
            points = [{**chosen, sweep.axis: value} for value in sweep.values(chosen[sweep.axis])]
            self.results(method, "sweep", points, self.stream.size.seeds)


def loss_of(values: Sequence[float | None], higher: bool) -> float:
    """Return the mean over seeds, with the sign of a loss; infinite where a run diverged."""
    if any(value is None for value in values):
        return np.inf
    return float(np.mean(values)) * (-1 if higher else 1)

"""One setting for a whole family of streams, and its judgement on a stream that had no say in it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.continual.chains import (
    DORMANT_CHAIN,
    ISOMETRIC_CHAIN,
    ISOMETRIC_SILENT_CHAIN,
    LONG_CHAIN,
    LONG_ISOMETRIC_CHAIN,
    ONE_CHAIN,
    SILENT_CHAIN,
)
from benchmarks.continual.laboratory import Laboratory
from benchmarks.continual.methods import BASE
from benchmarks.continual.streams import STREAMS
from benchmarks.shared.statistics import geometric_mean, half_interval, numbers, standard_error
from benchmarks.shared.tuning import Point

FINALISTS = 6  # points that each stream nominates
FAMILIES = {  # a stream is in one of them: its records do not say whose choice they are
    "digits": ("label_permuted_digits", "noise_shift"),
    "published": ("online_permuted", "online_label_permuted"),
}
RECORDED_ON = dict.fromkeys(FAMILIES["published"], "mnist")
# Ours, plain descent, and the strongest published rules on the base that suits each. Those take part that all
# streams of a family have.
JUDGED = (
    LONG_CHAIN,
    LONG_ISOMETRIC_CHAIN,
    ISOMETRIC_CHAIN,
    ISOMETRIC_SILENT_CHAIN,
    SILENT_CHAIN,
    DORMANT_CHAIN,
    ONE_CHAIN,
    "metric + pull",
    "metric + pull + noise",
    BASE,
    "RMSprop",
    "SGD + continual backprop",
    "RMSprop + continual backprop",
    "RMSprop + L2-Init",
    "RMSprop + shrink and perturb",
    "SGD + SNR",
    "RMSprop + SNR",
    "RMSprop + ReDo",
    "RMSprop + soft resets",
    "RMSprop + spectral",
    "UPGD",
    "AdamO",
)
TOGETHER, APART = "family", "left out"  # phases of the records: with every stream's say, or without its own


def error_of(laboratory: Laboratory, loss: float) -> float:
    """Return a positive loss: the share of errors where it is the accuracy that counts."""
    return 100.0 + loss if laboratory.stream.higher else loss


def name_of(point: Point) -> tuple[tuple[str, float], ...]:
    """Return a point as a key."""
    return tuple(sorted(point.items()))


class Family:
    """Streams that share a method's setting."""

    def __init__(self, laboratories: Mapping[str, Laboratory]) -> None:
        """Take the laboratories of all streams."""
        self._laboratories = laboratories

    def takes_part(self, method: str) -> bool:
        """Return whether all streams have a method."""
        return all(method in laboratory.stream.methods for laboratory in self._laboratories.values())

    def nominated(self, method: str, stream: str) -> list[Point]:
        """Return the best points of a method on one stream."""
        tried = self._laboratories[stream].tried(method)
        return [dict(point) for point, _ in sorted(tried, key=lambda pair: pair[1])[:FINALISTS]]

    def choose(self, method: str, left_out: str | None = None) -> Point:
        """Return the point with the least errors, in the geometric mean over the streams but one.

        Each stream's errors are divided by those of plain descent at its best.
        """
        voters = [name for name in self._laboratories if name != left_out]
        points: list[Point] = []
        for name in voters:
            points += [point for point in self.nominated(method, name) if point not in points]
        shares = []
        for name in voters:
            laboratory = self._laboratories[name]
            base = min(loss for _, loss in laboratory.tried(BASE))
            losses = self._losses(laboratory, method, points)
            shares.append([error_of(laboratory, loss) / error_of(laboratory, base) for loss in losses])
        means = [geometric_mean(of_point) for of_point in zip(*shares, strict=True)]
        return points[int(np.argmin(means))]

    def _losses(self, laboratory: Laboratory, method: str, points: list[Point]) -> list[float]:
        """Return the loss of every point, running those that only other streams tried."""
        known = {name_of(point): loss for point, loss in laboratory.tried(method)}
        missing = [point for point in points if name_of(point) not in known]
        if missing:
            added = laboratory.losses(method, missing, "family tuning")
            known |= {name_of(point): loss for point, loss in zip(missing, added, strict=True)}
        return [known[name_of(point)] for point in points]

    def work(self, method: str) -> None:
        """Run a method on fresh seeds of every stream: as all streams choose, and as the others do."""
        together = self.choose(method)
        for name, laboratory in self._laboratories.items():
            laboratory.results(method, TOGETHER, [together], laboratory.stream.size.seeds)
            laboratory.results(method, APART, [self.choose(method, name)], laboratory.stream.size.seeds)


class Judged(NamedTuple):
    """A method on a stream of the family.

    Attributes:
      method: which.
      stream: which.
      mean: of the compared measure.
      error: standard error of the mean.
      behind: mean paired difference to the best method, above 0 where this one is worse; 0 for the best.
      half: half of the 95% interval of that difference.
      leads: whether the method is first, or not behind by more than one standard error of the difference.
    """

    method: str
    stream: str
    mean: float
    error: float
    behind: float
    half: float
    leads: bool


def judged(
    entries: Iterable[Mapping[str, Any]],
    stream: str,
    phase: str,
    data: str | None = None,
    size: Mapping[str, Any] | None = None,
) -> list[Judged]:
    """Return the methods on a stream, the best first; none where no family has been run.

    Args:
      entries: of ``Records``.
      stream: a name in ``STREAMS``.
      phase: ``TOGETHER`` or ``APART``.
      data: what the streams of images learned, by default what is recorded of the family.
      size: of the runs, as of ``Size.length``; without it all.
    """
    about = STREAMS[stream]
    data = RECORDED_ON.get(stream, "digits") if data is None else data
    found = {
        entry["key"]["method"]: numbers(entry["result"][about.measure], np.nan)
        for entry in entries
        if (entry["key"].get("stream"), entry["key"].get("phase")) == (stream, phase)
        and entry["key"]["data"] == data
        and size in (None, entry["key"].get("size"))
    }
    finite = {name: values for name, values in found.items() if np.isfinite(values).all()}
    if not finite:
        return []
    sign = -1 if about.higher else 1
    order = sorted(finite, key=lambda name: sign * finite[name].mean())
    return [_row(name, stream, finite, order[0], sign) for name in order]


def _row(name: str, stream: str, found: Mapping[str, np.ndarray], best: str, sign: int) -> Judged:
    """Return the row of one method."""
    values = found[name]
    worse = sign * (values - found[best])
    behind = float(worse.mean())
    if name == best:
        return Judged(name, stream, float(values.mean()), standard_error(values), behind, 0.0, True)
    return Judged(
        name,
        stream,
        float(values.mean()),
        standard_error(values),
        behind,
        half_interval(worse),
        behind <= standard_error(worse),
    )

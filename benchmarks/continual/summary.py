"""From records to rows: what each method reached, how far from ours it is, and what the controls keep."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.continual.methods import BASE
from benchmarks.continual.streams import STREAMS
from benchmarks.shared.statistics import half_interval, numbers, standard_error
from benchmarks.shared.tuning import Point


class Row(NamedTuple):
    """A method on the fresh seeds of a stream.

    Attributes:
      stream: which.
      method: which.
      point: the hyper-parameters chosen on the tuning seeds.
      mean: of the compared measure.
      error: standard error of the mean.
      difference: mean difference to ours on the same seeds; above 0 where the method's number is larger.
      low, high: 95% interval of the difference.
      ours_ahead: seeds on which ours is better.
      seeds: how many there are.
      trials: points tried on the tuning seeds.
      gain_kept: of ours' gain over plain SGD, the share that the method has too; None without an SGD row.
      diverged: seeds on which it was not finite at the end.
      others: means of the other measures.
    """

    stream: str
    method: str
    point: Point
    mean: float
    error: float
    difference: float
    low: float
    high: float
    ours_ahead: int
    seeds: int
    trials: int
    gain_kept: float | None
    diverged: int
    others: dict[str, float]


class SweepRow(NamedTuple):
    """A method at one value of the axis that is swept, the other hyper-parameters as chosen.

    Attributes:
      stream: which.
      method: which.
      point: the hyper-parameters.
      means: of all measures, over the seeds on which they are finite.
      diverged: share of the seeds on which the run was not finite or worse than guessing.
    """

    stream: str
    method: str
    point: Point
    means: dict[str, float]
    diverged: float


def _means(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean of every measure over the seeds on which it is finite."""
    found = {name: numbers(values, np.nan) for name, values in result.items() if name != "curve"}
    return {
        name: float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else np.nan for name, v in found.items()
    }


def _of(entries: Iterable[Mapping[str, Any]], stream: str, phase: str, data: str) -> list[Mapping[str, Any]]:
    wanted = {"suite": "continual", "stream": stream, "phase": phase, "data": data}
    return [e for e in entries if all(e["key"].get(name) == value for name, value in wanted.items())]


def _same(one: Any, other: Any) -> bool:
    """Return whether two sizes are written alike: a record has lists where a program has tuples."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def longest(entries: Iterable[Mapping[str, Any]], stream: str, data: str) -> Any:
    """Return the size of the run of ours with the most tasks, and of these with the largest network."""
    fresh = _of(entries, stream, "fresh", data)
    sizes = [e["key"].get("size") for e in fresh if e["key"]["method"] == STREAMS[stream].ours]

    def length(size: Mapping[str, Any] | None) -> tuple[int, list[int]]:
        return (size or {}).get("tasks", 0), list((size or {}).get("hidden", ()))

    return max(sizes, key=length, default=None)


def rows(
    entries: Iterable[Mapping[str, Any]], stream: str, data: str = "digits", size: Any = None
) -> list[Row]:
    """Return a row per method of a stream that has fresh runs, the best first; none without a run of ours.

    Args:
      entries: of ``Records``, or of the lines of its file that have a ``"key"``.
      stream: a name in ``STREAMS``.
      data: what the streams of images learned.
      size: of the runs, as of ``Size.length``; without it the longest that ours has.
    """
    about = STREAMS[stream]
    entries = list(entries)
    size = longest(entries, stream, data) if size is None else size

    def of(phase: str, size: Any) -> list[Mapping[str, Any]]:
        return [e for e in _of(entries, stream, phase, data) if _same(e["key"].get("size"), size)]

    fresh = {e["key"]["method"]: e for e in of("fresh", size)}
    trials = [e["key"]["method"] for e in of("tuning", size and about.tuning_length(size))]
    if about.ours not in fresh:
        return []
    reference = numbers(fresh[about.ours]["result"][about.measure], np.nan)
    base = np.mean(numbers(fresh[BASE]["result"][about.measure], np.nan)) if BASE in fresh else None
    table = []
    for method, entry in fresh.items():
        values = numbers(entry["result"][about.measure], np.nan)
        finite = np.isfinite(values)
        difference = (values - reference)[finite]
        centre = float(difference.mean()) if finite.any() else np.nan
        half = half_interval(difference)
        ahead = (values < reference) if about.higher else (values > reference)
        gain = None
        if base is not None and finite.all():
            gain = float((base - values.mean()) / (base - reference.mean()))
        table.append(
            Row(
                stream=stream,
                method=method,
                point=entry["key"]["point"],
                mean=float(values.mean()) if finite.all() else np.nan,
                error=standard_error(values[finite]),
                difference=centre,
                low=centre - half,
                high=centre + half,
                ours_ahead=int((ahead | ~finite).sum()),
                seeds=len(values),
                trials=trials.count(method),
                gain_kept=gain,
                diverged=int((~finite).sum()),
                others={n: mean for n, mean in _means(entry["result"]).items() if n != about.measure},
            )
        )
    sign = -1 if about.higher else 1
    return sorted(table, key=lambda row: sign * row.mean if np.isfinite(row.mean) else np.inf)


def sweep_rows(entries: Iterable[Mapping[str, Any]], stream: str, data: str = "digits") -> list[SweepRow]:
    """Return a row per method and value of the axis that was swept."""
    chance = {"loss": np.log(10)}
    table = []
    for entry in _of(list(entries), stream, "sweep", data):
        lost = np.zeros(1)
        for name, values in entry["result"].items():
            found = numbers(values, np.nan)
            lost = ~np.isfinite(found) | (found > chance.get(name, np.inf)) | lost.astype(bool)
        table.append(
            SweepRow(
                stream,
                entry["key"]["method"],
                entry["key"]["point"],
                _means(entry["result"]),
                float(np.mean(lost)),
            )
        )
    return table

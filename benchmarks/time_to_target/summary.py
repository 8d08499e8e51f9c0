"""From the records of a task to what is reported of it; nothing is run here."""

from collections import defaultdict
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from benchmarks.shared.records import Records
from benchmarks.shared.statistics import numbers
from benchmarks.shared.tuning import Point
from benchmarks.time_to_target.search import Trial, best
from benchmarks.time_to_target.targets import NAMES


class Row(NamedTuple):
    """A method at one point and rate, on the fresh seeds of a task.

    Attributes:
      point: its hyper-parameters but the rate.
      exponent: of the rate, a power of two.
      target: for which of the targets it was chosen, and is measured.
      steps: to it, by seed; a miss is infinite.
      energy: ``sum |dw|`` up to it, by seed.
      final: last loss, by seed.
      held_out: last loss on examples not trained on, by seed; infinite where there are none.
      curve: median over seeds of "loss" and "energy" at some "steps".
      budget: steps of a run.
      seconds_per_step: median.
      compile_seconds: of a whole run.
      state: bytes of optimiser state per byte of parameters.
    """

    point: Point
    exponent: float
    target: str
    steps: np.ndarray
    energy: np.ndarray
    final: np.ndarray
    held_out: np.ndarray
    curve: dict[str, np.ndarray]
    budget: int
    seconds_per_step: float
    compile_seconds: float
    state: float

    @property
    def rate(self) -> float:
        """The learning rate at its highest."""
        return 2.0**self.exponent

    @property
    def median_steps(self) -> float:
        """Median over the seeds; infinite where at least half of them miss."""
        return float(np.median(self.steps))

    @property
    def median_energy(self) -> float:
        """Median over the seeds of the energy to the target."""
        return float(np.median(self.energy))


# The trials of a file, with how many entries it had then: a report asks for them thousands of times.
_TRIALS: WeakKeyDictionary[Records, tuple[int, dict[str, list[Trial]]]] = WeakKeyDictionary()


def trials(records: Records) -> dict[str, list[Trial]]:
    """Return all trials by method, in the order in which they were made."""
    known = _TRIALS.get(records)
    if known is None or known[0] != len(records):
        known = _TRIALS[records] = len(records), _trials(records)
    return known[1]


def _trials(records: Records) -> dict[str, list[Trial]]:
    result = defaultdict(list)
    for entry in records:
        key, found = entry["key"], entry["result"]
        if key["phase"].startswith("tuning"):
            for i, exponent in enumerate(key["rate_exponents"]):
                steps = {name: numbers(rows[i]) for name, rows in found["steps"].items()}
                final, late = numbers(found["final"][i]), numbers(found["late"][i])
                result[key["contestant"]].append(Trial(key["point"], exponent, final, late, steps))
    return dict(result)


def budget(records: Records) -> int:
    """Return the steps of a run."""
    return next(entry["key"]["steps"] for entry in records)


def step_bytes(records: Records) -> dict[str, int]:
    """Return by method the bytes that a training step holds at once, where XLA has a plan of them."""
    return {
        entry["key"]["contestant"]: entry["result"]["step_bytes"]
        for entry in records
        if entry["key"]["phase"] == "memory" and entry["result"]["step_bytes"] is not None
    }


def fresh(records: Records, name: str, point: Point, exponent: float, target: str) -> Row | None:
    """Return what the fresh seeds said of a method at a point and rate, None where it was not run."""
    for entry in records:
        key = entry["key"]
        if (key["phase"], key["contestant"]) == ("fresh", name) and (
            key["point"] == point and key["rate_exponent"] == exponent
        ):
            return _row(key, entry["result"], target)
    return None


def _row(key: dict[str, Any], result: dict[str, Any], target: str) -> Row:
    return Row(
        point=key["point"],
        exponent=key["rate_exponent"],
        target=target,
        steps=numbers(result["steps"][target]),
        energy=numbers(result["energy"][target]),
        final=numbers(result["final"]),
        held_out=numbers(result["held_out"]),
        curve={name: numbers(values) for name, values in result["curve"].items()},
        budget=key["steps"],
        seconds_per_step=result["seconds_per_step"],
        compile_seconds=result["compile_seconds"],
        state=result["state_bytes_per_parameter_byte"],
    )


def chosen(records: Records, target: str = NAMES[-1]) -> dict[str, Row]:
    """Return every method whose tuning is complete, at what it was tuned to for a target."""
    rows = {}
    for name, candidates in trials(records).items():
        winner = best(candidates, target, budget(records))
        row = fresh(records, name, winner.point, winner.exponent, target)
        if row is not None:
            rows[name] = row
    return rows

"""Tuning under equal budgets, and the runs on fresh seeds, all kept as records."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shared.records import Records
from benchmarks.shared.statistics import numbers
from benchmarks.shared.tuning import Point
from benchmarks.time_to_target.methods import METHODS, RATE_FREE, Method
from benchmarks.time_to_target.runs import Run, Trainer, recorded, untrained, zero_rate
from benchmarks.time_to_target.targets import NAMES, Targets
from benchmarks.time_to_target.task import Task

MISS = 2.0  # budgets that a miss counts as, where a finite number is wanted
LATE = 0.8  # of the budget: the loss of a baseline there becomes a target
CURVE_POINTS = 25  # kept of the curves of fresh runs


class Tuning(NamedTuple):
    """How a method is tuned.

    Attributes:
      coarse: exponents ``k`` of the rates ``2**k`` that the first point of every method is tried with.
      fine_trials: trials, dealt out evenly to all points, that are spread over ``fine_octaves`` octaves
        around the best coarse rate.
      fine_octaves: how many.
      widenings: trials at most that continue the rates of the best point while the best is on its edge.
    """

    coarse: tuple[int, ...] = tuple(range(-14, 5, 2))
    fine_trials: int = 32
    fine_octaves: float = 3.0
    widenings: int = 6


FULL = Tuning()
QUICK = Tuning((-8, -4), fine_trials=16, fine_octaves=1.0, widenings=0)


class Trial(NamedTuple):
    """A point and a rate with what the tuning seeds said.

    Attributes:
      point: the hyper-parameters but the rate.
      exponent: of the rate, a power of two.
      final: last loss by seed.
      late: loss after :data:`LATE` of the budget, by seed.
      steps: to each target, by seed; a miss is infinite.
    """

    point: Point
    exponent: float
    final: np.ndarray
    late: np.ndarray
    steps: dict[str, np.ndarray]

    def score(self, target: str, budget: int) -> tuple[float, float]:
        """Return what is minimised: mean steps, misses being ``MISS`` budgets; then the final loss."""
        steps = np.where(np.isfinite(self.steps[target]), self.steps[target], MISS * budget)
        return float(steps.mean()), float(np.mean(np.log(np.maximum(self.final, 1e-30))))


def best(trials: Iterable[Trial], target: str, budget: int) -> Trial:
    """Return the best of some trials for a target."""
    return min(trials, key=lambda trial: trial.score(target, budget))


class Search:
    """All runs of one method on one task."""

    def __init__(
        self,
        name: str,
        task_name: str,
        task: Task,
        targets: Targets | None,
        records: Records,
        tuning: Tuning,
        progress: Callable[[int], None] = lambda runs: None,
        method: Method | None = None,
        kept: Records | None = None,
    ) -> None:
        """Prepare; without ``targets`` trials are compared by their final loss alone.

        ``method`` is the one named, unless it is given. ``kept`` has the single runs of a slow task, of which
        a record of ``records`` sums up many. What ``progress`` raises stops the search between two runs.
        """
        self.name, self.method = name, method or (METHODS | RATE_FREE)[name]
        self.task, self.targets, self.records, self._tuning = task, targets, records, tuning
        self.budget = task.steps
        self.key = {"task": task_name, "contestant": name, "steps": self.budget}
        if task.examples is not None:
            self.key["examples"] = task.examples
        self._progress, self._kept = progress, kept

    @functools.cached_property
    def _trainer(self) -> Trainer:
        return Trainer(self.task, self.method)

    def _run(self, exponent: float, point: Point, seed: int) -> Run:
        def make() -> dict[str, Any]:
            self._progress(1)
            return self._trainer(2.0**exponent, point, seed)._asdict()

        if self._kept is None:
            return Run(**make())
        key = self.key | {"point": dict(point), "rate_exponent": exponent, "seed": seed}
        return recorded(self._kept.get(key, make))

    def _goals(self) -> dict[str, float]:
        return dict(zip(NAMES, self.targets or (-np.inf, -np.inf), strict=True))

    def trials(self, point: Point, exponents: Sequence[float], stage: str) -> list[Trial]:
        """Return trials of one point, from the records or by making them; one record holds them all."""
        key = self.key | {
            "phase": stage,
            "point": dict(point),
            "rate_exponents": list(exponents),
            "seeds": list(self.task.tuning_seeds),
            "targets": list(self.targets or []),
        }

        def make() -> dict[str, Any]:
            runs = [[self._run(k, point, seed) for seed in self.task.tuning_seeds] for k in exponents]
            late = int(LATE * len(runs[0][0].loss))
            return {
                "final": [[run.loss[-1] for run in row] for row in runs],
                "late": [[run.loss[late] for run in row] for row in runs],
                "steps": {
                    name: [[run.steps_to(goal) for run in row] for row in runs]
                    for name, goal in self._goals().items()
                },
            }

        result = self.records.get(key, make)
        return [
            Trial(
                point,
                exponent,
                numbers(result["final"][i]),
                numbers(result["late"][i]),
                {name: numbers(rows[i]) for name, rows in result["steps"].items()},
            )
            for i, exponent in enumerate(exponents)
        ]

    def tune(self) -> list[Trial]:
        """Return all trials: coarse rates, then fine ones of each point, then wider ones of the best."""
        points, prefix = self.method.points, "tuning" if self.targets else "freezing"
        coarse = self.trials(points[0], self._tuning.coarse, f"{prefix}, coarse")
        for _ in range(self._tuning.widenings):
            best = self.best(coarse).exponent
            known = [trial.exponent for trial in coarse]
            if best not in (min(known), max(known)):
                break
            further = best - 2 if best == min(known) else best + 2
            coarse += self.trials(points[0], [further], f"{prefix}, coarse")
        centre = self.best(coarse).exponent
        count = self._tuning.fine_trials // len(points)
        gap = self._tuning.fine_octaves / (count - 1)
        offsets = gap * (np.arange(count) - (count - 1) / 2)
        fine = [
            trial
            for point in points
            for trial in self.trials(point, np.round(centre + offsets, 4).tolist(), f"{prefix}, fine")
        ]
        for _ in range(self._tuning.widenings):
            best = self.best(fine)
            known = [trial.exponent for trial in fine if trial.point == best.point]
            if best.exponent not in (min(known), max(known)):
                break
            step = -gap if best.exponent == min(known) else gap
            fine += self.trials(best.point, [round(best.exponent + step, 4)], f"{prefix}, fine")
        return coarse + fine

    def best(self, trials: Iterable[Trial], target: str = NAMES[-1]) -> Trial:
        """Return the best of some trials for a target."""
        return best(trials, target, self.budget)

    def fresh(self, point: Point, exponent: float) -> dict[str, Any]:
        """Return the record of a point and rate on the fresh seeds."""
        seeds = list(self.task.fresh_seeds)
        key = self.key | {
            "phase": "fresh",
            "point": dict(point),
            "rate_exponent": exponent,
            "seeds": seeds,
            "targets": list(self.targets or []),
        }

        def make() -> dict[str, Any]:
            runs = [self._run(exponent, point, seed) for seed in seeds]
            kept = np.linspace(0, len(runs[0].loss) - 1, CURVE_POINTS).round().astype(int)
            return {
                "steps": {name: [run.steps_to(goal) for run in runs] for name, goal in self._goals().items()},
                "energy": {
                    name: [run.energy_to(goal) for run in runs] for name, goal in self._goals().items()
                },
                "final": [run.loss[-1] for run in runs],
                "held_out": [run.held_out for run in runs],
                "curve": {
                    "steps": runs[0].steps[kept],
                    "loss": np.median([run.loss for run in runs], axis=0)[kept],
                    "energy": np.median([run.energy for run in runs], axis=0)[kept],
                },
                "seconds_per_step": float(np.median([run.seconds for run in runs])) / self.budget,
                "compile_seconds": max(run.compile_seconds for run in runs),
                "state_bytes_per_parameter_byte": self._trainer.state_bytes,
            }

        return self.records.get(key, make)

    def memory(self) -> dict[str, Any]:
        """Return the record of the bytes that a training step holds at once; it is compiled, and not run."""
        key = self.key | {"phase": "memory"}
        return self.records.get(key, lambda: {"step_bytes": self._trainer.step_bytes()})


def sanity(search: Search) -> dict[str, Any]:
    """Return the record of the untrained loss and of that after a short run at a rate of 0, by fresh seed."""
    seeds = list(search.task.fresh_seeds)
    key = search.key | {"phase": "untrained", "seeds": seeds}

    def make() -> dict[str, Any]:
        return {
            "untrained": [untrained(search.task, seed) for seed in seeds],
            "zero_rate": [zero_rate(search.task, search.method, seed) for seed in seeds[:1]],
        }

    return search.records.get(key, make)

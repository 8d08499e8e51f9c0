"""The numbers of the time-to-target suite, task by task and over all tasks."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.shared.records import Records
from benchmarks.shared.statistics import geometric_mean
from benchmarks.time_to_target import tasks
from benchmarks.time_to_target.defaults import Choice, choices
from benchmarks.time_to_target.methods import (
    DEFAULT_BETAS,
    LEAF_MEAN,
    MUON,
    NADAMW,
    NORM_MATCHED,
    OURS,
    PERMUTED,
    RATE_ONLY,
    TUNED_ADAMW,
    UNTUNED,
    untuned_exponent,
)
from benchmarks.time_to_target.search import MISS
from benchmarks.time_to_target.summary import Row, chosen, fresh
from benchmarks.time_to_target.targets import NAMES

BASES = ("momentum", "Nesterov")
# What whole optimisers stand beside; AdamW with its betas tuned is what all are measured by.
BESIDE = (DEFAULT_BETAS, TUNED_ADAMW, NADAMW, "schedule-free AdamW", MUON)


class Suite(NamedTuple):
    """All tasks.

    Attributes:
      records: by task.
      rows: by target, task and method: what each was tuned to for that target, on fresh seeds.
    """

    records: dict[str, Records]
    rows: dict[str, dict[str, dict[str, Row]]]

    @property
    def tasks(self) -> list[str]:
        """The tasks that have been run."""
        return list(self.records)

    @property
    def of_state(self) -> str:
        """The task whose state is shown: a network of ordinary matrices, if it has been run."""
        return "language_model" if "language_model" in self.records else self.tasks[-1]

    def everywhere(self, target: str) -> list[str]:
        """Return the methods that have been run on all tasks, in the order of the first task."""
        tables = list(self.rows[target].values())
        return [name for name in tables[0] if all(name in table for table in tables)]

    def steps(self, target: str, task: str, name: str, missed: float = np.inf) -> float:
        """Return median steps to a target; a miss is infinite, or ``missed`` budgets."""
        return finite_or(self.rows[target][task][name].median_steps, missed * self.budget(task))

    def budget(self, task: str) -> int:
        """Return the steps of a run."""
        return next(iter(self.rows[NAMES[0]][task].values())).budget

    def ratio(self, target: str, name: str, other: str, missed: float = np.inf) -> float:
        """Return the geometric mean over all tasks of the steps of one over those of another."""
        pairs = [
            (self.steps(target, task, name, missed), self.steps(target, task, other, missed))
            for task in self.tasks
        ]
        if any(np.isinf(other_steps) for _, other_steps in pairs):
            return np.nan
        return geometric_mean(steps / other_steps for steps, other_steps in pairs)

    def on(self, tasks: Iterable[str]) -> "Suite":
        """Return the same for some of the tasks."""
        kept = list(tasks)
        rows = {target: {task: by_task[task] for task in kept} for target, by_task in self.rows.items()}
        return Suite({task: self.records[task] for task in kept}, rows)

    @property
    def complete(self) -> "Suite":
        """The tasks on which every method with more than a rate has been run."""
        tables = self.rows[NAMES[-1]]
        known = {name for table in tables.values() for name in table} - set(RATE_ONLY)
        return self.on(task for task, table in tables.items() if known <= set(table))

    def untuned(self, target: str, name: str) -> dict[str, Row]:
        """Return a method with nothing tuned, by task; no task at all where one has not been run."""
        found = {
            task: fresh(self.records[task], name, {}, _untuned_exponent(name, task), target)
            for task in self.tasks
        }
        rows = {task: row for task, row in found.items() if row is not None}
        return rows if len(rows) == len(found) else {}

    def misses(self, target: str, name: str) -> list[str]:
        """Return the tasks on which at least half of the seeds miss the target."""
        return [task for task in self.tasks if np.isinf(self.steps(target, task, name))]


@cache
def _untuned_exponent(name: str, task: str) -> float:
    return untuned_exponent(name, tasks.initial(task))


def read(folder: Path) -> Suite:
    """Read the records of all tasks that have any."""
    records = {
        task: Records(folder / f"{task}.jsonl") for task in tasks.NAMES if (folder / f"{task}.jsonl").exists()
    }
    rows = {target: {task: chosen(entries, target) for task, entries in records.items()} for target in NAMES}
    return Suite(records, rows)


def load(folder: Path) -> Suite:
    """Read the records of the tasks on which all has been run that the tables over all tasks show."""
    found = read(folder)
    return found.on(task for task in found.tasks if task not in in_part(found))


def in_part(found: Suite) -> list[str]:
    """Return the tasks on which not all of that has been run: they would shorten every table."""
    return [
        task
        for task, records in found.records.items()
        if not {*RATE_ONLY, *BESIDE} <= found.rows[NAMES[-1]][task].keys()
        or any(fresh(records, name, {}, _untuned_exponent(name, task), NAMES[-1]) is None for name in UNTUNED)
    ]


def finite_or(value: float, otherwise: float) -> float:
    """Return ``value``, or ``otherwise`` where it is infinite."""
    return value if np.isfinite(value) else otherwise


def energy_ratio(suite: Suite, target: str, name: str, other: str) -> tuple[float, int]:
    """Return the geometric mean of energies over the tasks where both reach the target, and their number."""
    ratios = []
    for task in suite.tasks:
        rows = suite.rows[target][task]
        pair = rows[name].median_energy, rows[other].median_energy
        if np.all(np.isfinite(pair)):
            ratios.append(pair[0] / pair[1])
    return geometric_mean(ratios) if ratios else np.nan, len(ratios)


class Identified(NamedTuple):
    """What of a gain survives without what is said to cause it.

    Attributes:
      task: which.
      base: the better of tuned momentum and tuned Nesterov: the re-tuned base.
      base_steps, ours_steps: median steps to the near target, a miss being :data:`MISS` budgets.
      shares: by control, its share of ours' gain in the logarithm of steps; 1 is all of it, below 0 is worse
        than the base. Not a number where ours has no gain to explain.
    """

    task: str
    base: str
    base_steps: float
    ours_steps: float
    shares: dict[str, float]


def identified(suite: Suite, target: str = NAMES[0]) -> list[Identified]:
    """Return for every task which share of the metric's gain each control keeps."""
    result = []
    for task in suite.tasks:
        steps = {
            name: suite.steps(target, task, name, MISS)
            for name in (*BASES, OURS, PERMUTED, LEAF_MEAN, NORM_MATCHED)
        }
        base = min(BASES, key=steps.__getitem__)
        gain = np.log(steps[base] / steps[OURS])
        shares = {
            name: float(np.log(steps[base] / steps[name]) / gain) if gain > 0 else np.nan
            for name in (PERMUTED, LEAF_MEAN, NORM_MATCHED)
        }
        result.append(Identified(task, base, steps[base], steps[OURS], shares))
    return result


class Judged(NamedTuple):
    """A configuration on a task that had no say in choosing it.

    Attributes:
      choice: what the other tasks chose.
      own: with the best rate on this task, the only thing tuned on it; on the fresh seeds.
      transferred: with the rate of the other tasks.
    """

    choice: Choice
    own: Row
    transferred: Row


def judged(suite: Suite, target: str = "far") -> dict[str, dict[str, Judged]]:
    """Return by method and task what the other tasks chose, empty where that has not been run."""
    result: dict[str, dict[str, Judged]] = {}
    for task, records in suite.records.items():
        for name, choice in choices(suite.records, task).items():
            own = fresh(records, choice.name, choice.point, choice.own_exponent, target)
            other = fresh(records, choice.name, choice.point, choice.other_exponent, target)
            if own is not None and other is not None:
                result.setdefault(name, {})[task] = Judged(choice, own, other)
    return result


def mean_against(
    suite: Suite, rows: Mapping[str, Row], other: str = TUNED_ADAMW, target: str = "far"
) -> float:
    """Return the geometric mean of steps over those of a tuned method; a miss is MISS budgets."""
    return geometric_mean(
        finite_or(row.median_steps, MISS * row.budget) / suite.steps(target, task, other, MISS)
        for task, row in rows.items()
    )


def profile(suite: Suite, target: str, names: Iterable[str], factors: np.ndarray) -> dict[str, np.ndarray]:
    """Return the share of runs within each factor of the task's best median; tasks count alike."""
    names = list(names)
    within: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for rows in suite.rows[target].values():
        best = min(rows[name].median_steps for name in names)
        for name in names:
            within[name].append(np.mean(rows[name].steps[:, None] / best <= factors, axis=0))
    return {name: np.mean(shares, axis=0) for name, shares in within.items()}

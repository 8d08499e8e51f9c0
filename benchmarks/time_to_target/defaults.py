"""The choice of defaults, each judged on a task that had no say in it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.shared.records import Records
from benchmarks.shared.statistics import geometric_mean
from benchmarks.shared.tuning import Point
from benchmarks.time_to_target.methods import (
    EIGENBASIS_SCHEDULE_FREE,
    FACTORED,
    FACTORED_SCHEDULE_FREE,
    METHODS,
    OURS,
    TUNED_ADAMW,
)
from benchmarks.time_to_target.search import Trial, best
from benchmarks.time_to_target.summary import budget, trials

CANDIDATES = (OURS, FACTORED)
JUDGED = (*CANDIDATES, FACTORED_SCHEDULE_FREE, EIGENBASIS_SCHEDULE_FREE)
TARGET = "far"


class Choice(NamedTuple):
    """A configuration that other tasks chose.

    Attributes:
      name: of the method.
      point: its hyper-parameters but the rate.
      own_exponent: the best rate on the task it is to be judged on: the only thing tuned there.
      other_exponent: the rate that the other tasks chose too.
    """

    name: str
    point: Point
    own_exponent: float
    other_exponent: float


def costs(records: Mapping[str, Records], name: str) -> dict[str, list[tuple[float, Trial]]]:
    """Return by task, for each point, its least mean steps to the target over AdamW's, and the trial."""
    result = {}
    for task, entries in records.items():
        steps, found = budget(entries), trials(entries)
        reference = best(found[TUNED_ADAMW], TARGET, steps).score(TARGET, steps)[0]
        result[task] = []
        for point in METHODS[name].points:
            trial = best((t for t in found[name] if t.point == point), TARGET, steps)
            result[task].append((trial.score(TARGET, steps)[0] / reference, trial))
    return result


def choose(
    records: Mapping[str, Records],
    names: tuple[str, ...] = CANDIDATES,
    left_out: str | None = None,
    only_point: int | None = None,
) -> tuple[str, int, float]:
    """Return the method, the index of its point and its mean cost, least over all tasks but one."""
    options = []
    for name in names:
        by_task = costs(records, name)
        count = len(METHODS[name].points)
        for i in range(count) if only_point is None else [only_point]:
            mean = geometric_mean(rows[i][0] for task, rows in by_task.items() if task != left_out)
            options.append((mean, name, i))
    mean, name, i = min(options)
    return name, i, mean


def left_out(
    records: Mapping[str, Records],
    task: str,
    names: tuple[str, ...] = CANDIDATES,
    only_point: int | None = None,
) -> Choice:
    """Return what all tasks but ``task`` choose among the points of some methods."""
    name, i, _ = choose(records, names, task, only_point)
    by_task = costs(records, name)
    others = [rows[i][1].exponent for other, rows in by_task.items() if other != task]
    return Choice(
        name=name,
        point=METHODS[name].points[i],
        own_exponent=by_task[task][i][1].exponent,
        other_exponent=round(float(np.median(others)), 2),
    )


def choices(records: Mapping[str, Records], task: str) -> dict[str, Choice]:
    """Return what is to be run on a task that had no say: forms of ours, and AdamW's defaults."""
    return {name: left_out(records, task, (name,)) for name in JUDGED} | {
        TUNED_ADAMW: left_out(records, task, (TUNED_ADAMW,), only_point=0),
    }

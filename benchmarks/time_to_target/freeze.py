"""How the targets came about."""

import math
from collections.abc import Callable

import numpy as np

from benchmarks.shared.records import Records
from benchmarks.time_to_target.methods import METHODS, MOMENTUM, TUNED_ADAMW
from benchmarks.time_to_target.runs import untrained
from benchmarks.time_to_target.search import FULL, Search
from benchmarks.time_to_target.targets import Targets
from benchmarks.time_to_target.task import Task

# The points, and the fine trials, that the baselines had when the targets were frozen; more came later.
BASELINES = {MOMENTUM: 4, TUNED_ADAMW: 6}
TUNING = FULL._replace(fine_trials=24)
FLOOR = 1e-5  # of the untrained loss: below it the digits of float32 end


def frozen(
    task_name: str,
    task: Task,
    records: Records,
    progress: Callable[[int], None] = lambda runs: None,
    kept: Records | None = None,
) -> Targets:
    """Return the targets that tuned momentum and tuned AdamW imply; the arguments are those of Search."""
    floor = FLOOR * untrained(task, 0)
    reached = []
    for name, count in BASELINES.items():
        method = METHODS[name]
        method = method._replace(points=method.points[:count])
        search = Search(name, task_name, task, None, records, TUNING, progress, method, kept)
        reached.append(round_up(max(float(np.median(search.best(search.tune()).late)), floor)))
    return Targets(near=max(reached), far=min(reached))


def round_up(value: float, digits: int = 3) -> float:
    """Round a positive number up to some significant digits.

    Examples:
      >>> round_up(0.012345), round_up(24.0)
      (0.0124, 24.0)
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}")

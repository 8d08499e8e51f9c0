"""How the targets came about."""

import math

import numpy as np

from benchmarks.records import Records
from benchmarks.time_to_target.contestants import MOMENTUM, TUNED_ADAMW
from benchmarks.time_to_target.runs import untrained
from benchmarks.time_to_target.search import Search, Size
from benchmarks.time_to_target.targets import Targets
from benchmarks.time_to_target.tasks import Task

FLOOR = 1e-5  # of the untrained loss: below it the digits of float32 end


def frozen(task_name: str, task: Task, records: Records, size: Size) -> Targets:
    """Return the targets that tuned momentum and tuned AdamW imply."""
    floor = FLOOR * untrained(task, 0)
    reached = [
        round_up(max(_late_loss(Search(name, task_name, task, None, records, size)), floor))
        for name in (MOMENTUM, TUNED_ADAMW)
    ]
    return Targets(near=max(reached), far=min(reached))


def _late_loss(search: Search) -> float:
    return float(np.median(search.best(search.tune()).late))


def round_up(value: float, digits: int = 3) -> float:
    """Round a positive number up to some significant digits.

    Examples:
      >>> round_up(0.012345), round_up(24.0)
      (0.0124, 24.0)
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}")

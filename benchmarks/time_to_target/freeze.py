"""How the targets came about."""

import math
from collections.abc import Callable

import numpy as np

from benchmarks.time_to_target.contestants import MOMENTUM, TUNED_ADAMW
from benchmarks.time_to_target.runs import untrained
from benchmarks.time_to_target.search import Search
from benchmarks.time_to_target.targets import Targets

FLOOR = 1e-5  # of the untrained loss: below it the digits of float32 end


def frozen(search: Callable[[str], Search]) -> Targets:
    """Return the targets that tuned momentum and tuned AdamW imply.

    Args:
      search: from the name of a contestant to its search on the task, without targets.
    """
    baselines = [search(name) for name in (MOMENTUM, TUNED_ADAMW)]
    floor = FLOOR * untrained(baselines[0].task, 0)
    reached = [
        round_up(max(float(np.median(baseline.best(baseline.tune()).late)), floor)) for baseline in baselines
    ]
    return Targets(near=max(reached), far=min(reached))


def round_up(value: float, digits: int = 3) -> float:
    """Round a positive number up to some significant digits.

    Examples:
      >>> round_up(0.012345), round_up(24.0)
      (0.0124, 24.0)
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}")

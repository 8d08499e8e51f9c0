"""Which side of which leaf is refreshed at which step."""

import math
from typing import Any, Literal, NamedTuple

from riemann_optax.eigenbasis.layout import REFRESHING, Layout


class Job(NamedTuple):
    """One side of one leaf, whose bases are refreshed together.

    Attributes:
      leaf: number of the leaf.
      side: which side of it.
      shape: shape of its bases, ``(*stack, blocks, size, size)``.
      dtype: the dtype of the computation.
      slot: the refresh runs at steps that equal this modulo ``update_every``.
    """

    leaf: int
    side: Literal["left", "right"]
    shape: tuple[int, ...]
    dtype: Any
    slot: int = 0


def schedule(
    layouts: list[Layout | None],
    dtypes: list[Any],
    update_every: int,
    together: int | None = 1,
    budget: float | None = None,
) -> tuple[list[list[Job]], int]:
    """Spread the refreshes over steps; return groups of jobs of one size, dtype and slot, and the period.

    Jobs are assigned largest first: each run of ``together`` jobs of one size and dtype goes into the slot
    with the least work. With None all are refreshed at the same step.

    Args:
      layouts: the layouts of all leaves.
      dtypes: the dtype in which each leaf is computed.
      update_every: the shortest period.
      together: how many jobs of one size and dtype go into one slot.
      budget: operations per step; the period grows until no step exceeds it, or each run has its own slot.
    """
    alike: dict[tuple[int, str], list[Job]] = {}
    for index, (layout, dtype) in enumerate(zip(layouts, dtypes, strict=True)):
        for side in ("left", "right"):
            if layout is not None and getattr(layout, side):
                job = Job(index, side, layout.square(side), dtype)
                alike.setdefault((job.shape[-1], str(dtype)), []).append(job)
    runs = [
        jobs[first : first + (together or len(jobs))]
        for _, jobs in sorted(alike.items(), reverse=True)
        for first in range(0, len(jobs), together or len(jobs))
    ]
    costs = [sum(operations(job) for job in run) for run in runs]
    period = update_every
    slots = [0] * len(runs) if together is None else _slots(costs, period)
    if together is not None and budget is not None and runs:
        limit = max(budget, *costs)
        period = max(period, math.ceil(sum(costs) / limit))
        while max(_work(costs, slots := _slots(costs, period), period)) > limit:
            period += 1
    groups: dict[tuple[int, int, str], list[Job]] = {}
    for run, slot in zip(runs, slots, strict=True):
        for job in run:
            groups.setdefault((slot, job.shape[-1], str(job.dtype)), []).append(job._replace(slot=slot))
    return list(groups.values()), period


def refreshes(last: int, period: int, settling: int = 0) -> int:
    """Return how often the jobs of slot 0 run in the steps 1 to ``last``.

    Until the step ``settling`` the distance between two runs grows to the period in proportion to the step.
    """
    early = range(1, min(last, settling) + 1)
    while_settling = sum(step % max(step * period // settling, 1) == 0 for step in early)
    return while_settling + max(last // period - settling // period, 0)


def fits_one_step(groups: list[list[Job]], budget: float | None) -> bool:
    """Return whether all refreshes together are within the budget of one step, as early ones have to be."""
    return budget is None or sum(operations(job) for group in groups for job in group) <= budget


def alike_groups(groups: list[list[Job]]) -> list[list[list[Job]]]:
    """Return lists of the groups that one computation can refresh.

    Their bases have one size and dtype, and no group has more than twice as many as another: smaller ones are
    filled up.
    """
    alike: dict[tuple[str, int], list[list[Job]]] = {}
    for group in groups:
        alike.setdefault((str(group[0].dtype), group[0].shape[-1]), []).append(group)
    found = []
    for same in alike.values():
        fewest = 0
        for group in sorted(same, key=_number):
            if not fewest or _number(group) > 2 * fewest:
                fewest = _number(group)
                found.append([group])
            else:
                found[-1].append(group)
    return found


def _number(group: list[Job]) -> int:
    return sum(math.prod(job.shape[:-2]) for job in group)


def operations(job: Job) -> float:
    """Return roughly how many operations a refresh takes: the products and solves of Cholesky QR."""
    return float(REFRESHING * math.prod(job.shape) * job.shape[-1])


def _slots(costs: list[float], period: int) -> list[int]:
    work, slots = [0.0] * period, []
    for cost in costs:
        slots.append(work.index(min(work)))
        work[slots[-1]] += cost
    return slots


def _work(costs: list[float], slots: list[int], period: int) -> list[float]:
    work = [0.0] * period
    for cost, slot in zip(costs, slots, strict=True):
        work[slot] += cost
    return work

"""The bytes that a training step holds at once, over those of AdamW's step."""

import numpy as np

from benchmarks.report.suite import Suite
from benchmarks.shared.markdown import number, table, title
from benchmarks.shared.statistics import geometric_mean
from benchmarks.time_to_target import summary
from benchmarks.time_to_target.methods import TUNED_ADAMW


def ratios(suite: Suite) -> dict[str, dict[str, float]]:
    """Return by task and method the bytes of a step over AdamW's, of the tasks where they are recorded."""
    found = {task: summary.step_bytes(records) for task, records in suite.records.items()}
    return {
        task: {name: count / held[TUNED_ADAMW] for name, count in held.items()}
        for task, held in found.items()
        if TUNED_ADAMW in held
    }


def ratio(suite: Suite, name: str) -> float:
    """Return the geometric mean over these tasks; not a number where it is not recorded on all of them."""
    by_task = ratios(suite).values()
    return geometric_mean(held.get(name, np.nan) for held in by_task) if by_task else np.nan


def chapter(suite: Suite) -> str:
    """Lay out the bytes task by task, the least in the mean first; empty without records."""
    by_task = ratios(suite)
    if not by_task:
        return ""
    adamw = {task: summary.step_bytes(suite.records[task])[TUNED_ADAMW] for task in by_task}
    names = [name for name in next(iter(by_task.values())) if np.isfinite(ratio(suite, name))]
    rows = [
        [name, number(ratio(suite, name)), *(number(held[name]) for held in by_task.values())]
        for name in sorted(names, key=lambda name: ratio(suite, name))
    ]
    headings = [f"{title(task)} ({count / 1e6:.2g} MB)" for task, count in adamw.items()]
    return f"""\
### Memory at peak

Bytes that one training step holds at once (weights, state, a batch, and all that is made of them), as XLA
plans them on a CPU, over those of AdamW's step (in brackets), on the tasks where this is recorded. Where
activations are most of it, the optimisers are alike.

{table(["optimiser", "mean", *headings], rows)}

"""

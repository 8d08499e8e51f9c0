"""What the suite was to show, and whether it does."""

from typing import NamedTuple

import numpy as np

from benchmarks.report.suite import Suite, energy_ratio, judged, mean_against
from benchmarks.shared.statistics import geometric_mean
from benchmarks.time_to_target.methods import (
    DEFAULT_BETAS,
    DROP_IN,
    EIGENBASIS,
    EIGENBASIS_SCHEDULE_FREE,
    FACTORED,
    MOMENTUM,
    MUON,
    NADAMW,
    ONE_SIDED,
    OURS,
    SCHEDULE_FREE,
    TUNED_ADAMW,
    VECTORS_SCHEDULE_FREE,
)
from benchmarks.time_to_target.search import MISS


class Claim(NamedTuple):
    """A target of the project.

    Attributes:
      text: what was to be shown.
      value: what was found.
      bound: at most which it was to be.
      note: what else has to be known.
      at_least: whether it was to be at least that instead.
    """

    text: str
    value: float
    bound: float
    note: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return bool(self.value >= self.bound if self.at_least else self.value <= self.bound)


# Of tuned AdamW's steps, with only the rate tuned.
BOUNDS = {DROP_IN: 0.8, SCHEDULE_FREE: 0.65, ONE_SIDED: 0.6}


def of_aliases(suite: Suite) -> list[Claim]:
    """Return the claims about whole optimisers, whose defaults nobody tuned on these tasks."""
    result = []
    for alias, bound in BOUNDS.items():
        if alias not in suite.everywhere("far"):
            continue
        tuned = _steps(suite, "far", alias, TUNED_ADAMW, bound)
        result.append(tuned._replace(note="; ".join(filter(None, ["only its rate tuned", tuned.note]))))
        rows = suite.untuned("far", alias)
        if rows:
            result.append(
                Claim(
                    f"steps to the far target, {alias} at ro.starting_rate over {TUNED_ADAMW}",
                    mean_against(suite, rows),
                    1.0,
                    "nothing tuned" + _missing([task for task, row in rows.items() if _missed(row)]),
                )
            )
    return result


def claims(suite: Suite) -> list[Claim]:
    """Return all claims about the tasks on which every method has been run."""
    result = [
        _steps(suite, "near", FACTORED, MOMENTUM, 0.5),
        _steps(suite, "far", FACTORED, DEFAULT_BETAS, 0.75),
        *(_steps(suite, "far", FACTORED, peer, 0.95) for peer in (TUNED_ADAMW, NADAMW)),
        *(
            _steps(suite, "far", ours, TUNED_ADAMW, 0.6)
            for ours in (EIGENBASIS, EIGENBASIS_SCHEDULE_FREE, VECTORS_SCHEDULE_FREE)
        ),
        _steps(suite, "far", EIGENBASIS, MUON, 1.0),
    ]
    for name, rows in judged(suite).items():
        if name not in (OURS, FACTORED) or set(rows) != set(suite.tasks):
            continue
        own = {task: judgement.own for task, judgement in rows.items()}
        result.append(
            Claim(
                f"steps to the far target, {name} as the other tasks chose it, over {TUNED_ADAMW}'s, tuned",
                mean_against(suite, own),
                1.0,
                "only its rate tuned" + _missing([task for task, row in own.items() if _missed(row)]),
            )
        )
        ratios = {
            task: judgement.transferred.median_steps / judgement.own.median_steps
            for task, judgement in rows.items()
            if np.isfinite(judgement.own.median_steps)
        }
        worst = max(ratios, key=ratios.__getitem__)
        result.append(
            Claim(
                f"steps of {name} with the other tasks' rate, over those with its best: the worst task",
                ratios[worst],
                1.3,
                f"{worst.replace('_', ' ')}; within 1.3 on "
                f"{sum(ratio <= 1.3 for ratio in ratios.values())} of {len(ratios)} tasks, "
                f"median {np.median(list(ratios.values())):.2f}",
            )
        )
    energy, count = energy_ratio(suite, "far", FACTORED, DEFAULT_BETAS)
    result.append(
        Claim(
            f"energy to the far target, {FACTORED} over {DEFAULT_BETAS}",
            energy,
            0.7,
            f"over the {count} tasks where both reach it",
        )
    )
    return result


def _missed(row) -> bool:
    return not np.isfinite(row.median_steps)


def _missing(tasks: list[str]) -> str:
    names = ", ".join(task.replace("_", " ") for task in tasks)
    return f"; misses {names}: counted as {MISS:g} budgets" if tasks else ""


def _steps(suite: Suite, target: str, ours: str, other: str, bound: float) -> Claim:
    """Compare over all tasks; where the other misses too, both sides count a miss alike, and this is said."""
    missed_by = {name: suite.misses(target, name) for name in (ours, other)}
    ratio = geometric_mean(
        suite.steps(target, task, ours, MISS) / suite.steps(target, task, other, MISS) for task in suite.tasks
    )
    both = [task for task in suite.tasks if not any(task in missed for missed in missed_by.values())]
    over_both = geometric_mean(
        suite.steps(target, task, ours) / suite.steps(target, task, other) for task in both
    )
    notes = [
        f"{name} misses {', '.join(task.replace('_', ' ') for task in tasks)}"
        for name, tasks in missed_by.items()
        if tasks
    ]
    note = f"{'; '.join(notes)}: {over_both:.2f} over the other tasks" if notes else ""
    return Claim(f"steps to the {target} target, {ours} over {other}", ratio, bound, note)

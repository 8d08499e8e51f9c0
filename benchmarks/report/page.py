"""The page itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import continual, memory
from benchmarks.report.claims import Claim
from benchmarks.report.suite import BESIDE, Suite, energy_ratio, identified, judged, mean_against
from benchmarks.shared.markdown import in_code, number, quartiles, table, title
from benchmarks.time_to_target.methods import (
    ALIASES,
    DEFAULT_BETAS,
    KL_SOAP,
    LEAF_MEAN,
    METHODS,
    MOMENTUM,
    NADAMW,
    NORM_MATCHED,
    OURS,
    PERMUTED,
    PUBLISHED,
    RATE_FREE,
    RATE_ONLY,
    TUNED_ADAMW,
    UNTUNED,
)
from benchmarks.time_to_target.search import MISS
from benchmarks.time_to_target.summary import Row, trials
from benchmarks.time_to_target.targets import NAMES, TARGETS

# Their seconds do not compare: others ran on the machine at the same time.
SHARED_MACHINE = {*RATE_ONLY, KL_SOAP}
KINDS = {"ours": "ours", "peer": "", "control": "control", "design": "another form of ours"}


def claims_table(found: Sequence[Claim]) -> str:
    """Lay out what was to be shown beside what was found."""
    rows = [
        [
            claim.text + (f" ({claim.note})" if claim.note else ""),
            f"{'≥' if claim.at_least else '≤'} {claim.bound:g}",
            f"{claim.value:.3g}",
            "met" if claim.met else "**missed**",
        ]
        for claim in found
    ]
    return table(["target", "wanted", "found", ""], rows)


def suite_table(suite: Suite, short: bool = False) -> str:
    """Lay out the methods with more than a rate tuned; short: ours and the peers that reach most targets."""
    names = [name for name in suite.everywhere("far") if name not in PUBLISHED]
    if short:
        most = len(suite.tasks) / 2
        names = [
            name
            for name in names
            if METHODS[name].role == "ours"
            or (METHODS[name].role == "peer" and len(suite.misses("far", name)) < most)
        ]

    def means(target: str, name: str) -> float:
        return suite.ratio(target, name, TUNED_ADAMW, MISS)

    rows = []
    for name in sorted(names, key=lambda name: means("far", name)):
        energy, count = energy_ratio(suite, "far", name, DEFAULT_BETAS)
        rows.append(
            [
                _emphasised(name),
                KINDS[METHODS[name].role],
                number(means("far", name)),
                str(len(suite.misses("far", name))),
                number(means("near", name)),
                str(len(suite.misses("near", name))),
                f"{number(energy)} ({count})" if count else "-",
                f"{state_of(suite, name):.1f}",
                number(memory.ratio(suite, name)),
                number(cost_of(suite, name)),
                trials_of(suite, name),
            ]
        )
    headings = [
        "optimiser",
        "",
        "steps, far",
        "misses",
        "steps, near",
        "misses",
        "energy (tasks)",
        "state",
        "memory",
        "step",
        "trials",
    ]
    return table(headings, rows)


def aliases_table(suite: Suite) -> str:
    """Lay out the whole optimisers over all tasks and what was tuned, the fewest steps first."""
    everywhere = suite.everywhere("far")
    names = [name for name in (*RATE_ONLY, *BESIDE) if name in everywhere]
    rows = []
    for name in sorted(names, key=lambda name: suite.ratio("far", name, TUNED_ADAMW, MISS)):
        steps = [
            cell
            for target in ("far", "near")
            for cell in (
                number(suite.ratio(target, name, TUNED_ADAMW, MISS)),
                str(len(suite.misses(target, name))),
            )
        ]
        held = [f"{state_of(suite, name):.1f}", number(memory.ratio(suite, name))]
        rows.append([_emphasised(name), tuned(name), *steps, *held])
    headings = ["optimiser", "tuned", "steps, far", "misses", "steps, near", "misses", "state", "memory"]
    return table(headings, rows)


def rate_only_table(suite: Suite) -> str:
    """Lay out what has little but its rate tuned, beside AdamW, the fewest steps first."""
    shown = {name: in_code(name) for name in ALIASES}
    shown |= {
        DEFAULT_BETAS: "AdamW, published, its decay tuned too",
        TUNED_ADAMW: "AdamW, its betas tuned too",
    }
    names = [name for name in (*RATE_ONLY, DEFAULT_BETAS, TUNED_ADAMW) if name in suite.everywhere("far")]
    rows = [
        [
            shown.get(name, name),
            number(suite.ratio("far", name, TUNED_ADAMW, MISS)),
            str(len(suite.misses("far", name))),
            f"{4 * state_of(suite, name):.1f}",
        ]
        for name in sorted(names, key=lambda name: suite.ratio("far", name, TUNED_ADAMW, MISS))
    ]
    return table(
        ["optimiser", f"steps, mean of {len(suite.tasks)} tasks", "misses", "state, bytes per weight"], rows
    )


def tuned(name: str) -> str:
    """Name what was tuned: the rate, and what has several values among the points that were tried.

    Examples:
      >>> tuned("AdamW"), tuned("riemannian_adamw")
      ('rate, b1, b2', 'rate')
    """
    points = METHODS[name].points
    return ", ".join(["rate", *(axis for axis in points[0] if len({point[axis] for point in points}) > 1)])


def untuned_table(suite: Suite) -> str:
    """Lay out what has nothing tuned, the fewest steps first, empty where nothing was run."""
    found = {name: suite.untuned("far", name) for name in UNTUNED}
    rows = [
        [
            _emphasised(name),
            f"{min(r.rate for r in by_task.values()):.2g} to {max(r.rate for r in by_task.values()):.2g}"
            if name in RATE_ONLY
            else "its own",
            number(mean_against(suite, by_task)),
            str(sum(np.isinf(row.median_steps) for row in by_task.values())),
            f"{by_task[suite.of_state].state:.1f}",
        ]
        for name, by_task in sorted(found.items(), key=lambda item: _order(suite, item[1]))
        if by_task
    ]
    return table(["optimiser, nothing tuned", "rate", "steps, far", "misses", "state"], rows) if rows else ""


def _order(suite: Suite, by_task: Mapping[str, Row]) -> float:
    return mean_against(suite, by_task) if by_task else np.inf


def _emphasised(name: str) -> str:
    return f"**{name}**" if (METHODS | RATE_FREE)[name].role == "ours" else name


def state_of(suite: Suite, name: str) -> float:
    """Return bytes of state per byte of parameters."""
    return suite.rows["far"][suite.of_state][name].state


def trials_of(suite: Suite, name: str) -> str:
    """Return how many trials a task took: the same for all, but where the best rate was on the edge."""
    counts = [len(trials(records)[name]) for records in suite.records.values()]
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])


def cost_of(suite: Suite, name: str) -> float:
    """Return the median over tasks of seconds per step over AdamW's; none where the machine was shared."""
    if name in SHARED_MACHINE:
        return np.nan
    ratios = [
        rows[name].seconds_per_step / rows[TUNED_ADAMW].seconds_per_step
        for rows in suite.rows["far"].values()
    ]
    return float(np.median(ratios))


def task_table(suite: Suite, target: str) -> str:
    """Lay out the steps of all methods on every task, median and quartiles over fresh seeds."""
    names = suite.everywhere(target)
    order = sorted(names, key=lambda name: suite.ratio(target, name, TUNED_ADAMW, MISS))
    rows = [
        [name, *(quartiles(suite.rows[target][task][name].steps) for task in suite.tasks)] for name in order
    ]
    goals = [f"{title(task)} ({getattr(TARGETS[task], target):g})" for task in suite.tasks]
    return table(["optimiser", *goals], rows)


def held_out_table(suite: Suite) -> str:
    """Lay out what was never trained on: the loss at the end of the runs tuned for the far target."""
    tasks = [t for t in suite.tasks if np.isfinite(suite.rows["far"][t][TUNED_ADAMW].held_out).any()]
    rows = [
        [name, *(f"{np.median(suite.rows['far'][task][name].held_out):.3g}" for task in tasks)]
        for name in suite.everywhere("far")
    ]
    return table(["optimiser", *map(title, tasks)], rows)


def seconds_table(suite: Suite) -> str:
    """Lay out the seconds to the far target, with compilation."""

    def seconds(task: str, name: str) -> str:
        row = suite.rows["far"][task][name]
        if not np.isfinite(row.median_steps):
            return "missed"
        return f"{row.median_steps * row.seconds_per_step:.2f} + {row.compile_seconds:.1f}"

    names = [name for name in suite.everywhere("far") if name not in SHARED_MACHINE]
    rows = [[name, *(seconds(task, name) for task in suite.tasks)] for name in names]
    return table(["optimiser", *map(title, suite.tasks)], rows)


def controls_table(suite: Suite, entries: continual.Entries) -> str:
    """Lay out which share of each gain survives the controls."""

    def share(value: float | None) -> str:
        if value is None:
            return "-"
        if np.isnan(value):
            return "no gain"
        return "below 0" if value < 0 else f"{100 * value:.0f}%"

    rows = []
    columns: dict[str, list[float]] = {control: [] for control in continual.CONTROLS}
    for row in identified(suite):
        sane = _sane(suite, row.task)
        # Doing nothing stays where it began, short of both targets.
        stays = sane["zero_rate"][0] >= TARGETS[row.task].near
        kept = {**row.shares, "re-tuned base": 0.0, "untrained": -np.inf if stays else np.nan}
        for control in (PERMUTED, LEAF_MEAN, NORM_MATCHED):
            columns[control].append(kept[control])
        gain = f"{row.base_steps:.0f} steps ({row.base}) to {row.ours_steps:.0f}"
        rows.append([title(row.task), gain, *(share(kept.get(control)) for control in continual.CONTROLS)])
    medians = [share(float(np.nanmedian(values))) if values else "" for values in columns.values()]
    rows.append(["median of these", "", *medians])
    for stream, kept in continual.shares(entries).items():
        found = {row.method: row.mean for row in continual.found_streams(entries)[stream]}
        ours = found[continual.STREAMS[stream].ours]
        gain = f"{found['SGD']:.3g} (SGD) to {ours:.3g}"
        rows.append([title(stream), gain, *(share(kept.get(control)) for control in continual.CONTROLS)])
    names = [f"{name}, rate 0" if name == "untrained" else name for name in continual.CONTROLS]
    headings = ["", "the gain", *names]
    return table(headings, rows)


def _sane(suite: Suite, task: str) -> Mapping[str, Any]:
    return next(entry["result"] for entry in suite.records[task] if entry["key"]["phase"] == "untrained")


def liberties_table(suite: Suite) -> str:
    """Lay out ours beside the peers that have the same liberties, and momentum in other places."""
    names = [
        OURS,
        "metric, factored",
        "RMSprop with Nesterov",
        NADAMW,
        TUNED_ADAMW,
        DEFAULT_BETAS,
        "AdamW in the frame",
        "NAdamW in the frame",
        "momentum in the frame",
        "momentum on the covector",
        "metric, not conformal",
        "activity and energy",
        "alpha by schedule",
    ]
    rows = [
        [
            name,
            *(number(suite.ratio(target, name, "RMSprop with Nesterov", MISS)) for target in NAMES),
        ]
        for name in names
        if name in suite.everywhere("far")
    ]
    return table(["", *(f"steps, {target}" for target in NAMES)], rows)


def defaults_table(suite: Suite) -> str:
    """Lay out what the other tasks chose for each task, and how it did there."""
    rows = []
    for name, by_task in judged(suite).items():
        for task, judgement in by_task.items():
            tuned = suite.steps("far", task, TUNED_ADAMW)
            point = ", ".join(f"{key} {value:g}" for key, value in judgement.choice.point.items())
            rows.append(
                [
                    f"{name}: {title(task)}",
                    point,
                    number(judgement.own.median_steps, 0),
                    number(judgement.transferred.median_steps, 0),
                    number(tuned, 0),
                ]
            )
        if set(by_task) == set(suite.tasks):
            means = [
                mean_against(suite, {task: getattr(judgement, kind) for task, judgement in by_task.items()})
                for kind in ("own", "transferred")
            ]
            rows.append([f"**{name}**: mean over {TUNED_ADAMW}'s", "", *map(number, means), number(1.0)])
    headings = ["", "chosen by the other tasks", "its best rate", "their rate", f"{TUNED_ADAMW}, tuned"]
    return table(headings, rows)


def sanity_table(suite: Suite) -> str:
    """Lay out the untrained loss beside momentum's and ours at the end."""
    rows = []
    for task in suite.tasks:
        sane = _sane(suite, task)
        finals = [f"{np.median(suite.rows['far'][task][name].final):.3g}" for name in (MOMENTUM, OURS)]
        beginnings = [f"{sane[name][0]:.3g}" for name in ("untrained", "zero_rate")]  # of the same seed
        rows.append([title(task), *beginnings, *finals])
    return table(["task", "untrained", "zero rate", MOMENTUM, OURS], rows)


def records_table(suite: Suite, folder: Path) -> str:
    """Lay out where every number comes from."""
    rows = []
    for task, records in suite.records.items():
        keys = [entry["key"] for entry in records]
        fresh = sorted({seed for key in keys if key["phase"] == "fresh" for seed in key["seeds"]})
        tuning = sorted({seed for key in keys if key["phase"].startswith("tuning") for seed in key["seeds"]})
        rows.append(
            [
                f"`{folder.name}/{task}.jsonl`",
                str(len(keys)),
                f"{tuning[0]} to {tuning[-1]}",
                f"{fresh[0]} to {fresh[-1]}",
                "; ".join(sorted({_versions(entry) for entry in records.made_with.values()})),
            ]
        )
    return table(["records", "lines", "tuning seeds", "fresh seeds", "made with"], rows)


def _versions(made_with: Mapping[str, Any]) -> str:
    versions = made_with["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("jax", "optax", "riemann-optax"))

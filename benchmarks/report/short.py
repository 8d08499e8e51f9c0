"""The first page: what to use when, which part of it is the metric's, and what loses."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from benchmarks.continual.summary import rows as rows_of
from benchmarks.report import continual
from benchmarks.report.streams import every_stream, named
from benchmarks.report.suite import Suite, identified, mean_against
from benchmarks.shared.markdown import in_code, number, table, title
from benchmarks.time_to_target.methods import (
    ALIASES,
    DEFAULT_BETAS,
    DROP_IN,
    EIGENBASIS,
    EIGENBASIS_SCHEDULE_FREE,
    FACTORED,
    FACTORED_SCHEDULE_FREE,
    LEAF_MEAN,
    MOMENTUM,
    NADAMW,
    NORM_MATCHED,
    ONE_SIDED,
    ONE_SIDED_FREE,
    OURS,
    PERMUTED,
    SCHEDULE_FREE,
    SOAP,
    TUNED_ADAMW,
    VECTORS_SCHEDULE_FREE,
)
from benchmarks.time_to_target.search import MISS

NESTEROV_RMSPROP, FREE_ADAMW = "RMSprop with Nesterov", "schedule-free AdamW"
# Ours beside the peer that has the same momentum, bias correction, averaging and basis.
TWINS = (
    (OURS, NESTEROV_RMSPROP),
    (FACTORED, NESTEROV_RMSPROP),
    (FACTORED_SCHEDULE_FREE, FREE_ADAMW),
    (EIGENBASIS, SOAP),
    (EIGENBASIS_SCHEDULE_FREE, "SOAP, schedule-free"),
    (VECTORS_SCHEDULE_FREE, "SOAP with vectors, schedule-free"),
    ("NAdamW in the frame", NADAMW),
)


def over(suite: Suite, name: str, other: str) -> str:
    """Write the geometric mean over all tasks of the steps of one to the far target over another's."""
    return number(suite.ratio("far", name, other, MISS))


def of_alias(suite: Suite, alias: str) -> str:
    """Say what an alias did with nothing but its rate tuned, and with nothing tuned."""
    if alias not in suite.everywhere("far"):
        return "not run yet"
    said = (
        f"{over(suite, alias, TUNED_ADAMW)} x the steps of {TUNED_ADAMW} tuned over rate and betas, only its "
    )
    said += f"own rate tuned; {over(suite, alias, DEFAULT_BETAS)} x those of {DEFAULT_BETAS}"
    rows = suite.untuned("far", alias)
    if rows:
        said += f"; {number(mean_against(suite, rows))} x at `ro.starting_rate`, nothing tuned"
    return said


def briefly(suite: Suite, alias: str) -> str:
    """Say the same in a few words."""
    rows = suite.untuned("far", alias) if alias in suite.everywhere("far") else {}
    if not rows:
        return "not run yet"
    tuned, untuned = over(suite, alias, TUNED_ADAMW), number(mean_against(suite, rows))
    return f"{tuned} x {TUNED_ADAMW} tuned over rate and betas, {untuned} x with nothing tuned"


def _changing_inputs(entries: continual.Entries) -> list[list[str]]:
    """Return the row on images whose pixels are permuted from task to task, if it is recorded."""
    stream = "online_permuted"
    found = {row.method: row for row in rows_of(entries, stream, "mnist")}
    about = continual.STREAMS[stream]
    if about.ours not in found:
        return []
    ours = found[about.ours]
    rival = next(row for row in found.values() if about.methods[row.method].role == "peer")
    return [
        [
            "the same, and it is the inputs that change",
            "activity metric with a memory of 1,000 updates, behind it `add_isometry_pull`, round both "
            "`reset_units`",
            f"permuted MNIST: {ours.mean:.2f}%; {rival.method} {rival.mean:.2f}%, paired "
            f"{-rival.difference:+.2f} [{-rival.high:+.2f}, {-rival.low:+.2f}] over {rival.seeds} seeds",
        ]
    ]


def recommendations(suite: Suite, everything: Suite, entries: continual.Entries) -> str:
    """Lay out what to take for what: ``suite`` has all methods, ``everything`` all tasks."""
    steps = {
        name: suite.steps("far", "regression", name) for name in (MOMENTUM, FACTORED, VECTORS_SCHEDULE_FREE)
    }
    smooth = "; ".join(f"{name}: {number(value, 0)}" for name, value in steps.items())
    rows = [
        ["a model that AdamW trains", f"`ro.{DROP_IN}` at AdamW's rate", of_alias(everything, DROP_IN)],
        [
            "the same, and a run without a fixed end",
            f"`ro.{SCHEDULE_FREE}`",
            of_alias(everything, SCHEDULE_FREE),
        ],
        [
            "either, and state of 1.5 x the weights",
            f"{in_code(ONE_SIDED)} at AdamW's rate, or {in_code(ONE_SIDED_FREE)}",
            f"{of_alias(everything, ONE_SIDED)}; the second {briefly(everything, ONE_SIDED_FREE)}",
        ],
        [
            "matrices, and memory to spare",
            "the activity metric `in_eigenbasis`, schedule-free",
            f"{over(suite, EIGENBASIS_SCHEDULE_FREE, TUNED_ADAMW)} x tuned {TUNED_ADAMW}; "
            f'{over(suite, VECTORS_SCHEDULE_FREE, TUNED_ADAMW)} x with `sides="vector"`. SOAP: '
            f"{over(suite, TWINS[4][1], TUNED_ADAMW)} and {over(suite, TWINS[5][1], TUNED_ADAMW)}, averaged",
        ],
        [
            "a smooth problem without noise",
            'momentum, or `in_eigenbasis(..., sides="vector")`',
            f"regression, steps: {smooth}",
        ],
    ]
    found = continual.found_streams(entries)
    if continual.SLOW in found:
        stream = continual.STREAMS[continual.SLOW]
        ours = next(row for row in found[continual.SLOW] if row.method == stream.ours)
        rival = next(row for row in found[continual.SLOW] if stream.methods[row.method].role == "peer")
        rows.append(
            [
                "a task that keeps changing, where the network must stay able to learn",
                "activity metric, pull to the initial weights and idle noise between the stages",
                f"error {ours.mean:.3f}; {rival.method} {rival.mean:.3f}, paired {rival.difference:+.3f} "
                f"[{rival.low:+.3f}, {rival.high:+.3f}] over {rival.seeds} seeds",
            ]
        )
    rows += _changing_inputs(entries)
    least = [
        min((row.means["all tasks"] for row in continual.of_method(entries, method)), default=np.nan)
        for method in (continual.BOUNDED, continual.BOUNDED_PENALTY, continual.PENALTY)
    ]
    if np.all(np.isfinite(least)):
        rows.append(
            [
                "tasks one after the other, no wish to tune the penalty",
                "`alpha = rate * lambda` with a Fisher phi, its mean bounded",
                f"at least {least[0]:.1f}% over all tasks at every lambda tried from "
                f"{continual.LEAST_STRENGTH:g} on; EWC with the same bound {least[1]:.1f}%, "
                f"plain EWC {least[2]:.1f}%",
            ]
        )
    return table(["you have", "take", "it showed"], rows)


def twins_table(suite: Suite) -> str:
    """Lay out ours beside the peers with the same liberties."""
    rows = []
    for name, peer in TWINS:
        steps = {one: [suite.steps("far", task, one, MISS) for task in suite.tasks] for one in (name, peer)}
        ahead = sum(ours < theirs for ours, theirs in zip(steps[name], steps[peer], strict=True))
        ratios = [number(suite.ratio(target, name, peer, MISS)) for target in ("near", "far")]
        rows.append([name, peer, *ratios, f"{ahead} of {len(suite.tasks)}"])
    return table(["ours", "its twin", "steps, near", "steps, far", "ahead on"], rows)


def kept(suite: Suite) -> str:
    """Say what the controls keep of the gain over momentum, in the median over tasks."""
    rows = identified(suite)
    medians = {
        name: float(np.nanmedian([row.shares[name] for row in rows]))
        for name in (PERMUTED, LEAF_MEAN, NORM_MATCHED)
    }
    return ", ".join(
        f"{name} {'nothing' if share <= 0 else f'{100 * share:.0f}%'}" for name, share in medians.items()
    )


def listed(names: Iterable[str]) -> str:
    """Write names one after the other, in quotes because some have a comma of their own.

    Examples:
      >>> print(listed(["SOAP, schedule-free", "SOAP"]))
      "SOAP, schedule-free", "SOAP"
    """
    return ", ".join(f'"{name}"' for name in names)


def behind(ahead: Sequence[str], parts: Collection[str]) -> str:
    """Say who is ahead; another form of ours that does better is no rival, but has rivals of its own.

    Examples:
      >>> print(behind(["one", "metric + pull", "two"], ["metric + pull"]))
      ours is behind "one", "two"; our form "metric + pull" is behind "one"
    """
    rivals = [name for name in ahead if name not in parts]
    said = [f"ours is behind {listed(rivals)}"] if rivals else []
    for part in (name for name in ahead if name in parts):
        still = [name for name in rivals if ahead.index(name) < ahead.index(part)]
        said.append(f'our form "{part}" is behind {listed(still) or "nobody"}')
    return "; ".join(said)


def losses(suite: Suite, everything: Suite, entries: continual.Entries) -> str:
    """List where ours loses."""
    lines = []
    for alias in ALIASES:
        slower = []
        for task in everything.tasks if alias in everything.everywhere("far") else ():
            own, tuned = (everything.steps("far", task, name) for name in (alias, TUNED_ADAMW))
            if own > tuned:
                steps = {name: row.median_steps for name, row in everything.rows["far"][task].items()}
                best = min(steps, key=steps.__getitem__)
                fewest = f'fewest: {number(steps[best], 0)}, "{best}"'
                slower.append(f"{title(task)} ({number(own, 0)}, against {number(tuned, 0)}; {fewest})")
        if slower:
            lines.append(
                f"{in_code(alias)} needs more steps than tuned {TUNED_ADAMW} on {', '.join(slower)}."
            )
    ratios = {name: suite.ratio("far", name, TUNED_ADAMW, MISS) for name in suite.everywhere("far")}
    ahead = sorted((name for name in ratios if ratios[name] < ratios[FACTORED]), key=ratios.__getitem__)
    if ahead:
        lines.append(f"Over all tasks these need fewer steps than {FACTORED}: {listed(ahead)}.")
    streams = []
    for (stream, data), found in every_stream(entries).items():
        about = continual.STREAMS[stream]
        # A control is a part of ours, and the tables say what it keeps.
        methods = [row.method for row in found if about.methods[row.method].role != "control"]
        ahead = methods[: methods.index(about.ours)]
        parts = {name for name in ahead if about.methods[name].role == "ours"}
        if set(ahead) - parts:
            streams.append(f"on {named(stream, data)} {behind(ahead, parts)}")
    if streams:
        lines.append(f"Of the streams whose task changes: {'; '.join(streams)}.")
    return "\n".join(f"- {line}" for line in lines)


def opening(suite: Suite, everything: Suite, entries: continual.Entries, targets: str) -> str:
    """Return the first page."""
    return f"""\
# Where the metric wins, where it does not, and why

Written by `python -m benchmarks.report` from `benchmarks/results/` alone. Every number is of fresh seeds that
no tuning has seen, unless a table says that it is of one seed. All optimisers had 42 to 48 trials. A run that
does not arrive counts as a miss.

## What to use when

{recommendations(suite, everything, entries)}

## Where it loses

{losses(suite, everything, entries)}

## Which part of it is the metric's

Peers with the same settings gain most of what the metric gains over AdamW: bias correction, a tuned memory
and momentum, Nesterov's momentum, averaging, a basis. Steps over the steps of such a twin:

{twins_table(suite)}

Of the gain over well-tuned momentum the controls keep, in the median over tasks: {kept(suite)}. What is
left is its direction, where RMSprop points too, and its form: half of the state, a finite alpha, other phis.

## What was to be shown

{targets}
"""

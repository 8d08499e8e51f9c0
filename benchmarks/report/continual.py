"""The chapter on continual learning: its claims and tables, from the records alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.continual.family import APART, FAMILIES, TOGETHER, Judged, judged
from benchmarks.continual.measures import DEAD, RANK
from benchmarks.continual.methods import SHAKEN
from benchmarks.continual.streams import STREAMS
from benchmarks.continual.summary import Row, SweepRow, rows, sweep_rows
from benchmarks.report.claims import Claim
from benchmarks.report.streams import every_stream, readers_table
from benchmarks.shared.markdown import number, table

Entries = Sequence[Any]
SLOW, PERMUTED_DIGITS = "slowly_changing", "permuted_digits"
LEAST_STRENGTH = 5.0  # of the pull that claims are about: weaker ones forget, with the metric or without
# Ours on permuted digits with the mean of E bounded, and the penalty that it makes an implicit step of.
BOUNDED, PENALTY, BOUNDED_PENALTY = "metric, bounded", "EWC", "re-tuned base: EWC, bounded"
CONTROLS = {
    "permuted phi": ("permuted phi",),
    "leaf-mean phi": ("leaf-mean phi",),
    "norm-matched base": ("norm-matched base", "norm-matched gradient + pull"),
    "re-tuned base": ("re-tuned base: pull + noise", "re-tuned base: EWC, bounded"),
    "untrained": ("untrained",),
}


def found_streams(entries: Entries) -> dict[str, list[Row]]:
    """Return the rows of every stream that has a run of ours."""
    every = {stream: rows(entries, stream) for stream in STREAMS}
    return {stream: found for stream, found in every.items() if found}


def of_method(entries: Entries, method: str) -> list[SweepRow]:
    """Return what a method reached on permuted digits at each strength of the pull that claims are about."""
    return [
        row
        for row in sweep_rows(entries, PERMUTED_DIGITS)
        if row.method == method and row.point["strength"] >= LEAST_STRENGTH
    ]


def claims(entries: Entries) -> list[Claim]:
    """Return what was to be shown of continual learning, as far as it has been run."""
    result = []
    slow = {row.method: row for row in rows(entries, SLOW)}
    if slow:
        ours = slow[STREAMS[SLOW].ours]
        result.append(Claim(f"{SLOW}: error of {ours.method}", ours.mean, 0.48, f"{ours.seeds} seeds"))
    rivals = [slow[name] for name in SHAKEN if name in slow]
    if rivals:
        rival = min(rivals, key=lambda row: row.mean)
        note = (
            f"lower end of the 95% interval of the mean, {number(rival.difference, 3)}, over {rival.seeds} "
            f"pairs of runs; ours ahead on {rival.ours_ahead}"
        )
        result.append(Claim(f"{SLOW}: error of {rival.method} less ours", rival.low, 0.015, note, True))
    by_method = {name: of_method(entries, name) for name in (BOUNDED, PENALTY)}
    if all(by_method.values()):
        strengths = [row.point["strength"] for row in by_method[BOUNDED]]
        span = f"over lambda {min(strengths):g} to {max(strengths):g}"
        for measure, bound in (("all tasks", 62.0), ("last task", 90.0)):
            least = min(row.means[measure] for row in by_method[BOUNDED])
            text = f"permuted digits: least accuracy, {measure}, {span}"
            result.append(Claim(text, least, bound, BOUNDED, True))
        collapsed = min(row.means["all tasks"] for row in by_method[PENALTY])
        text = f"permuted digits: least accuracy of plain {PENALTY} there, which was to collapse"
        result.append(Claim(text, collapsed, 20.0))
    return result


def stream_table(found: Sequence[Row]) -> str:
    """Lay out the methods of one stream, the best first."""
    ours = STREAMS[found[0].stream].ours
    columns = [name for name in ("forgetting", RANK, DEAD) if any(name in row.others for row in found)]

    def difference(row: Row) -> list[str]:
        if row.method == ours:
            return ["", ""]
        interval = f"{row.difference:+.3g} [{row.low:+.3g}, {row.high:+.3g}]"
        return [interval, f"{row.ours_ahead} of {row.seeds}"]

    lines = [
        [
            f"**{row.method}**" if row.method == ours else row.method,
            f"{row.mean:.4g} ± {row.error:.2g}" if np.isfinite(row.mean) else f"{row.diverged} diverged",
            *difference(row),
            "; ".join(
                f"{name} {mean:.3g}"
                for name, mean in row.others.items()
                if np.isfinite(mean) and name not in columns
            ),
            str(row.trials),
            *(number(row.others.get(name, np.nan), 1) for name in columns),
        ]
        for row in found
    ]
    headings = ["method", "mean", "difference to ours [95%]", "ours ahead", "besides", "trials", *columns]
    return table(headings, lines)


def sweep_table(entries: Entries) -> str:
    """Lay out the permuted digits over the strength of the pull: all tasks / the last one."""
    swept = sweep_rows(entries, PERMUTED_DIGITS)
    strengths = sorted({row.point["strength"] for row in swept})
    lines = []
    for method in dict.fromkeys(row.method for row in swept):
        means = {row.point["strength"]: row.means for row in swept if row.method == method}
        cells = [
            f"{means[s]['all tasks']:.1f} / {means[s]['last task']:.1f}" if s in means else ""
            for s in strengths
        ]
        lines.append([method, *cells])
    return table(["accuracy, all tasks / last", *(f"lambda {s:g}" for s in strengths)], lines)


def family_table(entries: Entries, family: str) -> str:
    """Lay out the methods with one setting for all streams of a family, and with the others' choice."""
    phases = {TOGETHER: "one setting for all", APART: "as the others choose"}
    found = {
        (stream, phase): {row.method: row for row in judged(entries, stream, phase)}
        for stream in FAMILIES[family]
        for phase in phases
    }
    if not all(found.values()):
        return ""
    everywhere = [
        method for method in next(iter(found.values())) if all(method in of for of in found.values())
    ]

    def cell(row: Judged) -> str:
        text = f"{row.mean:.4g} ± {row.error:.2g}"
        return f"**{text}**" if row.leads else text

    headings = [f"{stream.replace('_', ' ')}: {phases[phase]}" for stream, phase in found]
    lines = [[method, *(cell(of[method]) for of in found.values())] for method in everywhere]
    return table(["method", *headings], lines)


def shares(entries: Entries) -> dict[str, dict[str, float]]:
    """Return, for each stream, the share of ours' gain over plain SGD that each control keeps."""
    result = {}
    for stream, found in found_streams(entries).items():
        by_name = {row.method: row for row in found}
        if "SGD" not in by_name:
            continue
        result[stream] = {
            control: by_name[name].gain_kept
            for control, names in CONTROLS.items()
            for name in names
            if name in by_name and by_name[name].gain_kept is not None
        }
    return result


def chapter(entries: Entries) -> str:
    """Return the chapter."""
    every = every_stream(entries)
    settings = {family: family_table(entries, family) for family in FAMILIES}
    one_setting = "\n\n".join(laid_out for laid_out in settings.values() if laid_out)
    parts = []
    for (stream, data), found in every.items():
        words = STREAMS[stream].title + ("" if data == "digits" else f"; {data}")
        parts.append(f"### {words[0].upper()}{words[1:]}\n\n{stream_table(found)}")
    streams = "\n\n".join(parts)
    return f"""\
## Continual learning

Streams whose task changes without an end. Every method has the same number of trials, on two to four
tuning seeds; means and standard errors are over fresh seeds, differences are paired. Rivals are
implemented from their papers in `benchmarks/continual/peers/`, each tested against its formulas step by step.
On the regression the runs of continual backprop were made before its utility was corrected for the bias of
its mean, as the authors' program does; they have not been repeated, and ReDo, self-normalised resets, soft
resets, spectral pull, AdamO and FIRE have not been run there. Continual backprop and RMSprop with L2-Init
have two rounds of trials more than the others on label-permuted digits and on the noise shift.

### All streams

Each method has a row. Means and standard errors over fresh seeds; bold are the best method and those whose
mean is within one standard error of the best. The mean rank is over the streams that a method takes part in.

{readers_table(every)}

### One setting for several streams

All streams together choose a setting for each method; then each stream takes the setting that the others
choose. Bold are the best method and those not behind it by more than a standard error of the paired
difference (`python -m benchmarks.continual --family`).

{one_setting or "Not recorded yet."}

{streams}

### The strength of the pull, on permuted digits

The rate as chosen; the penalty is part of the loss in EWC, and an implicit step under the metric.

{sweep_table(entries)}

`python -m benchmarks.continual` goes on where `results/continual.jsonl` ends.
"""

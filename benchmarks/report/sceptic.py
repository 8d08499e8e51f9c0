"""How a sceptic would attack each claim, and what the records answer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.eigenbasis.tables import TIMES
from benchmarks.report import continual, robustness
from benchmarks.report.short import TWINS, kept, over
from benchmarks.report.streams import every_stream
from benchmarks.report.suite import Suite, mean_against
from benchmarks.robustness.summary import Rows
from benchmarks.shared.markdown import number, title
from benchmarks.time_to_target.methods import (
    ALIASES,
    DROP_IN,
    MUON,
    NADAMW,
    ONE_SIDED,
    SCHEDULE_FREE,
    SOAP,
    TUNED_ADAMW,
)
from benchmarks.time_to_target.search import FULL, MISS

LARGEST = "gpt_million"
# Of the forms of the eigenbasis and their peers, as a reader knows them.
SHOWN_FORMS = {
    "eigenbasis, one-sided": "`riemannian_eigenbasis`",
    "eigenbasis, both sides": '`riemannian_eigenbasis(sides="both")`',
    "Muon": "Muon",
    "SOAP, Nesterov": "SOAP with Nesterov",
    "SOAP, one-sided, Nesterov": "one-sided SOAP with Nesterov",
    "AdamW": "AdamW",
}
FREE_ADAMW = "schedule-free AdamW"


def _ahead(suite: Suite, name: str, peer: str) -> str:
    """Say on how many tasks one needs fewer steps to the far target than another."""
    steps = [[suite.steps("far", task, one, MISS) for one in (name, peer)] for task in suite.tasks]
    return f"{sum(ours < theirs for ours, theirs in steps)} of {len(steps)}"


def beside(everything: Suite, ours: str, peer: str) -> str:
    """Say how one of ours, with its rate alone tuned, stands beside a peer with as much, and more, tuned."""
    published, everywhere = f"{peer}, published", set(everything.everywhere("far"))
    if not {ours, published} <= everywhere:
        return "Not run yet."
    forms = [name for name in (published, peer) if name in everywhere]
    rows = everything.rows["far"][everything.of_state]
    kept, theirs = (rows[name].state for name in (ours, published))
    needed = [f"with its rate alone {over(everything, published, TUNED_ADAMW)}"]
    needed += [f"with its betas too {over(everything, name, TUNED_ADAMW)}" for name in forms[1:]]
    return (
        f"`ro.{ours}` with its rate alone tuned takes {over(everything, ours, TUNED_ADAMW)} of tuned "
        f"{TUNED_ADAMW}'s steps, {peer} {', '.join(needed)}. Ours needs fewer on "
        f"{' and '.join(_ahead(everything, ours, name) for name in forms)} tasks, and its state is "
        f"{number(kept / theirs)} of the other's."
    )


def untuned(everything: Suite, name: str) -> str:
    """Write the steps of a method with nothing tuned over those of tuned AdamW, and its misses."""
    rows = everything.untuned("far", name)
    if not rows:
        return "a number not yet run"
    misses = sum(np.isinf(row.median_steps) for row in rows.values())
    return f"{number(mean_against(everything, rows))} ({misses} of {len(rows)} missed)"


def of_forms(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how the recommended forms of the eigenbasis and their peers stand on GPTs, shortest run first."""
    if not records:
        return ""
    shown = []
    for record in sorted(records.values(), key=lambda one: int(one["protocol"]["length"]["steps"])):
        length = record["protocol"]["length"]
        losses = sorted(
            (float(np.mean(row["validation_by_seed"])), SHOWN_FORMS[row["form"]])
            for row in record["rows"]
            if row["form"] in SHOWN_FORMS
        )
        size = f"width {length['width']}, depth {length['depth']}, {length['steps']:,} steps"
        shown.append(f"{size}: {', '.join(f'{name} {loss:.3f}' for loss, name in losses)}")
    return (
        " Loss on other text of GPTs that read bytes, means of fresh seeds, each at its best rate: "
        f"{'; '.join(shown)}. [All forms](../docs/evidence.md)."
    )


def of_tables(record: Mapping[str, Any] | None) -> str:
    """Say what a higher rate of the tables does to each optimiser on the small GPT, if that has been run."""
    loss = {
        row["form"]: float(np.mean(row["validation_by_seed"])) for row in (record or {"rows": []})["rows"]
    }
    ending = f", tables {TIMES} times the rate"
    pairs = sorted((loss[name], name.removesuffix(ending)) for name in loss if name.endswith(ending))
    if not pairs:
        return ""
    shown = "; ".join(f"{name} {faster:.3f} ({loss[name]:.3f})" for faster, name in pairs)
    return (
        f"- *It is the rate of the embedding.* A part is. With {TIMES} times the rate for tables of tokens "
        f"and positions (and without) the small GPT ends at: {shown}.\n"
    )


def at_a_million(recorded: Suite) -> str:
    """Say how the optimisers stand on the largest task; empty where it has not been run."""
    rows = recorded.rows["far"].get(LARGEST, {})
    if not rows:
        return ""
    arrived = sorted((row.median_steps, name) for name, row in rows.items() if np.isfinite(row.median_steps))
    missed = sorted(name for name, row in rows.items() if not np.isfinite(row.median_steps))
    steps = "; ".join(f"{name} {median:.0f}" for median, name in arrived)
    others = f" Missed: {'; '.join(missed)}." if missed else ""
    return f" On {title(LARGEST)}, steps to the far target: {steps}.{others}"


def chapter(
    suite: Suite,
    everything: Suite,
    recorded: Suite,
    entries: continual.Entries,
    disturbed: Rows,
    forms: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the chapter.

    ``suite`` has all methods, ``everything`` all tasks that all have run, ``recorded`` those of some as well;
    ``forms`` are the records of the forms of the eigenbasis by the size of the network.
    """
    streams = len(every_stream(entries))
    twins = "; ".join(
        f"{name} {number(suite.ratio('far', name, peer, MISS))} of the steps of {peer}"
        for name, peer in TWINS[:2]
    )
    at_no_rate = "; ".join(
        f"{name.removesuffix(', published')} {untuned(everything, name)}"
        for name in (*ALIASES, f"{NADAMW}, published", f"{FREE_ADAMW}, published")
    )
    return f"""\
## How a sceptic would attack this

- *Yours was tuned, AdamW was not.* Every optimiser had {len(FULL.coarse) + FULL.fine_trials} trials on every
  task, more where its best rate was on the edge. AdamW's betas were tuned too; of the aliases only the rate.
- *The targets suit you.* They were frozen from tuned momentum and tuned AdamW before anything else had run.
- *You report the seeds you tuned on.* Tuning used seeds 0 to 3, each number is of others; misses are counted.
- *It is only Nesterov's momentum.* Much of it is: {beside(everything, DROP_IN, NADAMW)}
- *Schedule-free AdamW is better.* With its betas tuned it is: {beside(everything, SCHEDULE_FREE, FREE_ADAMW)}
- *Muon is better on matrices.* {beside(everything, ONE_SIDED, MUON)}
- *SOAP is better.* {beside(everything, ONE_SIDED, SOAP)}
- *Any scale per weight would do.* Of the gain over momentum the controls keep, in the median: \
{kept(suite)}. With the same liberties they take: {twins}.
- *Nobody has your rate.* At a rate computed from the number of weights alone, over tuned AdamW's steps: \
{at_no_rate}; Prodigy, which finds its own rate, {untuned(everything, "Prodigy")}.
{of_tables(forms.get("small"))}{robustness.sentence(disturbed)}\
- *These are toys.* Yes. Nothing here was measured on an accelerator. Ranks change with size: try your own \
model before you believe one.{at_a_million(recorded)}{of_forms(forms)}
- *Steps are not seconds.* `python -m benchmarks.step_cost` times updates; [tables](TABLES.md) have seconds.
- *The rivals are straw men.* Peers are Optax's own where Optax has them; those on the \
{streams} streams come from their papers and are tested against the formulas. \
`kfac-jax` does not run on the JAX used here.
"""

"""The report: what to use when, what loses, and the tables that say so; a reader's page."""

import json
from pathlib import Path

from benchmarks.eigenbasis.sizes import SCALES
from benchmarks.report import continual, drop_in, energy, robustness, sceptic, short
from benchmarks.report import page as parts
from benchmarks.report.claims import claims, of_aliases
from benchmarks.report.suite import Suite, read
from benchmarks.shared.markdown import title
from benchmarks.shared.records import Records
from benchmarks.time_to_target.methods import DEFAULT_BETAS, TUNED_ADAMW
from benchmarks.time_to_target.search import FULL, MISS
from benchmarks.time_to_target.tasks import NAMES

HELD = (
    "*state*: bytes per byte of parameters, on the language model. *memory*: all bytes that a training step "
    "holds at once, over AdamW's."
)


def page_of_aliases(suite: Suite, core: Suite) -> str:
    """Return the chapter on whole optimisers as people take them."""
    further = [_named(suite, task) for task in suite.tasks if task not in core.tasks]
    added = f" Among the tasks are {', '.join(further)} (each in [all tables](TABLES.md))." if further else ""
    absent = [title(task) for task in NAMES if task not in suite.tasks]
    added += f" Not recorded, or in part, and left out: {', '.join(absent)}." if absent else ""
    return f"""\
## Nothing tuned but the rate

Whole optimisers at their published or recommended defaults, only the rate tuned; beside them those with more
tuned, which had as many trials. Geometric means over {len(suite.tasks)} tasks of the median steps on fresh
seeds, over those of tuned {TUNED_ADAMW}; a miss counts as {MISS:g} budgets, and the number of misses stands
beside. {HELD}{added}

{parts.aliases_table(suite)}

Nothing tuned at all: the rate is `ro.starting_rate`, from the number of weights; Prodigy finds its own.

{parts.untuned_table(suite)}
"""


def _named(suite: Suite, task: str) -> str:
    """Name a task, and the number of its training examples where it depends on what the user has."""
    counts = {entry["key"].get("examples") for entry in suite.records[task]} - {None}
    return " ".join([title(task), *(f"of {count:,} images" for count in counts)])


def page_of_suite(suite: Suite) -> str:
    """Return the chapter on time to target."""
    coarse, tasks = len(FULL.coarse), len(suite.tasks)
    trials = coarse + FULL.fine_trials
    return f"""\
## Time to target

{tasks} tasks small enough for two cores, {trials} trials for every optimiser on each: {coarse} coarse rates,
then {FULL.fine_trials} finer ones dealt out over all points of the other hyper-parameters, more while the
best is on the edge; then 10 or 20 fresh seeds. Runs warm up over 5% of their steps and cool to 0 along a
cosine (schedule-free: stay constant). Targets were frozen from tuned momentum and tuned AdamW before all
else was run: after four fifths of its steps the weaker of the two had reached *near*, the stronger *far*.

Geometric means of the median steps, over those of tuned {TUNED_ADAMW}; a miss (at least half of the
seeds) counts as {MISS:g} budgets. *energy*: `sum |dw|` up to the far target over that of {DEFAULT_BETAS},
over the tasks where both reach it. *state*, *memory*: as above. *step*: its seconds over AdamW's; none where
the machine was shared. Peers here reach at least half the far targets; all others: [all tables](TABLES.md).

{parts.suite_table(suite, short=True)}

![Performance profiles](results/report_profiles.png)
"""


def page(suite: Suite, results: Path) -> str:
    """Return the report."""
    entries = list(Records(results / "continual.jsonl"))
    dropped_in = Records(results / "drop_in.jsonl")
    disturbed = robustness.recorded(results / "robustness.jsonl")
    forms = {
        size: json.loads(path.read_text())
        for size in SCALES
        if (path := results / f"eigenbasis_forms{'' if size == 'small' else f'_{size}'}.json").exists()
    }
    core, recorded = suite.complete, read(results / "time_to_target")
    spent = energy.claims(Records(results / "energy.jsonl"))
    found = [*of_aliases(suite), *claims(core), *continual.claims(entries), *spent]
    targets = f"""\
{parts.claims_table(found)}

A miss counts as {MISS:g} budgets in "found"; beside it is the ratio over the tasks that both sides reach."""
    chapters = [
        short.opening(core, suite, entries, targets),
        page_of_aliases(suite, core),
        drop_in.chapter(dropped_in),
        page_of_suite(core),
        sceptic.chapter(core, suite, recorded, entries, disturbed, forms),
    ]
    return "\n".join(filter(None, chapters))

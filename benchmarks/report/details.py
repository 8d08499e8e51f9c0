"""The second page: every table of the suite and of the streams, from which the first is drawn."""

from pathlib import Path

import numpy as np

from benchmarks.report import continual, drop_in, dying, energy, memory, robustness
from benchmarks.report import page as parts
from benchmarks.report.suite import Suite, load, read
from benchmarks.shared.markdown import quartiles, table, title
from benchmarks.shared.records import Records
from benchmarks.time_to_target.methods import OURS
from benchmarks.time_to_target.targets import NAMES, TARGETS


def of_suite(suite: Suite, entries: continual.Entries, folder: Path) -> str:
    """Return the tables on time to target."""
    return f"""\
## Time to target, further

How the trials were made and the table over all tasks are in [the report](REPORT.md).

### All methods

The columns are those of the report.

{parts.suite_table(suite)}

### What the metric's direction does

How much of each gain remains when a control removes the metric's direction. On the tasks it is the
gain of "{OURS}" over the re-tuned base (the better of momentum and Nesterov, both tuned), in the logarithm
of the steps to the near target; on the streams the gain over tuned plain SGD. The controls, each tuned
anew: the same values of phi shuffled within each leaf (*permuted phi*), one value per leaf (*leaf-mean
phi*), the base's direction at the metric's step length (*norm-matched base*), everything but the metric
(*re-tuned base*).

{parts.controls_table(suite, entries)}

Sanity check: at learning rate 0 the loss stays where it started.

{parts.sanity_table(suite)}

### What is the metric's, and what is Nesterov's, bias correction's, and the memory's

The same liberties for all: steps over those of RMSprop with bias correction, Nesterov momentum behind
it, and both decays tuned.

{parts.liberties_table(suite)}

### Defaults, chosen by the other tasks

For each task the point (alpha, decay, momentum) with the fewest steps on all *other* tasks, with only
its rate tuned on the task itself, and then with the median rate of the other tasks as well. Median steps
to the far target.

{parts.defaults_table(suite)}

### Task by task

Median steps [quartiles] over the fresh seeds to the far target (in brackets):

{parts.task_table(suite, "far")}

and to the near one:

{parts.task_table(suite, "near")}

Seconds to the far target on one core, training + compiling:

{parts.seconds_table(suite)}

Loss at the end on examples that were never trained on (of the runs tuned for the far target):

{parts.held_out_table(suite)}

![Steps by number of trials](results/report_trials.png)

![Steps by rate](results/report_rates.png)

![Loss by energy](results/report_energy.png)

(A run that rises to twice its first loss is not drawn further.)

{memory.chapter(load(folder))}{of_other_tasks(folder)}### Records

{parts.records_table(load(folder), folder)}

`python -m benchmarks.time_to_target` goes on where its records end; with `--tasks`, `--optimizers` and
another `--out` it repeats any cell. On the same machine a repeated cell of an unchanged program agrees to the
last digit. Those of riemannian_eigenbasis are from before lines were tempered by a sum instead of a mean, and
before the refresh of bases was written anew: the bases are the same, their roundings are not.
"""


def of_other_tasks(folder: Path) -> str:
    """Return a table of each task that has records, but not of every method: the others leave it out."""
    found, whole = read(folder), load(folder).complete.tasks
    tables = []
    for task in found.tasks:
        far, near = (found.rows[target][task] for target in NAMES[::-1])
        if task in whole or not far:
            continue
        ranked = sorted(far, key=lambda name, far=far: (far[name].median_steps, np.median(far[name].final)))
        rows = []
        for name in ranked:
            held_out = np.median(far[name].held_out)
            steps = [quartiles(by_name[name].steps) if name in by_name else "-" for by_name in (far, near)]
            rows.append([name, *steps, f"{held_out:.3g}" if np.isfinite(held_out) else "-"])
        goals = TARGETS[task]
        headings = [title(task), f"steps, far ({goals.far:g})", f"steps, near ({goals.near:g})", "held out"]
        tables.append(table(headings, rows))
    if not tables:
        return ""
    about = """\
### Tasks that only some optimisers have run

Median steps [quartiles] to both targets, the fewest to the far one first, and the loss at the end on examples
that were never trained on (of the runs tuned for the far target). On "mnist convnet" riemannian_eigenbasis of
gradients ran without early refreshes of its bases, which were of plain correlations."""
    return "\n\n".join([about, *tables]) + "\n\n"


def page(suite: Suite, results: Path) -> str:
    """Return the page."""
    entries = list(Records(results / "continual.jsonl"))
    opening = """\
# All tables

Written by `python -m benchmarks.report` from `benchmarks/results/` alone, as [the report](REPORT.md) is.
"""
    relative = drop_in.relative_chapter(Records(results / "drop_in.jsonl"))
    disturbed = robustness.chapter(robustness.recorded(results / "robustness.jsonl"))
    chapters = [opening, of_suite(suite, entries, results / "time_to_target"), relative, disturbed]
    spent = energy.chapter(Records(results / "energy.jsonl"))
    return "\n".join(filter(None, [*chapters, continual.chapter(entries), dying.chapter(results), spent]))

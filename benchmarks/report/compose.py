"""The report as a whole: what to use when on one page, then the tables."""

from pathlib import Path

from benchmarks.report import continual, drop_in, short
from benchmarks.report import page as parts
from benchmarks.report.claims import claims, of_aliases
from benchmarks.report.suite import Suite
from benchmarks.shared.markdown import title
from benchmarks.shared.records import Records
from benchmarks.time_to_target.methods import DEFAULT_BETAS, OURS, TUNED_ADAMW
from benchmarks.time_to_target.search import FULL, MISS


def page_of_aliases(suite: Suite, core: Suite) -> str:
    """Return the chapter on whole optimisers as people take them."""
    further = [title(task) for task in suite.tasks if task not in core.tasks]
    added = f" The tasks {', '.join(further)} are among them." if further else ""
    return f"""\
## Nothing tuned but the rate

Whole optimisers at their published or recommended defaults, beside {TUNED_ADAMW} with its betas tuned too.
Geometric means over {len(suite.tasks)} tasks of the median steps on fresh seeds, over those of tuned
{TUNED_ADAMW}; a miss counts as {MISS:g} budgets, and the number of misses stands beside.{added} In the last
columns the rate is not tuned either: it is the one that the library recommends.

{parts.aliases_table(suite)}
"""


def page_of_suite(suite: Suite, entries: continual.Entries, folder: Path) -> str:
    """Return the chapter on time to target."""
    trials = len(FULL.coarse) + FULL.fine_trials
    tasks = len(suite.tasks)
    return f"""\
## Time to target

{tasks} tasks small enough for two cores, all optimisers with the same {trials} trials each on every
task: {len(FULL.coarse)} coarse rates, then {FULL.fine_trials} finer ones dealt out over all points of
the other hyper-parameters, continued while the best is on the edge. Each is then run once more on 10 or
20 fresh seeds. Every run warms up over 5% of its steps and cools to 0 along a cosine (schedule-free:
stays constant). Targets were frozen from tuned momentum and tuned AdamW before anything else had been
run: *near* is what the weaker of the two had reached after four fifths of its steps, *far* what the
stronger had.

### All optimisers over all tasks

Geometric means of the median steps, over those of tuned {TUNED_ADAMW}; a miss (at least half of the
fresh seeds) counts as {MISS:g} budgets, and their number stands beside. *energy*: `sum |dw|` up to the
far target over that of {DEFAULT_BETAS}, over the tasks where both reach it. *state*: bytes per byte of
parameters, on the last task. *step*: seconds of a whole training step over AdamW's.

{parts.suite_table(suite)}

![Performance profiles](results/report_profiles.png)

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

### Records

{parts.records_table(suite, folder)}

`python -m benchmarks.time_to_target` goes on where its records end; with `--tasks`, `--optimizers` and
another `--out` it repeats any cell. On the same machine a repeated cell agrees to the last digit.
"""


def page(suite: Suite, results: Path) -> str:
    """Return the whole report."""
    entries = list(Records(results / "continual.jsonl"))
    core = suite.complete
    found = [*of_aliases(suite), *claims(core), *continual.claims(entries)]
    targets = f"""\
{parts.claims_table(found)}

Where either side misses a target, the miss counts as {MISS:g} budgets in "found", and the ratio over the
tasks that both reach stands beside it."""
    chapters = [
        short.opening(core, suite, entries, targets),
        page_of_aliases(suite, core),
        drop_in.chapter(Records(results / "drop_in.jsonl")),
        page_of_suite(core, entries, results / "time_to_target"),
        continual.chapter(entries),
    ]
    return "\n".join(filter(None, chapters))

"""The table of all problems."""

from benchmarks.other_losses.problems import PROBLEMS
from benchmarks.other_losses.runs import METHODS, Row

# What is measured, in the words of a heading.
HEADINGS = {
    ("gan", "distance"): "GAN, distance",
    ("policy", "seconds"): "policy, seconds of 4",
    ("factorisation", "held out"): "tables, held-out error",
    ("normalised", "statistics made anew"): "BatchNorm, statistics made anew",
    ("normalised", "statistics of the training"): "with those of the training",
}

Rows = dict[str, dict[str, Row]]  # by problem and method


def table_rows(found: Rows) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: means and standard errors over the fresh seeds."""
    shown = [place for place in HEADINGS if place[0] in found]
    cells = []
    for name in METHODS:
        line = [name]
        for problem, measure in shown:
            one = found[problem][name]
            line.append(f"{one.means[measure]:.3f} ± {one.errors[measure]:.3f}")
        cells.append(line)
    return ["optimiser", *(HEADINGS[place] for place in shown)], cells


def legend(found: Rows) -> str:
    """Return what the columns are, in words."""
    return "; ".join(PROBLEMS[name].title for name in found) + "."

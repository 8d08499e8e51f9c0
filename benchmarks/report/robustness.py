"""What a disturbance costs: the chapter on robustness, from records alone."""

from pathlib import Path

import numpy as np

from benchmarks.report.drop_in import NotRecordedError, refuse
from benchmarks.robustness.disturbances import CALM, PANELS
from benchmarks.robustness.runs import ADAMW, DROP_IN, FREE, FULL, METHODS, Laboratory
from benchmarks.robustness.summary import NEAR, Rows, rows, table_rows
from benchmarks.shared.markdown import table
from benchmarks.shared.records import Records


def recorded(path: Path) -> Rows:
    """Return all rows, none where a run is missing."""
    try:
        return rows(Laboratory(Records(path), FULL, refuse))
    except NotRecordedError:
        return {}


def counted(found: Rows, ours: str, peer: str, anew: bool = False) -> tuple[int, int]:
    """Return under how many disturbances ours has the smaller loss, and of how many."""
    measure = "retuned" if anew else "loss"
    pairs = [
        (getattr(found[key][ours][level], measure), getattr(found[key][peer][level], measure))
        for key, panel in PANELS.items()
        if peer in found[key]
        for level, conditions in panel.levels.items()
        if conditions != CALM
    ]
    return sum(bool(mine < theirs) for mine, theirs in pairs), len(pairs)


def sentence(found: Rows) -> str:
    """Say it in the sceptic's list, empty without records."""
    if not found:
        return ""
    said = []
    for ours in (DROP_IN, FREE):
        ahead, count = counted(found, ours, ADAMW)
        again = counted(found, ours, ADAMW, anew=True)[0]
        said.append(
            f"`{ours}` has the smaller loss under {ahead} of {count}, under {again} with rates chosen anew"
        )
    octaves = {
        name: np.median([row.octaves for by_name in found.values() for row in by_name.get(name, {}).values()])
        for name in (DROP_IN, ADAMW)
    }
    return (
        "- *It breaks when anything changes.* One thing at a time was changed, and the rate kept: beside\n"
        f"  `{ADAMW}`, {'; '.join(said)}. Rates within {NEAR:g} of the least loss: {octaves[DROP_IN]:g} "
        f"octaves, `{ADAMW}` {octaves[ADAMW]:g}.\n"
    )


def chapter(found: Rows) -> str:
    """Return the chapter, empty without records."""
    if not found:
        return ""
    headings, cells = table_rows(found)
    return f"""## When something changes

A perceptron (64-64-64-10) on scikit-learn's digits. The rate of every optimiser was chosen once, undisturbed,
on {len(FULL.tuning_seeds)} tuning seeds. Then one thing at a time was changed and the rate kept. Held-out
loss in nats, mean of {len(FULL.seeds)} fresh seeds; in brackets first the loss at the rate chosen anew under
the disturbance, then how many octaves of rates lie within {NEAR:g} of the least loss. The {len(METHODS)}
optimisers have their defaults.

{table(headings, cells)}

![Loss under each disturbance](results/robustness.png)
"""

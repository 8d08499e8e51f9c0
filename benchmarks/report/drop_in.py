"""The chapter on the promise of the recommended alias, from the records alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.drop_in.report import relative_rows
from benchmarks.drop_in.runs import (
    ADAMW,
    AT_ONE_RATE,
    OURS,
    RATES,
    RELATIVE,
    Laboratory,
    Run,
    called,
    rates_of,
)
from benchmarks.drop_in.shapes import MILLION, SEEDS, SHAPES, TUNING_SEED, Shape
from benchmarks.shared.markdown import table
from benchmarks.shared.records import Records
from benchmarks.shared.statistics import standard_error


class NotRecordedError(RuntimeError):
    """A run is not in the records, and a report makes none."""


def refuse(text: str) -> None:
    """Stand where a laboratory says what it runs next: a report runs nothing."""
    raise NotRecordedError(text)


def recorded(records: Records, shape: Shape, names: Sequence[str]) -> dict[str, list[Run]]:
    """Return the runs at every rate on the tuning seed, empty where one is missing."""
    laboratory = Laboratory(records, refuse)
    try:
        return {
            name: [laboratory.run(shape, name, rate, TUNING_SEED) for rate in rates_of(name)]
            for name in names
        }
    except NotRecordedError:
        return {}


def losses(runs: Sequence[Run]) -> np.ndarray:
    """Return the validation losses."""
    return np.array([run.validation for run in runs])


def _shapes_table(found: Mapping[str, Mapping[str, Sequence[Run]]]) -> str:
    rows = []
    for label, runs in found.items():
        adamw, ours = losses(runs[ADAMW]), losses(runs[OURS])
        best = int(np.argmin(adamw))
        rows.append(
            [
                label,
                f"{RATES[best]:g}",
                f"{adamw[best]:.3f}",
                f"{ours[best]:.3f}",
                f"{RATES[int(np.argmin(ours))]:g}",
                f"{ours.min():.3f}",
                f"{np.sum(ours <= adamw)} of {len(RATES)}",
            ]
        )
    headings = [
        "",
        "AdamW's best rate",
        "AdamW there",
        "ours there",
        "our best rate",
        "ours there",
        "ours no worse at",
    ]
    return table(headings, rows)


def _at_one_rate(records: Records) -> tuple[float, dict[str, list[Run]]]:
    """Return AdamW's best rate and the fresh runs at it, none where one is missing."""
    tuning = recorded(records, MILLION, [ADAMW])
    if not tuning:
        return 0.0, {}
    rate = RATES[int(np.argmin(losses(tuning[ADAMW])))]
    laboratory = Laboratory(records, refuse)
    try:
        return rate, {
            name: [laboratory.run(MILLION, name, rate, seed) for seed in SEEDS] for name in AT_ONE_RATE
        }
    except NotRecordedError:
        return 0.0, {}


def million_table(records: Records) -> str:
    """Lay out the fresh seeds at AdamW's best rate, empty where one is missing."""
    rate, found = _at_one_rate(records)
    if not found:
        return ""
    base = losses(found[ADAMW])
    rows = [
        [
            f"`{called(name, rate)}`",
            f"{losses(runs).mean():.3f}",
            f"{(losses(runs) - base).mean():+.3f} ± {standard_error(losses(runs) - base):.3f}",
            f"{4 * runs[0].state:.1f}",
        ]
        for name, runs in found.items()
    ]
    headings = ["optimiser", "loss, nats per byte", "less AdamW's, paired", "state, bytes per weight"]
    return table(headings, rows)


def _million(records: Records) -> str:
    rate, found = _at_one_rate(records)
    if not found:
        return ""
    shown = "; ".join(f"`{called(name, rate)}` {losses(runs).mean():.3f}" for name, runs in found.items())
    return f"""
A Transformer of {found[ADAMW][0].weights:,} weights at AdamW's best rate, which was chosen on another seed;
the loss on text that was not trained on, mean of {len(SEEDS)} fresh seeds: {shown}.
"""


def shapes_table(records: Records) -> str:
    """Lay out AdamW beside ours on every shape that is recorded, empty where none is."""
    found = {label: recorded(records, shape, (ADAMW, OURS)) for label, shape in SHAPES.items()}
    found = {label: runs for label, runs in found.items() if runs}
    return _shapes_table(found) if found else ""


def relative_table(records: Records) -> str:
    """Lay out the best rates of plain and relative steps, empty where no shape is recorded."""
    found = {label: recorded(records, shape, (OURS, RELATIVE)) for label, shape in SHAPES.items()}
    found = {label: runs for label, runs in found.items() if runs}
    return table(*relative_rows(found)) if found else ""


def relative_chapter(records: Records) -> str:
    """Return the section on relative steps, empty without records."""
    rows = relative_table(records)
    if not rows:
        return ""
    return f"""## Relative steps

Steps relative to the root mean square of each array (`multiply_by_parameter_scale=True`, at alpha 100), at
rates 16 times as high, on the shapes of the report: whether one rate serves more of them.

{rows}
"""


def chapter(records: Records) -> str:
    """Return the chapter, empty without records."""
    shapes = shapes_table(records)
    if not shapes:
        return ""
    return f"""\
## At AdamW's rate, no worse

`optax.adamw(rate)` and `ro.riemannian_adamw(rate)`, nothing else changed, on byte-level Transformers of
several shapes: the loss in nats per byte on text that was not trained on, at {len(RATES)} rates from
{RATES[0]:g} to {RATES[-1]:g}, one seed each.

{shapes}
{_million(records)}
![Loss by rate for each shape](results/drop_in.png)
"""

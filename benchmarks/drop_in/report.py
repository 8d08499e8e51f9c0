"""What the terminal shows."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from benchmarks.drop_in.runs import ADAMW, OURS, RATES, RELATIVE, Run, rates_of
from benchmarks.shared import terminal
from benchmarks.shared.statistics import standard_error


def losses(runs: Sequence[Run]) -> np.ndarray:
    """Return the validation losses."""
    return np.array([run.validation for run in runs])


def curves_table(found: Mapping[str, Mapping[str, Sequence[Run]]]) -> Table:
    """Lay out both optimisers' losses at every rate; the last column is ours at AdamW's best rate."""
    rows = []
    for label, by_name in found.items():
        best = int(np.argmin(losses(by_name[ADAMW])))
        for name, runs in by_name.items():
            at_best = f"{losses(runs)[best]:.3f}" + (" <=" if name == OURS and ahead(by_name) else "")
            rows.append([label, name, *(f"{loss:.3f}" for loss in losses(runs)), at_best])
    headings = ["", "optimiser", *(f"{rate:g}" for rate in RATES), "at AdamW's best rate"]
    return terminal.table("Validation loss by rate, nats per byte", headings, rows, left=("", "optimiser"))


def ahead(by_name: Mapping[str, Sequence[Run]]) -> bool:
    """Whether ours is no worse at AdamW's best rate."""
    best = int(np.argmin(losses(by_name[ADAMW])))
    return bool(losses(by_name[OURS])[best] <= losses(by_name[ADAMW])[best])


def relative_rows(found: Mapping[str, Mapping[str, Sequence[Run]]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: the best rates of plain and of relative steps, and how far they spread."""
    names = (OURS, RELATIVE)
    headings = ["", "best rate", "loss", "best rate, relative steps", "loss"]
    rows = []
    for label, by_name in found.items():
        row = [label]
        for name in names:
            best = int(np.argmin(losses(by_name[name])))
            row += [f"{rates_of(name)[best]:g}", f"{losses(by_name[name])[best]:.3f}"]
        rows.append(row)
    spread, shared = ["largest over smallest, octaves"], ["one rate for all, largest loss above the best"]
    for name in names:
        curves = np.array([losses(by_name[name]) for by_name in found.values()])
        best = np.log2(np.array(rates_of(name))[np.argmin(curves, axis=1)])
        above = (curves - curves.min(axis=1, keepdims=True)).max(axis=0)
        spread += [f"{np.ptp(best):.0f}", ""]
        shared += [f"{rates_of(name)[int(np.argmin(above))]:g}", f"{above.min():.3f}"]
    return headings, [*rows, spread, shared]


def million_table(rate: float, found: Mapping[str, Sequence[Run]]) -> Table:
    """Lay out the fresh seeds at AdamW's best rate."""
    base = losses(found[ADAMW])
    rows = [
        [
            name,
            f"{losses(runs).mean():.4f} +- {standard_error(losses(runs)):.4f}",
            f"{(losses(runs) - base).mean():+.4f} +- {standard_error(losses(runs) - base):.4f}",
            f"{runs[0].state:.2f}",
        ]
        for name, runs in found.items()
    ]
    weights = next(iter(found.values()))[0].weights
    caption = f"{weights:,} weights, all at AdamW's best rate {rate:g}"
    headings = ["optimiser", "validation loss", "less AdamW's, paired", "state"]
    return terminal.table(caption, headings, rows)

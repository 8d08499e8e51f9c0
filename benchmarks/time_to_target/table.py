"""What the terminal shows of a task."""

import numpy as np
from rich.table import Table

from benchmarks.shared import terminal
from benchmarks.shared.records import Records
from benchmarks.time_to_target.summary import chosen


def table(task_name: str, records: Records) -> Table:
    """Lay out the steps of all methods to both targets, fewest to the far one first."""
    near, far = chosen(records, "near"), chosen(records, "far")
    rows = [
        [
            name,
            f"{row.rate:.2g}",
            ", ".join(f"{key} {value:g}" for key, value in row.point.items()),
            f"{near[name].median_steps:g}",
            f"{row.median_steps:g}",
            f"{np.median(row.final):.3g}",
            f"{row.state:.2f}",
        ]
        for name, row in sorted(far.items(), key=lambda item: item[1].median_steps)
    ]
    headings = ["optimiser", "rate", "point", "steps, near", "steps, far", "final loss", "state"]
    return terminal.table(task_name, headings, rows, left=("optimiser", "point"))

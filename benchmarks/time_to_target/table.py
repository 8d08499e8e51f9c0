"""What the terminal shows of a task."""

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.records import Records
from benchmarks.time_to_target.summary import chosen


def table(task_name: str, records: Records) -> Table:
    """Lay out the steps of all contestants to both targets, fewest to the far one first."""
    result = Table(title=task_name, box=box.SIMPLE, title_justify="left")
    for heading in ("optimiser", "rate", "point", "steps, near", "steps, far", "final loss", "state"):
        result.add_column(heading, justify="left" if heading in ("optimiser", "point") else "right")
    near, far = chosen(records, "near"), chosen(records, "far")
    for name in sorted(far, key=lambda name: far[name].median_steps):
        row = far[name]
        result.add_row(
            name,
            f"{row.rate:.2g}",
            ", ".join(f"{key} {value:g}" for key, value in row.point.items()),
            f"{near[name].median_steps:g}",
            f"{row.median_steps:g}",
            f"{np.median(row.final):.3g}",
            f"{row.state:.2f}",
        )
    return result

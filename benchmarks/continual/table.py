"""The tables that the command prints."""

from rich import box
from rich.table import Table

from benchmarks.continual.summary import Row, SweepRow

LEGEND = """\
Mean and standard error over fresh seeds; "to ours" is the mean difference on the same seeds with its 95%
interval, "ours ahead" the seeds on which ours is better, "gain" the share of ours' gain over plain SGD that a
method has too. Every method was tuned on other seeds, with the number of trials given."""


def _point(point: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def table(rows: list[Row]) -> Table:
    """Return the table of a stream."""
    result = Table(title=rows[0].stream, box=box.SIMPLE, title_justify="left")
    for column in ("method", "mean", "to ours", "ours ahead", "gain", "trials", "point"):
        result.add_column(column, justify="left" if column in ("method", "point") else "right")
    for row in rows:
        result.add_row(
            row.method,
            f"{row.mean:.4g} +- {row.error:.2g}" if not row.diverged else f"{row.diverged} diverged",
            f"{row.difference:+.4g} [{row.low:+.3g}, {row.high:+.3g}]",
            f"{row.ours_ahead} of {row.seeds}",
            "" if row.gain_kept is None else f"{100 * row.gain_kept:.0f}%",
            str(row.trials),
            _point(row.point),
        )
    return result


def sweep_table(rows: list[SweepRow]) -> Table:
    """Return the table of what was swept."""
    result = Table(title=f"{rows[0].stream}: one axis swept", box=box.SIMPLE, title_justify="left")
    for column in ("method", "point", *rows[0].means, "diverged"):
        result.add_column(column)
    for row in rows:
        means = (f"{value:.4g}" for value in row.means.values())
        result.add_row(row.method, _point(row.point), *means, f"{100 * row.diverged:.0f}%")
    return result

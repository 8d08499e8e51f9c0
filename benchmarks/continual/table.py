"""The tables that the command prints."""

from rich.table import Table

from benchmarks.continual.family import APART, TOGETHER, Judged
from benchmarks.continual.summary import Row, SweepRow
from benchmarks.shared import terminal
from benchmarks.shared.tuning import Point

LEGEND = """\
Mean and standard error over fresh seeds; "to ours" is the mean difference on the same seeds with its 95%
interval, "ours ahead" the seeds on which ours is better, "gain" the share of ours' gain over plain SGD that a
method has too. Every method was tuned on other seeds, with the number of trials given."""


def _point(point: Point) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def table(rows: list[Row]) -> Table:
    """Return the table of a stream."""
    cells = [
        [
            row.method,
            f"{row.mean:.4g} +- {row.error:.2g}" if not row.diverged else f"{row.diverged} diverged",
            f"{row.difference:+.4g} [{row.low:+.3g}, {row.high:+.3g}]",
            f"{row.ours_ahead} of {row.seeds}",
            "" if row.gain_kept is None else f"{100 * row.gain_kept:.0f}%",
            str(row.trials),
            _point(row.point),
        ]
        for row in rows
    ]
    headings = ["method", "mean", "to ours", "ours ahead", "gain", "trials", "point"]
    return terminal.table(rows[0].stream, headings, cells, left=("method", "point"))


def sweep_table(rows: list[SweepRow]) -> Table:
    """Return the table of what was swept."""
    cells = [
        [
            row.method,
            _point(row.point),
            *(f"{value:.4g}" for value in row.means.values()),
            f"{100 * row.diverged:.0f}%",
        ]
        for row in rows
    ]
    headings = ["method", "point", *rows[0].means, "diverged"]
    return terminal.table(f"{rows[0].stream}: one axis swept", headings, cells, left=("method", "point"))


def family_table(streams: list[list[Judged]], phase: str) -> Table:
    """Return the table of methods with one setting for several streams, by the first stream's order."""
    by_method: dict[str, dict[str, Judged]] = {}
    for rows in streams:
        for row in rows:
            by_method.setdefault(row.method, {})[row.stream] = row
    names = [rows[0].stream for rows in streams if rows]
    cells = [
        [method, *(_judged(found.get(name)) for name in names), str(sum(row.leads for row in found.values()))]
        for method, found in by_method.items()
    ]
    title = {TOGETHER: "one setting for all", APART: "the setting that the other streams chose"}[phase]
    return terminal.table(title, ["method", *names, "leads on"], cells, left=("method",))


def _judged(row: Judged | None) -> str:
    """Return a cell; the best, and what is within a standard error of it, has a star."""
    return "-" if row is None else f"{row.mean:.4g} +- {row.error:.2g}{' *' if row.leads else ''}"

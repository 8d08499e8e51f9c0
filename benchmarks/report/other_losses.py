"""The table of losses that are no mean over fixed examples, from the records alone."""

from benchmarks.other_losses.problems import PROBLEMS
from benchmarks.other_losses.runs import METHODS, row
from benchmarks.other_losses.table import Rows, table_rows
from benchmarks.report.drop_in import refuse
from benchmarks.shared.markdown import table
from benchmarks.shared.records import Records


def recorded(records: Records) -> Rows:
    """Return all rows; a report makes none."""
    return {
        problem: {name: row(records, problem, name, announce=refuse) for name in METHODS}
        for problem in PROBLEMS
    }


def losses_table(records: Records) -> str:
    """Lay out what is measured at the end, with its standard error."""
    headings, lines = table_rows(recorded(records))
    return table(headings, [[f"`{name}`", *cells] for name, *cells in lines])

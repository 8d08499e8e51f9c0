"""What the runs say: the table, the claim, the record."""

from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.slowly_changing.methods import FULL, METHODS, Method
from benchmarks.slowly_changing.runs import Records, Run, Size

PROBE, TOLERANCE = 0.468, 0.02  # the probe's error, and how near the mean of 30 seeds has to come
WIDENINGS = 3  # of a grid, by a factor of two, while its best rate is on the edge
CLAIM = f"metric + anchor + noise: whole-run error {PROBE} within {TOLERANCE}"

LEGEND = """\
Squared error over the whole run, every example predicted before it is learned; mean and standard error over
fresh seeds. Each row has its own best of seven rates or more, a factor of two apart, chosen on other seeds:
grids are widened three times at most, and * marks a best rate on the edge even so. "against" is the mean
difference to the first row on the same seeds, with its standard error, and on how many of them the first row
is better. Rows without "metric" give every weight the mean phi: the metric's size without its direction.
"last" is the error in the last tenth of the run."""


@dataclass(frozen=True)
class Row:
    """A method at its chosen rate.

    Attributes:
      method: Which.
      rate: The rate chosen.
      edge: Whether it is on the edge of its grid.
      tuning: Mean error on the tuning seeds, by rate.
      run: The run on the fresh seeds.
    """

    method: Method
    rate: float
    edge: bool
    tuning: dict[float, float]
    run: Run


def make_row(method: Method, records: Records, size: Size) -> Row:
    """Choose the rate on the tuning seeds and run it on the fresh ones."""
    runs = records.get(method.name, method.rates, size.tuning_seeds)
    tuning = {rate: float(np.mean(run.whole)) for rate, run in zip(method.rates, runs, strict=True)}

    def best() -> float:
        return min(tuning, key=lambda r: tuning[r] if np.isfinite(tuning[r]) else np.inf)

    for _ in range(WIDENINGS):
        if best() not in (min(tuning), max(tuning)):
            break
        further = best() / 2 if best() == min(tuning) else best() * 2
        tuning[further] = float(np.mean(records.get(method.name, [further], size.tuning_seeds)[0].whole))
    rate = best()
    return Row(
        method=method,
        rate=rate,
        edge=rate in (min(tuning), max(tuning)),
        tuning=dict(sorted(tuning.items())),
        run=records.get(method.name, [rate], size.seeds)[0],
    )


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def table(rows: list[Row]) -> Table:
    """Return the table of all rows; the first is what the others are compared with."""
    result = Table(title="Slowly-changing regression", box=box.SIMPLE, title_justify="left")
    for column, justify in (
        ("method", "left"),
        ("rate", "right"),
        ("error", "right"),
        ("last", "right"),
        ("against", "right"),
        ("better on", "right"),
    ):
        result.add_column(column, justify=justify)
    first = np.asarray(rows[0].run.whole)
    for row in rows:
        whole = np.asarray(row.run.whole)
        mean, error = mean_and_error(whole)
        difference, spread = mean_and_error(whole - first)
        same = row is rows[0]
        result.add_row(
            row.method.name,
            f"{row.rate:g}" + ("*" if row.edge else ""),
            f"{mean:.3f} +- {error:.3f}",
            f"{np.mean(row.run.curve[-max(len(row.run.curve) // 10, 1) :]):.3f}",
            "" if same else f"{difference:+.3f} +- {spread:.3f}",
            "" if same else f"{int((whole > first).sum())} of {len(whole)}",
        )
    return result


def claim_holds(rows: list[Row]) -> bool:
    """Return whether the whole chain comes as near the probe's error as asked."""
    full = next(row for row in rows if row.method is FULL)
    return abs(float(np.mean(full.run.whole)) - PROBE) <= TOLERANCE


def record(rows: list[Row], size: Size) -> dict:
    """Return what goes into the JSON file."""
    return {
        "protocol": {
            "tasks": size.tasks,
            "steps_per_task": size.steps,
            "tuning_seeds": [size.tuning_seeds.start, size.tuning_seeds.stop - 1],
            "seeds": [size.seeds.start, size.seeds.stop - 1],
        },
        "rows": [
            {
                "method": row.method.name,
                "rate": row.rate,
                "on_the_edge": row.edge,
                "tuning_error_by_rate": {f"{rate:g}": error for rate, error in row.tuning.items()},
                "error_mean_and_standard_error": mean_and_error(np.asarray(row.run.whole)),
                "error_per_seed": row.run.whole,
                "curve": row.run.curve,
            }
            for row in rows
        ],
        "claim": {"text": CLAIM, "holds": claim_holds(rows)},
    }


ALL = list(METHODS.values())

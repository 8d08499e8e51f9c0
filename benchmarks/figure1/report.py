"""What a run of the figure says: the tables, the sentences under them, the JSON record."""

from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.figure1.paths import TARGET
from benchmarks.figure1.rows import FRESH_STARTS, STRAIGHT, SWINGS, Row, like_figure, record
from benchmarks.figure1.search import SEEDS, Grid, rate_value
from benchmarks.figure1.surfaces import Surface
from benchmarks.shared.statistics import quartiles

CURVATURES = ("secant curvature", "Hutchinson curvature")
FEW_STEPS = 8  # what the project asks of the curvatures on the first surface at kappa 50

CLAIM = (
    f"Both curvatures as a metric on the first surface, at fewest steps: at most {FEW_STEPS} steps, "
    f"straightness at least {STRAIGHT:g}, at most {SWINGS} swing"
)

COLUMNS = ("trials", "rate", "alpha|beta", "steps", "straight", "swings", "stays", "as figure", "elsewhere")
ROLES = {None: "", "metric": "metric", "inverse_metric": "inverse"}

LEGEND = f"""\
Each method at its best constant rate (and alpha, or beta, which is b1 of Adam): fewest steps to {TARGET:g} of
the initial loss, of equals the straightest. Role: "metric" divides the gradient by E = 1 + alpha phi (Eq. 2
and 3 of the paper), "inverse" multiplies (its sentences). Only the row that says so has momentum beside the
metric. Nothing is known in advance: the secant rule's first update is a probing step, and counts. The probes
of Hutchinson's rule cost a Hessian-vector product, about two more gradients, in every step.
  straight   distance from start to arrival over the length of the path; 1 is a straight line
  swings     crossings of the valley floor (sign changes along the steep axis) until arrival
  stays      fewest steps of any configuration that arrives and stays until the end of the run
             (where that is more than "steps", the best run only passed through)
  as figure  fewest steps of any configuration that stays, with straightness at least {STRAIGHT:g} and at most
             {SWINGS} swing: the path of the paper's figure
  elsewhere  steps of the best configuration from {FRESH_STARTS} other starts and seeds: median (quartiles)
  -          not within the run
A method with random probes is tuned on {len(SEEDS)} seeds, by the run with the median steps."""


def steps_text(steps: float) -> str:
    """Write a number of steps, a dash for a miss."""
    return f"{steps:.0f}" if np.isfinite(steps) else "-"


def cells(row: Row) -> list[str]:
    """Write the columns of a row from ``trials`` on."""
    if row.best is None:
        return [str(row.trials), *["-"] * (len(COLUMNS) - 1)]
    best = row.best.statistics
    low, median, high = (steps_text(steps) for steps in quartiles(row.fresh))
    return [
        str(row.trials),
        f"{row.best.rate:.3g}" + ("*" if row.edges else ""),
        "" if row.best.second is None else f"{row.best.second:.3g}",
        steps_text(best.steps),
        f"{best.straightness:.3f}",
        f"{best.sign_changes:.0f}",
        steps_text(row.settled),
        steps_text(row.straight.statistics.steps) if row.straight else "-",
        f"{median} ({low}..{high})",
    ]


def surface_table(title: str, rows: list[Row]) -> Table:
    """Lay out the rows of one surface."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("method", "role"):
        table.add_column(header, no_wrap=True)
    for header in COLUMNS:
        table.add_column(header, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        if index and row.method.role != rows[index - 1].method.role:
            table.add_section()
        table.add_row(row.method.name, ROLES[row.method.role], *cells(row))
    if any(row.edges for row in rows):
        table.caption = "* fewest steps on the edge of the widest grid"
    return table


def label(row: Row) -> str:
    """Name a row in a sentence."""
    return f"{row.method.name} ({ROLES[row.method.role]})" if row.method.role else row.method.name


def median_elsewhere(row: Row) -> float:
    """Return the median steps of the best configuration from other starts and seeds."""
    return quartiles(row.fresh)[1] if row.fresh else np.inf


def path_text(row: Row) -> str:
    """Say what the best path of a row looks like, and how many steps one as in the figure takes."""
    if row.best is None:
        return f"{row.method.name} misses"
    best = row.best.statistics
    text = (
        f"{row.method.name} {best.steps:.0f} steps (straightness {best.straightness:.3f}, "
        f"swings {best.sign_changes:.0f})"
    )
    if row.straight is not None and not like_figure(best):
        text += f", as in the figure {row.straight.statistics.steps:.0f}"
    return f"{text}, elsewhere {steps_text(median_elsewhere(row))}"


def find(rows: list[Row], surface: str, method: str, role: str | None = None) -> Row:
    """Return the one row of this surface, method and role."""
    (row,) = [r for r in rows if (r.surface, r.method.name, r.method.role) == (surface, method, role)]
    return row


def sentences(rows: list[Row]) -> list[str]:
    """Say what follows from the rows, whatever they are."""
    first, *others = dict.fromkeys(row.surface for row in rows)
    to_beat = find(rows, first, "SGD").settled

    def steps_of_figure(row: Row) -> float:
        return row.straight.statistics.steps if row.straight else np.inf

    lines = []
    for role, other_role, measured, phis in (
        ("metric", "inverse_metric", "steepness", CURVATURES),
        ("inverse_metric", "metric", "flatness", [f"1 / {name}" for name in CURVATURES]),
    ):
        own = [find(rows, first, name, role) for name in phis]
        swapped = [find(rows, first, name, other_role) for name in phis]
        follows = "follows" if all(steps_of_figure(row) < to_beat for row in own) else "does not follow"
        lines.append(
            f"The figure (straight, hardly a swing, sooner than SGD) {follows} "
            f'from role="{role}" when phi measures {measured}: {"; ".join(map(path_text, own))}. '
            f"The same phis in the other role: {'; '.join(map(path_text, swapped))}."
        )
    here = [row for row in rows if row.surface == first]
    drawn = sorted((row for row in here if steps_of_figure(row) < to_beat), key=steps_of_figure)
    named = ", ".join(f"{label(row)} {steps_of_figure(row):.0f}" for row in drawn)
    lines.append(
        f"Every method with a path as in the figure on that surface, and its steps: {named or 'none'}. "
        f"The other {len(here) - len(drawn)} have none, or none sooner than SGD."
    )
    for surface in others:
        curvatures = [find(rows, surface, name, "metric") for name in CURVATURES]
        fewest = min((row for row in rows if row.surface == surface), key=median_elsewhere)
        lines.append(
            f"On the {surface} surface, as a metric: {'; '.join(map(path_text, curvatures))}. "
            f"Fewest steps elsewhere: {label(fewest)}, {steps_text(median_elsewhere(fewest))}."
        )
    return lines


def claim_holds(rows: list[Row]) -> bool:
    """Whether ``CLAIM`` is true."""
    chosen = [find(rows, rows[0].surface, name, "metric").best for name in CURVATURES]
    return all(
        best is not None and best.statistics.steps <= FEW_STEPS and like_figure(best.statistics)
        for best in chosen
    )


def content(surfaces: dict[str, Surface], grid: Grid, rows: list[Row], seconds: float) -> dict[str, Any]:
    """Return everything the tables show, for the record."""
    return {
        "precision": "float64",
        "seconds": round(seconds, 1),
        "surfaces": {name: surface._asdict() for name, surface in surfaces.items()},
        "grid": {
            "lowest_rate": rate_value(grid.rates[0]),
            "highest_rate": rate_value(grid.rates[1]),
            "rates": len(grid.rate_indices()),
            "alpha_or_beta_values": len(grid.second_indices()),
            "steps": grid.steps,
            "target": TARGET,
        },
        "claim": CLAIM,
        "claim_holds": claim_holds(rows),
        "sentences": sentences(rows),
        "rows": [record(row) for row in rows],
    }

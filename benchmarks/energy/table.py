"""The table of a protocol: what the target costs every rule, on the same fresh seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from benchmarks.energy.methods import methods
from benchmarks.shared import terminal
from benchmarks.shared.markdown import two_digits
from benchmarks.shared.statistics import numbers, standard_error
from benchmarks.shared.tuning import Point

LEGEND = """\
Means over fresh seeds, up to the first test at the target accuracy. Energy: the sum of abs(dw), with synaptic
caching of what is consolidated, and the maintenance of transient changes. Path: the sum of abs(dw) of the
weights that the network computes with; tortuosity: path over distance. "To ours" is the mean of the ratios of
energies to those of our cheapest rule that misses no seed, on the same seeds, with its standard error. Every
rule was tuned on another seed, for the modern network on three others and to half a percent more than the
target."""


class Row(NamedTuple):
    """A rule on the fresh seeds of a protocol.

    Attributes:
      method: its name.
      point: the hyper-parameters chosen.
      energies: to the target, by seed; infinite for a miss.
      energy: mean to the target; infinite where a seed missed it.
      error: its standard error.
      ratio: mean ratio of its energy to ours on the same seed, and its standard error.
      maintenance: mean part of the energy.
      changed: mean number of changes of weights.
      examples: mean number of examples seen.
      distance: mean ``sum(abs(w - w_0))``.
      tortuosity: mean path over distance.
      missed: seeds that missed the target.
      trials: points tried.
    """

    method: str
    point: Point
    energies: np.ndarray
    energy: float
    error: float
    ratio: tuple[float, float]
    maintenance: float
    changed: float
    examples: float
    distance: float
    tortuosity: float
    missed: int
    trials: int


def rows(entries: Iterable[Mapping[str, Any]], protocol: str, data: str, hidden: Sequence[int]) -> list[Row]:
    """Return a row per method of a protocol that has fresh runs, the cheapest first."""
    wanted = {"suite": "energy", "protocol": protocol, "data": data, "hidden": list(hidden)}
    own = [e for e in entries if all(e["key"].get(name) == value for name, value in wanted.items())]
    fresh = {e["key"]["method"]: e for e in own if e["key"]["phase"] == "fresh"}
    trials = [e["key"]["method"] for e in own if e["key"]["phase"] == "tuning"]
    energies = {name: numbers(entry["result"]["energy"]) for name, entry in fresh.items()}
    ours = [
        values
        for name, values in energies.items()
        if methods(protocol)[name].role == "ours" and np.isfinite(values).all()
    ]
    reference = min(ours, key=np.mean, default=None)
    table = []
    for method, entry in fresh.items():
        result = {
            name: numbers(values)
            for name, values in entry["result"].items()
            if values and not _nested(values)
        }
        energy = result["energy"]
        there = np.isfinite(energy)
        ratio = (np.nan, np.nan)
        if reference is not None and there.all():
            ratios = energy / reference
            ratio = (float(ratios.mean()), standard_error(ratios))

        def mean(values: np.ndarray, there: np.ndarray = there) -> float:
            return float(values[there].mean()) if there.any() else np.nan

        table.append(
            Row(
                method=method,
                point=entry["key"]["point"],
                energies=energy,
                energy=float(energy.mean()),
                error=standard_error(energy[there]) if there.sum() > 1 else np.nan,
                ratio=ratio,
                maintenance=mean(result["maintenance"]),
                changed=mean(result["changed"]),
                examples=mean(result["examples"]),
                distance=mean(result["distance"]),
                tortuosity=mean(_ratio(result["path"], result["distance"], there)),
                missed=int((~there).sum()),
                trials=trials.count(method),
            )
        )
    return sorted(table, key=lambda row: row.energy)


def _ratio(above: np.ndarray, below: np.ndarray, there: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=there)


def _nested(values: Any) -> bool:
    return isinstance(values[0], list)


def cells_of(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of a table."""
    cells = [
        [
            row.method,
            f"{row.missed} missed" if row.missed else f"{row.energy:,.0f} +- {two_digits(row.error)}",
            "" if np.isnan(row.ratio[0]) else f"{row.ratio[0]:.2f} +- {row.ratio[1]:.2g}",
            f"{row.maintenance:,.0f}",
            f"{row.changed:.2g}",
            f"{row.examples:,.0f}",
            f"{row.distance:,.0f}",
            f"{row.tortuosity:.1f}",
            str(row.trials),
            ", ".join(f"{name} {value:g}" for name, value in row.point.items()),
        ]
        for row in rows
    ]
    headings = ["rule", "energy", "to ours", "maintenance", "changes", "examples", "distance", "tortuosity"]
    return [*headings, "trials", "point"], cells


def table(title: str, rows: list[Row]) -> Table:
    """Return the table as the terminal shows it."""
    return terminal.table(title, *cells_of(rows), left=("rule", "point"))

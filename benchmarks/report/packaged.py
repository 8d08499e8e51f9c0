"""The table that the trainer packs: for each phi what a step costs and what it was seen to do.

The installed package has no records, so its ``--phi help`` reads this file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import continual
from benchmarks.report.suite import Suite
from benchmarks.shared.markdown import number
from benchmarks.shared.statistics import numbers, quartiles
from benchmarks.time_to_target.methods import DROP_IN, FACTORED, LEAF_MEAN, OURS, PERMUTED, TUNED_ADAMW
from benchmarks.time_to_target.search import MISS
from riemann_optax.examples.train.phis import PHIS

# The name of a phi in the records, where it has another one there.
IN_SUITE = {
    "activity": OURS,
    "factored_activity": FACTORED,
    "plasticity_and_energy": "activity and energy",
    "permuted_activity": PERMUTED,
    "leaf_mean_activity": LEAF_MEAN,
}
IN_FIGURE1 = {
    "activity": "activity",
    "accumulated_activity": "accumulated activity",
    "bayesian_synapse": "Bayesian synapse",
    "presynaptic_release": "presynaptic release",
    "secant_curvature": "secant curvature",
    "hutchinson_curvature": "Hutchinson curvature",
    "maintenance_energy": "maintenance energy",
    "modification_energy": "modification energy",
}


def steps_elsewhere(row: dict[str, Any]) -> str:
    """Write the median steps of a row of figure 1 from the starts that nothing was tuned on.

    Examples:
      >>> steps_elsewhere({"steps_from_fresh_starts": [3, None, None]})
      'missed'
    """
    median = quartiles(numbers(row["steps_from_fresh_starts"]))[1]
    return f"{median:.0f}" if np.isfinite(median) else "missed"


def table(suite: Suite, entries: Sequence[Any], results: Path) -> dict[str, Any]:
    """Return the table as data: where steps were timed, and for each phi their ratio and what was seen."""
    cost = json.loads((results / "phi_cost.json").read_text())
    surfaces = json.loads((results / "figure1.json").read_text())
    rows_of = {(row["surface"], row["method"], row["role"]): row for row in surfaces["rows"]}

    def on_the_valley(name: str) -> list[str]:
        if name not in IN_FIGURE1:
            return []
        said = []
        for method, role in ((IN_FIGURE1[name], "metric"), ("SGD", None)):
            both = [rows_of[surface, method, role] for surface in ("axis-aligned", "turned")]
            best = ["missed" if row["best"] is None else f"{row['best']['steps']:.0f}" for row in both]
            other = [steps_elsewhere(row) for row in both]
            said.append((f"{best[0]}, rotated {best[1]}; from other starts", f"{other[0]} and {other[1]}"))
        (ours, elsewhere), (_, sgd) = said
        return [f"steps in a steep valley: {ours} {elsewhere} (SGD {sgd})"]

    def in_the_suite(name: str) -> list[str]:
        if name not in IN_SUITE:
            return []
        ratio = suite.ratio("far", IN_SUITE[name], TUNED_ADAMW, MISS)
        seen = f"tuned, {number(ratio)} times the steps of tuned AdamW over {len(suite.tasks)} tasks"
        if name == "factored_activity":
            alone = suite.ratio("far", DROP_IN, TUNED_ADAMW, MISS)
            seen += f"; as `riemannian_adamw`, only its rate tuned, {number(alone)}"
        return [seen]

    def on_tasks(name: str) -> list[str]:
        found = continual.of_method(entries, continual.BOUNDED) if name == "online_ewc" else []
        if not found:
            return []
        least = min(row.means["all tasks"] for row in found)
        span = f"at every strength tried from {continual.LEAST_STRENGTH:g} on"
        return [f"permuted digits, phi's mean bounded: at least {least:.1f}% over all tasks {span}"]

    rows = {
        name: {
            **({"ratio": cost["phis"][name]["ratio"]} if name in cost["phis"] else {}),
            "seen": "; ".join([*in_the_suite(name), *on_the_valley(name), *on_tasks(name)]),
        }
        for name in PHIS
    }
    return {"model": cost["model"], "batch_size": cost["batch_size"], "phis": rows}


def write(made: dict[str, Any], path: Path) -> None:
    """Write the table."""
    path.write_text(json.dumps(made, indent=1) + "\n")

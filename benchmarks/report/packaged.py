"""The table that the trainer packs: for each phi what a step costs and what it was seen to do.

The installed package has no records, so its ``--phi help`` reads this file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import continual
from benchmarks.report.suite import Suite
from benchmarks.shared.markdown import number
from benchmarks.time_to_target.methods import FACTORED, LEAF_MEAN, OURS, PERMUTED, TUNED_ADAMW
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


def table(suite: Suite, entries: Sequence[Any], results: Path) -> dict[str, Any]:
    """Return the table as data: where steps were timed, and for each phi their ratio and what was seen."""
    cost = json.loads((results / "phi_cost.json").read_text())
    surfaces = json.loads((results / "figure1.json").read_text())
    steps = {(row["surface"], row["method"], row["role"]): row["best"] for row in surfaces["rows"]}

    def on_the_valley(name: str) -> list[str]:
        if name not in IN_FIGURE1:
            return []
        found = [
            [
                "missed" if best is None else f"{best['steps']:.0f}"
                for best in (ours, steps[surface, "SGD", None])
            ]
            for surface in ("axis-aligned", "turned")
            for ours in (steps[surface, IN_FIGURE1[name], "metric"],)
        ]
        (along, sgd), (rotated, sgd_rotated) = found
        return [f"steps in a steep valley: {along}, rotated {rotated} (SGD {sgd}, {sgd_rotated})"]

    def in_the_suite(name: str) -> list[str]:
        if name not in IN_SUITE:
            return []
        ratio = suite.ratio("far", IN_SUITE[name], TUNED_ADAMW, MISS)
        return [f"tuned, {number(ratio)} times the steps of tuned AdamW over {len(suite.tasks)} tasks"]

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

"""Tables, record and picture of the costs."""

from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.shared.style import METRIC, styled
from benchmarks.step_cost.measure import COPY, COPY_BYTES, Cost
from benchmarks.step_cost.methods import METRICS
from benchmarks.step_cost.targets import FLOORS, TARGETS

Costs = dict[str, dict[str, Cost]]

TITLES = {
    "matrix": "one matrix of 4,096 x 4,096",
    "transformer": "a Transformer's tree",
    "small_leaves": "800 small arrays",
}


def cost_table(problem: str, costs: dict[str, Cost]) -> Table:
    """Return the table of one problem, relative to SGD and Adam where they were measured."""
    table = Table(title=f"{problem}: one update")
    headings = [
        "optimiser",
        "ms",
        "+-",
        "/ sgd",
        "/ adam",
        "bandwidth",
        "bytes",
        "floor",
        "state",
        "peak",
        "compile s",
    ]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "optimiser" else "right", no_wrap=True)
    copy = costs[COPY]
    for name, cost in costs.items():
        relative = [
            f"{cost.seconds / costs[reference].seconds:.2f}" if reference in costs else "-"
            for reference in ("sgd", "adam")
        ]
        share = (cost.bytes_per_parameter / cost.seconds) / (COPY_BYTES / copy.seconds)
        table.add_row(
            name,
            f"{1e3 * cost.seconds:.2f}",
            f"{1e3 * cost.spread:.2f}",
            *relative,
            f"{100 * share:.0f}%",
            f"{cost.bytes_per_parameter:.1f}",
            str(FLOORS.get(name, "")),
            f"{cost.state_bytes_per_parameter:.2f}",
            "-" if cost.peak_bytes_per_parameter is None else f"{cost.peak_bytes_per_parameter:.1f}",
            f"{cost.compile_seconds:.2f}",
        )
    table.caption = (
        "bytes: moved per parameter by XLA's count; floor: the least; state: bytes per parameter; peak: "
        "those that an update holds at once, gradient and weights among them; bandwidth: "
        "bytes moved per second, as a share of a copy's in the same run"
    )
    return table


def mesh_table(mesh: dict[str, dict[str, Any]]) -> Table:
    """Return the table of collectives and of state bytes per device."""
    table = Table(title="On eight devices, fully sharded")
    for heading in ("optimiser", "collectives of an update", "state bytes on a device / an eighth"):
        table.add_column(heading)
    table.caption = "the means of columns belong to every device that holds rows of them"
    for name, row in mesh.items():
        found = ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items())
        ratio = row["state_bytes_over_ideal"]
        table.add_row(name, found or "none", "no state" if ratio is None else f"{ratio:.2f}")
    return table


def target_table(costs: Costs) -> Table:
    """Return every target that was measured, and whether it is met."""
    table = Table(title="Targets")
    for heading in ("problem", "optimiser", "quantity", "at most", "measured", ""):
        table.add_column(heading)
    for target in TARGETS:
        measured = target.measured(costs)
        if measured is not None:
            verdict = "met" if measured <= target.limit else "MISSED"
            row = (target.problem, target.optimizer, target.quantity, target.bound)
            table.add_row(*row, f"{measured:.2f}", verdict)
    return table


def record(costs: Costs, mesh: dict[str, dict[str, Any]], rounds: int, steps: int) -> dict[str, Any]:
    """Return what goes into the JSON file beside the command and the versions."""
    return {
        "device": jax.devices()[0].device_kind,
        "rounds": rounds,
        "steps": steps,
        "costs": {p: {n: c._asdict() for n, c in rows.items()} for p, rows in costs.items()},
        "eight_devices": mesh,
        "targets": [{**target._asdict(), "measured": target.measured(costs)} for target in TARGETS],
    }


@styled()
def draw(costs: dict[str, dict[str, dict[str, Any]]], device: str, path: Path) -> None:
    """Draw the recorded time of an update relative to SGD's, one panel per problem."""
    tall = max(len(rows) for rows in costs.values())
    figure = Figure(figsize=(6.5, 0.2 * tall * len(costs) + 1.4))
    panels = figure.subplots(len(costs), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (problem, rows) in zip(panels, costs.items(), strict=True):
        reference = rows.get("sgd", next(iter(rows.values())))["seconds"]
        names = sorted((n for n in rows if n != COPY), key=lambda name: rows[name]["seconds"], reverse=True)
        ratios = [rows[name]["seconds"] / reference for name in names]
        bars = axis.barh(names, ratios, color=[METRIC if name in METRICS else "0.75" for name in names])
        axis.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=9)
        axis.set(title=TITLES[problem], ylim=(-0.6, len(names) - 0.4), xscale="log")
        axis.margins(x=0.15)
    panels[-1].set_xlabel(f"time of one update / time of SGD's, on {device}, logarithmic")
    panels[0].text(
        0.98, 0.95, "with a metric", color=METRIC, transform=panels[0].transAxes, ha="right", va="top"
    )
    figure.suptitle("The time of one update, in updates of SGD")
    figure.savefig(path)

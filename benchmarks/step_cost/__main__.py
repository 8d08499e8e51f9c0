"""Print every target beside its measured ratio, the whole table, and write record and picture."""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

import riemann_optax as ro
from benchmarks.step_cost.measure import Cost, measure
from benchmarks.step_cost.optimizers import ALL, METRICS
from benchmarks.step_cost.problems import PROBLEMS

RESULTS = Path(__file__).parents[1] / "results"

# (problem, optimiser, compared with, at most, what is compared)
TARGETS = [
    ("matrix", "stateless metric", "sgd", 1.05, "seconds"),
    ("matrix", "averaged phi", "adam", 0.85, "seconds"),
    ("matrix", "averaged phi, momentum", "adam", 1.0, "seconds"),
    ("matrix", "factored phi", "sgd", 2.3, "seconds"),
    ("matrix", "factored phi", "adam", 0.85, "seconds"),
    ("matrix", "factored phi", "adafactor", 1 / 3, "seconds"),
    ("transformer", "stateless metric", "sgd", 1.05, "seconds"),
    ("transformer", "averaged phi", "adam", 0.85, "seconds"),
    ("transformer", "averaged phi, momentum", "adam", 1.0, "seconds"),
    ("transformer", "factored phi", "sgd", 2.3, "seconds"),
    ("small_leaves", "averaged phi", "adam", 1.0, "seconds"),
    ("small_leaves", "averaged phi, momentum", "adam", 1.0, "seconds"),
    ("small_leaves", "averaged phi", "adam", 1.0, "compile_seconds"),
]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_cost", description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--optimizers", nargs="+", choices=list(ALL), default=list(ALL))
    parser.add_argument("--rounds", type=int, default=9, help="turns of each optimiser, at least 4")
    parser.add_argument("--steps", type=int, default=5, help="updates in a turn")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of step_cost.json and step_cost.png"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 4 or options.steps < 1:
        parser.error("--rounds must be at least 4 and --steps at least 1")
    console = Console()
    costs: dict[str, dict[str, Cost]] = {}
    for problem in options.problems:
        with console.status(problem) as status:
            costs[problem] = measure(
                problem,
                options.optimizers,
                options.rounds,
                options.steps,
                lambda text, status=status, problem=problem: status.update(f"{problem}: {text}"),
            )
        console.print(_table(problem, costs[problem]))
    console.print(_targets(costs))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "step_cost.json").write_text(json.dumps(_record(options, costs), indent=1) + "\n")
    _picture(costs, options.out / "step_cost.png")
    console.print(f"written to {options.out}: step_cost.json, step_cost.png")


def _ratio(costs: dict[str, dict[str, Cost]], target: tuple[str, str, str, float, str]) -> float | None:
    problem, name, reference, _, quantity = target
    row = costs.get(problem, {})
    if name not in row or reference not in row:
        return None
    return float(getattr(row[name], quantity) / getattr(row[reference], quantity))


def _targets(costs: dict[str, dict[str, Cost]]) -> Table:
    table = Table(title="Targets")
    for heading in ("problem", "optimiser", "quantity", "at most", "measured", ""):
        table.add_column(heading)
    for target in TARGETS:
        problem, name, reference, limit, quantity = target
        ratio = _ratio(costs, target)
        if ratio is not None:
            verdict = "met" if ratio <= limit else "MISSED"
            table.add_row(problem, name, quantity, f"{limit:.2f} x {reference}", f"{ratio:.2f}", verdict)
    return table


def _table(problem: str, costs: dict[str, Cost]) -> Table:
    table = Table(title=f"{problem}: one update")
    for heading in ("optimiser", "ms", "+-", "/ sgd", "/ adam", "XLA bytes", "state bytes", "compile s"):
        table.add_column(heading, justify="left" if heading == "optimiser" else "right", no_wrap=True)
    for name, cost in costs.items():
        relative = [
            f"{cost.seconds / costs[reference].seconds:.2f}" if reference in costs else "-"
            for reference in ("sgd", "adam")
        ]
        table.add_row(
            name,
            f"{1e3 * cost.seconds:.2f}",
            f"{1e3 * cost.spread:.2f}",
            *relative,
            f"{cost.bytes_per_parameter:.1f}",
            f"{cost.state_bytes_per_parameter:.2f}",
            f"{cost.compile_seconds:.2f}",
        )
    return table


def _record(options: argparse.Namespace, costs: dict[str, dict[str, Cost]]) -> dict[str, Any]:
    return {
        "command": " ".join(["python -m benchmarks.step_cost", *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "optax": optax.__version__,
            "riemann_optax": ro.__version__,
        },
        "device": jax.devices()[0].device_kind,
        "rounds": options.rounds,
        "steps": options.steps,
        "costs": {p: {n: c._asdict() for n, c in rows.items()} for p, rows in costs.items()},
        "targets": [[*target, _ratio(costs, target)] for target in TARGETS],
    }


def _picture(costs: dict[str, dict[str, Cost]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(costs), figsize=(5.2 * len(costs), 6), layout="constrained", squeeze=False
    )
    for axis, (problem, rows) in zip(axes[0], costs.items(), strict=True):
        reference = rows.get("sgd", next(iter(rows.values()))).seconds
        names = sorted(rows, key=lambda name: rows[name].seconds, reverse=True)
        ratios = [rows[name].seconds / reference for name in names]
        colours = ["#143f6b" if name in METRICS else "#b9c4d0" for name in names]
        bars = axis.barh(names, ratios, color=colours)
        axis.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3)
        axis.set(title=problem, xlabel="time of one update / SGD's", xscale="log")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Cost of one update in one run on {jax.devices()[0].device_kind} (dark: with a metric)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""Time a training step under each phi of the trainer beside AdamW's on the same model, and write the record.

The recorder of E, the energy account and what makes a phi's extra arguments are part of the step, as in the
trainer. The time is the processor's, of all threads, on a CPU; ratios are of neighbouring turns. Other work
on the machine then changes them little.
"""

import argparse
import sys
from pathlib import Path

import jax
from rich.table import Table

from benchmarks.phi_cost.measure import measure
from benchmarks.shared.command import RESULTS, parse_with_folder, wide_console, without_folders
from benchmarks.shared.records import rounded, write_record
from riemann_optax.examples.train.phis import PHIS


def main(arguments: list[str]) -> None:
    """Run the benchmark; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phi_cost", description=__doc__)
    parser.add_argument("--model", default="convnet", choices=("convnet", "mlp"))
    parser.add_argument("--phis", nargs="+", choices=list(PHIS), default=list(PHIS), metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each, at least 4")
    parser.add_argument("--steps", type=int, default=20, help="training steps in a turn")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of phi_cost.json")
    options = parse_with_folder(parser, arguments, ["model", "phis", "batch_size", "rounds", "steps"])
    if jax.default_backend() != "cpu":
        parser.error("processor time says nothing about a step on a GPU or TPU: set JAX_PLATFORMS=cpu")
    if options.rounds < 4 or options.steps < 1 or not 1 <= options.batch_size <= 1200:
        parser.error("--rounds must be at least 4, --steps at least 1, and --batch-size from 1 to 1200")
    console = wide_console()
    with console.status("compiling AdamW") as status:
        costs = measure(
            options.phis, options.model, options.batch_size, options.rounds, options.steps, status.update
        )
    shown = Table("phi", "step / AdamW's", "quartiles", "ms a step", "in")
    for name, cost in sorted(costs.items(), key=lambda pair: pair[1].ratio):
        quartiles = f"{cost.low:.2f} to {cost.high:.2f}"
        shown.add_row(name, f"{cost.ratio:.2f}", quartiles, f"{1e3 * cost.seconds:.2f}", cost.optimizer)
    console.print(shown)
    record = {
        "model": options.model,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "steps": options.steps,
        "phis": {name: rounded(cost._asdict()) for name, cost in costs.items()},
    }
    write_record(
        options.out / "phi_cost.json",
        ["python", "-m", "benchmarks.phi_cost", *without_folders(arguments)],
        record,
    )
    console.print(f"written to {options.out}: phi_cost.json")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Train on several seeds, as README does, and keep the figures: ``python -m benchmarks.trainer``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.shared.command import RESULTS, parse_with_folder
from benchmarks.shared.records import write_record
from riemann_optax.examples.train.__main__ import main as train
from riemann_optax.examples.train.arguments import FREE_ON_RESUME, as_record, parse

SEEDS = (0, 1, 2)
FIGURES = (
    *("label", "learning_rate", "steps", "heldout_accuracy", "heldout_loss", "steps_to_target", "energy"),
    "state_bytes_per_parameter",
)


def is_of(found: dict[str, Any], wanted: list[str]) -> bool:
    """Whether a run had the arguments that are wanted; a shorter one, to try the program, did not."""
    return all(
        found.get(name) == value
        for name, value in as_record(parse(wanted)).items()
        if name not in FREE_ON_RESUME
    )


def main(arguments: list[str]) -> int:
    """Train what the folder of runs does not hold yet, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of trainer.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/trainer"), help="folder of the runs")
    parser.add_argument("--steps", type=int, help="fewer than the trainer's, to try this program")
    options = parse_with_folder(parser, arguments, ["steps"])
    shorter = [] if options.steps is None else ["--steps", str(options.steps)]
    runs = {}
    for seed in SEEDS:
        folder = options.runs / str(seed)
        wanted = ["--seed", str(seed), "--quiet", "--out", str(folder), *shorter]
        if not (folder / "record.json").exists() and (status := train(wanted)):
            return status
        record = json.loads((folder / "record.json").read_text())
        if record["status"] != "finished" or not is_of(record["arguments"], wanted):
            parser.error(
                f"--runs {options.runs}: {folder.name} holds another run, or one that is not finished: move "
                "it away, or name another folder"
            )
        runs[str(seed)] = {
            name: {figure: result[figure] for figure in FIGURES} for name, result in record["results"].items()
        }
    content = {"device": record["device"], "target": record["target"], "runs": runs}
    write_record(options.out / "trainer.json", ["python", "-m", "benchmarks.trainer"], content)
    print(f"written to {options.out}: trainer.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

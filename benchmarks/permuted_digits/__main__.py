"""Learn ten permutations of the digits with the plain EWC penalty, and with the metric that tames it."""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.permuted_digits.runs import FULL, METHODS, QUICK, RATE, Size, run
from benchmarks.shared.command import RESULTS, parse_with_folder

FLOOR_FINAL, FLOOR_LEARNED = 60.0, 88.0
CLAIMED = (5.0, 8.0, 20.0)
CLAIM = (
    f"E = 1 + rate * lambda * F/N: above {FLOOR_FINAL:g} % over all tasks and {FLOOR_LEARNED:g} % on the "
    f"last, at lambda {', '.join(f'{strength:g}' for strength in CLAIMED)}"
)
LEGEND = f"""\
Test accuracy in per cent, mean and standard error over seeds. "all tasks": mean over all tasks when the last
has been learned. "last task": accuracy of the last task then. Plain gradient descent at rate {RATE:g}, cooled
linearly to 0 within every task; F is the exact diagonal Fisher information at the end of each task, summed
over tasks. Both methods have the same penalty lambda/2 sum F/N (w - w_old)**2; "metric" divides the gradient,
the penalty's included, by E = 1 + {RATE:g} lambda F/N, which makes the pull an implicit step. lambda 0 has
neither."""

Rows = dict[str, dict[float, np.ndarray]]


def summary(accuracies: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return mean and standard error, in per cent, of what the table shows; the first axis is seeds."""
    final = 100 * accuracies[:, -1]
    values = {"all tasks": final.mean(1), "last task": final[:, -1]}
    return {
        name: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else 0.0)
        for name, v in values.items()
    }


def claim_holds(rows: Rows) -> bool:
    """Return whether the metric stays above both floors at every strength claimed."""
    summaries = [summary(rows["metric"][strength]) for strength in CLAIMED if strength in rows["metric"]]
    return len(summaries) == len(CLAIMED) and all(
        s["all tasks"][0] > FLOOR_FINAL and s["last task"][0] > FLOOR_LEARNED for s in summaries
    )


def table(rows: Rows) -> Table:
    """Return the table, one line per strength and both methods side by side."""
    result = Table(title="Permuted digits", box=box.SIMPLE, title_justify="left")
    result.add_column("lambda", justify="right")
    for name in METHODS:
        for column in ("all tasks", "last task"):
            result.add_column(f"{name}: {column}", justify="right")
    for strength in rows["metric"]:
        cells = [summary(rows[name][strength]) for name in METHODS]
        texts = [f"{mean:.1f} +- {error:.1f}" for cell in cells for mean, error in cell.values()]
        result.add_row(f"{strength:g}", *texts)
    return result


def record(rows: Rows, size: Size) -> dict:
    """Return what goes into the JSON file."""
    return {
        "protocol": {
            "tasks": size.tasks,
            "epochs": size.epochs,
            "batch": size.batch,
            "rate": RATE,
            "seeds": [size.seeds.start, size.seeds.stop - 1],
        },
        "rows": [
            {
                "method": name,
                "lambda": strength,
                "mean_and_standard_error": summary(accuracies),
                "final_accuracy_by_seed_and_task": np.round(accuracies[:, -1], 4).tolist(),
            }
            for name, by_strength in rows.items()
            for strength, accuracies in by_strength.items()
        ],
        "claim": {"text": CLAIM, "holds": claim_holds(rows)},
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a bad value is a one-line error and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.permuted_digits", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for permuted_digits.json")
    parser.add_argument("--quick", action="store_true", help="two tasks of two epochs, which show nothing")
    return parse_with_folder(parser, arguments)


def main(arguments: list[str]) -> None:
    """Run both methods, then write the record and print the table."""
    options = parse(arguments)
    size = QUICK if options.quick else FULL
    strengths = (0.0, *size.strengths)
    log = Console(stderr=True, highlight=False)
    rows: Rows = {}
    for name, make in METHODS.items():
        began = time.perf_counter()
        rows[name] = dict(zip(strengths, run(make, np.asarray(strengths), size), strict=True))
        log.print(f"{name}: {time.perf_counter() - began:.0f} s")
    (options.out / "permuted_digits.json").write_text(json.dumps(record(rows, size)) + "\n")
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    console.print(table(rows))
    console.print(LEGEND)
    console.print(f"\n{CLAIM}: {'holds' if claim_holds(rows) else 'DOES NOT HOLD'}.", soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])

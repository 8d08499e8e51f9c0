"""Compare the aliases with baselines that are tuned equally, over fresh seeds.

    python -m riemann_optax.examples.compare

The learning rate of each optimiser, and nothing else, is tuned on the same logarithmic grid, by the median
validation loss over the tuning seeds; where the best rate lies on the edge, the grid is widened for all. The
chosen rates are then run once more on seeds that tuning has not seen, and only there is the held-out part
scored. A seed sets both the initial weights and the order of the data.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from riemann_optax.examples import data, datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train.arguments import DEFAULTS
from riemann_optax.examples.train.loop import Problem, Training, evaluation_parameters, train_steps
from riemann_optax.examples.train.optimizers import (
    OPTIMIZERS,
    MetricOptions,
    build_baseline,
    build_metric,
    schedule_for,
)
from riemann_optax.examples.train.parser import Parser, number
from riemann_optax.examples.train.record import environment, write_record

TUNING_SEEDS = tuple(range(3))
FRESH_SEEDS = tuple(range(100, 110))

# Half decades, wide enough for Adam's units and for SGD's.
GRID = tuple(10.0 ** (exponent / 2) for exponent in range(-8, -1))
_WIDENING = 2

BUILDERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformationExtraArgs]] = {
    **{name: partial(build_metric, MetricOptions(name)) for name in OPTIMIZERS},
    "adamw": lambda schedule: build_baseline("adamw", schedule, {}),
    "sgd": lambda schedule: build_baseline("sgd", schedule, {"momentum": 0.9, "nesterov": True}),
}


class Outcome(NamedTuple):
    """The scores of one run: losses in nats, accuracies as fractions, nan where a part was not scored."""

    validation_loss: float
    validation_accuracy: float
    heldout_loss: float = float("nan")
    heldout_accuracy: float = float("nan")


class Trainer:
    """Trains one optimiser at any rate and seed, compiling once.

    Args:
      name: a key of :data:`BUILDERS`.
      problem: model and data; the initial weights are the seed's, not the problem's.
      model_name: the model to build for each seed.
      steps: length of a run.
      batch_size: examples in a batch.
    """

    def __init__(
        self,
        name: str,
        problem: Problem,
        model_name: str,
        steps: int,
        batch_size: int,
    ) -> None:
        self._problem, self._model_name = problem, model_name
        self._steps, self._batch_size = steps, batch_size

        def run(
            parameters: models.Parameters, part: dict[str, jax.Array], indices: jax.Array, rate: jax.Array
        ) -> models.Parameters:
            transformation = BUILDERS[name](schedule_for(name, rate, steps))
            training = Training(parameters, transformation.init(parameters))
            return evaluation_parameters(train_steps(problem, transformation, training, part, indices)[0])

        self._run = jax.jit(run)

    def __call__(self, rate: float, seed: int, *, score_heldout: bool = False) -> Outcome:
        """Train from the seed's initial weights and score the result."""
        problem, dataset = self._problem, self._problem.dataset
        parameters = models.build(self._model_name, dataset, seed).parameters
        batches = [
            data.batch_indices(dataset.num_train, self._batch_size, seed, step) for step in range(self._steps)
        ]
        parameters = self._run(parameters, problem.parts["train"], np.stack(batches), rate)
        scores = list(problem.evaluate("validation", parameters).values())
        if score_heldout:
            scores += problem.evaluate("heldout", parameters).values()
        return Outcome(*scores)


def median_loss(outcomes: Sequence[Outcome]) -> float:
    """Return the median validation loss, where a run that diverged counts as infinite.

    Examples:
      >>> median_loss([Outcome(0.1, 1.0), Outcome(float("nan"), 0.1), Outcome(0.3, 0.9)])
      0.3
    """
    losses = np.asarray([outcome.validation_loss for outcome in outcomes])
    return float(np.median(np.where(np.isfinite(losses), losses, np.inf)))


def tune(
    trainers: dict[str, Trainer],
    grid: Sequence[float],
    seeds: Sequence[int],
    announce: Callable[[str], None],
) -> tuple[dict[str, float], dict[str, dict[float, float]]]:
    """Find each optimiser's best rate on one grid, widened for all as long as one is best on its edge.

    Returns:
      The best rate by optimiser; and by optimiser and rate, the median validation loss.
    """
    rates = sorted(grid)
    losses: dict[str, dict[float, float]] = {name: {} for name in trainers}
    while True:
        for name, trainer in trainers.items():
            for rate in rates:
                if rate not in losses[name]:
                    losses[name][rate] = median_loss([trainer(rate, seed) for seed in seeds])
                    announce(f"{name}  rate {rate:.2e}  validation loss {losses[name][rate]:.4f}")
        best = {name: min(by_rate, key=by_rate.__getitem__) for name, by_rate in losses.items()}
        ratio = rates[1] / rates[0]
        if rates[0] in best.values():
            rates = [rates[0] / ratio**power for power in range(_WIDENING, 0, -1)] + rates
        elif rates[-1] in best.values():
            rates += [rates[-1] * ratio**power for power in range(1, _WIDENING + 1)]
        else:
            return best, losses


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(np.asarray(values), (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def print_comparison(
    best: dict[str, float], outcomes: dict[str, list[Outcome]], title: str, console: Console
) -> None:
    """Print median and interquartile range of the scores on the fresh seeds, and the paired difference."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("", "rate", "held-out accuracy", "held-out loss", "validation loss"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, runs in outcomes.items():
        accuracy = _quartiles([100 * run.heldout_accuracy for run in runs])
        heldout = _quartiles([run.heldout_loss for run in runs])
        validation = _quartiles([run.validation_loss for run in runs])
        table.add_row(
            name,
            f"{best[name]:.2e}",
            f"{accuracy[1]:.2f}% [{accuracy[0]:.2f}, {accuracy[2]:.2f}]",
            f"{heldout[1]:.3f} [{heldout[0]:.3f}, {heldout[2]:.3f}]",
            f"{validation[1]:.4f} [{validation[0]:.4f}, {validation[2]:.4f}]",
        )
    console.print(table)
    first, *others = outcomes
    for other in others:
        differences = [
            100 * (ours.heldout_accuracy - theirs.heldout_accuracy)
            for ours, theirs in zip(outcomes[first], outcomes[other], strict=True)
        ]
        ahead, level = sum(d > 0 for d in differences), sum(d == 0 for d in differences)
        low, middle, high = _quartiles(differences)
        console.print(
            f"{first} minus {other}, by seed: median {middle:+.2f} points of held-out accuracy "
            f"[{low:+.2f}, {high:+.2f}]; ahead on {ahead}, level on {level}, behind on "
            f"{len(differences) - ahead - level} of {len(differences)} seeds",
            soft_wrap=True,
            highlight=False,
        )


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the comparison's command line."""
    parser = Parser(prog="python -m riemann_optax.examples.compare", allow_abbrev=False)
    parser.add_argument("--data", default="digits", choices=("digits", "text"))
    parser.add_argument("--model", choices=models.MODELS)
    parser.add_argument(
        "--optimizers", nargs="+", choices=tuple(BUILDERS), default=["riemannian_adamw", "adamw"]
    )
    parser.add_argument("--steps", type=number(1, kind=int))
    parser.add_argument("--tuning-seeds", type=number(1, high=101, kind=int), default=len(TUNING_SEEDS))
    parser.add_argument("--seeds", type=number(1, kind=int), default=len(FRESH_SEEDS))
    parser.add_argument("--out", type=Path, help="JSON file to write the figures to; must not exist")
    return parser


def compare(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Tune, rerun on fresh seeds, print the table, and return the figures."""
    model_name = arguments.model or ("transformer" if arguments.data == "text" else "convnet")
    dataset = datasets.load(arguments.data)
    problem = Problem(models.build(model_name, dataset, seed=0), dataset)
    defaults = DEFAULTS[arguments.data, model_name]
    steps = arguments.steps or defaults.steps
    trainers = {
        name: Trainer(name, problem, model_name, steps, defaults.batch_size) for name in arguments.optimizers
    }
    tuning_seeds = range(arguments.tuning_seeds)
    fresh_seeds = range(FRESH_SEEDS[0], FRESH_SEEDS[0] + arguments.seeds)
    began = time.perf_counter()

    def announce(line: str) -> None:
        console.print(f"{time.perf_counter() - began:5.0f} s  {line}", soft_wrap=True, highlight=False)

    best, losses = tune(trainers, GRID, tuning_seeds, announce)
    outcomes = {
        name: [trainer(best[name], seed, score_heldout=True) for seed in fresh_seeds]
        for name, trainer in trainers.items()
    }
    title = (
        f"{model_name} on {arguments.data}, {steps} steps: median and quartiles of {arguments.seeds} seeds"
    )
    print_comparison(best, outcomes, title, console)
    return {
        "title": title,
        "tuning": {name: [[rate, loss] for rate, loss in sorted(v.items())] for name, v in losses.items()},
        "rates": best,
        "tuning_seeds": list(tuning_seeds),
        "fresh_seeds": list(fresh_seeds),
        "outcomes": {name: [run._asdict() for run in runs] for name, runs in outcomes.items()},
        "seconds": time.perf_counter() - began,
        **environment(),
    }


def prepare(out: Path) -> None:
    """Make the folder of a file that is written after hours of work, or raise ``InputError`` before them."""
    if out.exists():
        raise InputError(f"--out {out} exists: name another file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written to ({error.strerror or error}): name another"
        ) from error
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"--out {out} cannot be written to: name another")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison's command line and return its exit status."""
    try:
        arguments = build_parser().parse_args(argv)
        if arguments.out is not None:
            prepare(arguments.out)
        console = Console()
        # A file has room for the whole table.
        figures = compare(arguments, console if console.is_terminal else Console(width=120))
        if arguments.out is not None:
            write_record(figures, arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out {arguments.out} cannot be written to ({error}): name another", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

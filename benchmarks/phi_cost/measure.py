"""The time of a training step under each phi, in turns with AdamW's on the same model and batches.

It is the processor's time, of all threads together: other work on the machine changes it little.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.shared.statistics import quartiles
from riemann_optax.examples import datasets, models
from riemann_optax.examples.data import batch_indices
from riemann_optax.examples.train import arguments as command_line
from riemann_optax.examples.train import loop, plan

ADAMW = "adamw"


class Cost(NamedTuple):
    """What a training step takes under one phi.

    Attributes:
      ratio: median over rounds of its seconds over those of AdamW's just before.
      low: lower quartile of the same.
      high: upper quartile.
      seconds: median of the seconds of processor time of a step.
      optimizer: what the phi was in, as the trainer has it by default.
    """

    ratio: float
    low: float
    high: float
    seconds: float
    optimizer: str


class Stepper:
    """One optimiser with its own weights and state, compiled, ready to take steps on fixed batches."""

    def __init__(
        self, problem: loop.Problem, transformation: optax.GradientTransformationExtraArgs, batches: Any
    ) -> None:
        self.training = loop.start(problem, transformation).training
        self.part, self.batches = problem.parts["train"], batches
        steps = jax.jit(functools.partial(loop.train_steps, problem, transformation), donate_argnums=0)
        self.steps = steps.lower(self.training, self.part, batches).compile()
        self.run()  # the first run touches the memory

    def run(self) -> float:
        """Take the steps; return the seconds of processor time of one."""
        start = time.process_time()
        self.training, losses = self.steps(self.training, self.part, self.batches)
        jax.block_until_ready(losses)
        return (time.process_time() - start) / len(self.batches)


def measure(
    phis: Sequence[str],
    model: str,
    batch_size: int,
    rounds: int,
    steps: int,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Cost]:
    """Time the step under each phi, one after another, each in turns with AdamW's.

    Args:
      phis: names that the trainer knows.
      model: the trainer's name of a model of images; the data are the digits.
      batch_size: images in a batch.
      rounds: turns of each.
      steps: training steps in a turn, in one compiled loop.
      report: told the name of each phi.
    """
    dataset = datasets.load("digits")
    problem = loop.Problem(models.build(model, dataset, 0), dataset)
    batches = np.stack([batch_indices(dataset.num_train, batch_size, 0, step) for step in range(steps)])
    adamw = Stepper(problem, optax.adamw(1e-3), batches)
    costs = {}
    for name in phis:
        report(name)
        arguments = command_line.parse(["--model", model, "--phi", name, "--baseline", "none"])
        contestant = plan.build_contestants(arguments)["metric"]
        stepper = Stepper(problem, contestant.transformation, batches)
        pairs = [(adamw.run(), stepper.run()) for _ in range(rounds)]
        low, middle, high = quartiles([seconds / reference for reference, seconds in pairs])
        _, seconds, _ = quartiles([seconds for _, seconds in pairs])
        costs[name] = Cost(middle, low, high, seconds, arguments.optimizer)
    return costs

"""A training problem, and what those of the suite have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from riemann_optax.examples import models

FIRST_FRESH_SEED = 300


class Task(NamedTuple):
    """A training problem. All randomness comes from keys, so that a seed determines a run.

    Attributes:
      steps: length of a run, over which the learning rate falls to 0.
      init: from an integer seed to the initial parameters.
      sample: from a random key to a batch.
      loss: of parameters and a batch.
      followed: the loss that has to reach the target, of parameters alone: on training examples.
      held_out: the same on examples not trained on, or None where there are none.
      tuning_seeds: on which everything is chosen.
      fresh_seeds: on which what has been chosen is reported.
      evaluations: in a run, evenly spaced: steps to a target are known to that share of the budget.
      examples: to learn, where their number depends on what the user has; None where it never changes.
      slow: whether every run is kept as it is done, so that a search goes on in the middle of its trials.
    """

    steps: int
    init: Callable[[int], Any]
    sample: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    followed: Callable[[Any], jax.Array]
    held_out: Callable[[Any], jax.Array] | None = None
    tuning_seeds: range = range(4)
    fresh_seeds: range = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 20)
    evaluations: int = 100
    examples: int | None = None
    slow: bool = False


def quick(task: Task) -> Task:
    """Return a task so short that it shows nothing."""
    fresh = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 2)
    return task._replace(steps=20, tuning_seeds=range(1), fresh_seeds=fresh)


# What the tasks that take longest do with less of.
SPARING = {
    "tuning_seeds": range(1),
    "fresh_seeds": range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 10),
    "evaluations": 50,
    "slow": True,
}


def weights_of(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Callable[..., Any], Callable[[int], Any]]:
    """Return the function of parameters and inputs that a module is, and the parameters of a seed."""
    graph = models.functional(nnx.eval_shape(lambda: make(nnx.Rngs(0)))).graph

    def apply(params: Any, *inputs: jax.Array) -> Any:
        return nnx.merge(graph, params)(*inputs)

    return apply, lambda seed: models.functional(make(nnx.Rngs(seed))).parameters


def batches_of(rows: Any, size: int) -> Callable[[jax.Array], Any]:
    """Return what draws that many rows, with replacement."""
    count = len(jax.tree.leaves(rows)[0])

    def sample(key: jax.Array) -> Any:
        indices = jax.random.randint(key, [size], 0, count)
        return jax.tree.map(lambda array: array[indices], rows)

    return sample

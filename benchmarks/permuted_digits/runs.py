"""Learning the tasks one after the other, on many seeds and at many strengths of the pull at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro
from benchmarks.permuted_digits.problem import (
    LAYERS,
    Data,
    Images,
    Params,
    accuracy,
    digits,
    draw_network,
    loss,
    make_data,
    mean_fisher,
)

RATE = 0.5  # at the start of every task; it cools to 0 within each, linearly (tried: cosine, on seeds 0-19)


@dataclass(frozen=True)
class Size:
    """How large an experiment is.

    Attributes:
      tasks: Permutations, learned one after the other.
      epochs: Epochs of each task.
      batch: Examples per step.
      seeds: Splits, permutations and initial weights; 0 to 19 are those of the trials.
      strengths: The lambdas of the penalty.
    """

    tasks: int = 10
    epochs: int = 20
    batch: int = 32
    seeds: range = range(20, 50)
    strengths: tuple[float, ...] = (2.0, 5.0, 8.0, 20.0, 50.0)


FULL = Size()
QUICK = Size(tasks=2, epochs=2, seeds=range(20, 21), strengths=(8.0, 20.0))

Make = Callable[[jax.Array, optax.Schedule], optax.GradientTransformationExtraArgs]


def penalty(strength: jax.Array, schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Elastic weight consolidation: the penalty ``lambda/2 * sum F/N (w - w_old)**2`` as part of the loss."""
    return optax.chain(
        ro.add_anchored_weights(
            strength, ro.anchor.task_boundary_weights(), precision=ro.phi.online_ewc(running=False)
        ),
        optax.sgd(schedule),
    )


def metric(strength: jax.Array, schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """The same penalty under the metric ``E = 1 + rate * lambda * F/N``."""
    return optax.chain(
        ro.compute_metric(ro.phi.online_ewc(running=False), alpha=RATE * strength),
        ro.add_anchored_weights(strength, ro.anchor.task_boundary_weights(), precision="phi"),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(schedule),
    )


METHODS: dict[str, Make] = {"metric": metric, "penalty": penalty}


def fisher_boundary(state: optax.OptState, params: Params, inputs: jax.Array) -> optax.OptState:
    """Tell the optimiser that a task has ended, and the Fisher information at its end."""
    return ro.consolidate(state, params, mean_fisher(params, inputs))


def run(
    make: Callable[[Any, optax.Schedule], optax.GradientTransformation],
    strengths: Any,
    size: Size,
    boundary: Callable[[optax.OptState, Params, jax.Array], optax.OptState] = fisher_boundary,
    images: Images | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
    """Return accuracies of shape (strengths, seeds, tasks learned, tasks tested).

    Args:
      make: from one of ``strengths`` and the schedule of the rate to the optimiser.
      strengths: an array, or a tree of arrays, to be tried side by side.
      size: how long, and on which seeds.
      boundary: what is done with the optimiser's state at the end of a task.
      images: what is learned; None for the digits.
      advance: called with the share of the run that has just been done.
    """
    images = images or digits()
    strengths = jax.tree.map(jnp.asarray, strengths)
    layers = (images.inputs.shape[1], *LAYERS[1:-1], images.classes)
    data = [make_data(seed, size.tasks, images) for seed in size.seeds]
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
    steps = size.epochs * (data.train_labels.shape[1] // size.batch)
    cooling = optax.linear_schedule(RATE, 0.0, steps)

    def schedule(count):
        return cooling(count % steps)

    def start(strength, seed):
        params = draw_network(jax.random.key(seed), layers)
        return params, make(strength, schedule).init(params)

    def learn(strength, own: Data, params, state, task, seed):
        tx = make(strength, schedule)
        inputs = own.train_inputs[:, own.permutations[task]]
        examples = len(own.train_labels)
        key = jax.random.fold_in(jax.random.key(seed), task + 1)
        orders = jax.vmap(lambda k: jax.random.permutation(k, examples))(jax.random.split(key, size.epochs))
        batches = orders[:, : examples // size.batch * size.batch].reshape(steps, size.batch)

        def step(carry, batch):
            params, state = carry
            gradients = jax.grad(loss)(params, inputs[batch], own.train_labels[batch])
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), batches)
        state = boundary(state, params, inputs)
        tested = jax.vmap(lambda p: accuracy(params, own.test_inputs[:, p], own.test_labels))(
            own.permutations
        )
        return params, state, tested

    # One lane per pair of a strength and a seed, as two nested axes: the data depend on the seed alone.
    def over_lanes(function, data_axes, state_axes):
        inner = jax.vmap(function, (None, *data_axes))
        return jax.jit(jax.vmap(inner, (0, *state_axes)))

    seeds = jnp.asarray(size.seeds)
    params, states = over_lanes(start, (0,), (None,))(strengths, seeds)
    learn_all = over_lanes(learn, (0, 0, 0, None, 0), (None, 0, 0, None, None))
    tables = []
    for task in range(size.tasks):
        params, states, tested = learn_all(strengths, data, params, states, task, seeds)
        tables.append(np.asarray(tested))
        advance(1 / size.tasks)
    return np.stack(tables, axis=2)

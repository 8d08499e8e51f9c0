"""Permuted images with a penalty for forgetting, as a stream: what holds at which strength of the pull."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.continual.consolidation import ALL, RATE, Boundary, boundary_of
from benchmarks.continual.images import (
    LAYERS,
    Data,
    Params,
    accuracy,
    draw_network,
    forward,
    loss,
    make_data,
    orders,
)
from benchmarks.continual.job import Job
from benchmarks.continual.measures import DEAD, PROBE, RANK, forgetting, liveliness
from benchmarks.continual.renewal import Transformation, Values
from benchmarks.shared import lanes


class Task(NamedTuple):
    """What belongs to a seed while a task is learned.

    Attributes:
      data: of the seed.
      inputs: those to train on, with the task's permutation of the pixels.
      labels: of them.
      batches: which examples each step has.
    """

    data: Any
    inputs: jax.Array
    labels: jax.Array
    batches: jax.Array


class Protocol(NamedTuple):
    """What a task is, and how all of them are tested.

    Attributes:
      draw: from the data of a seed, the seed, the number of a task, epochs and batch to the task.
      tested: from parameters and the data of a seed to the accuracy on each task.
      tasks: how many there are.
      epochs: of each.
      batch: examples per step.
    """

    draw: Callable[..., Task]
    tested: Callable[[Params, Any], jax.Array]
    tasks: int
    epochs: int
    batch: int


def batches_of(seed: jax.Array, number: jax.Array, examples: int, epochs: int, batch: int) -> jax.Array:
    """Return the rows of every step of a task."""
    key = jax.random.fold_in(jax.random.key(seed), number + 1)
    return orders(key, jnp.arange(examples), epochs, batch)


def draw_task(data: Data, seed: jax.Array, number: jax.Array, epochs: int, batch: int) -> Task:
    """Draw the batches of a task."""
    batches = batches_of(seed, number, len(data.train_labels), epochs, batch)
    return Task(data, data.train_inputs[:, data.permutations[number]], data.train_labels, batches)


def tested(params: Params, data: Data) -> jax.Array:
    """Return the accuracy on every permutation."""
    return jax.vmap(lambda p: accuracy(params, data.test_inputs[:, p], data.test_labels))(data.permutations)


def learner(boundary: Boundary, tested: Callable[[Params, Any], jax.Array]) -> Callable[..., Any]:
    """Return what learns a task, consolidates at its end, tests all tasks and looks at the hidden units."""

    def learn(build, values, params, state, task: Task):
        tx = build(values, None)

        def step(carry, batch):
            params, state = carry
            gradients = jax.grad(loss)(params, task.inputs[batch], task.labels[batch])
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), task.batches)
        state = boundary(state, params, task.inputs, task.labels)
        hidden = forward(params, task.inputs[:PROBE])[1][1:]
        return params, state, jnp.concatenate([tested(params, task.data), jnp.stack(liveliness(hidden))])

    return learn


def learned(job: Job, data: Any, protocol: Protocol) -> list[lanes.Scores]:
    """Learn all tasks; the curve is the mean accuracy over the tasks so far.

    Args:
      job: what is run.
      data: of all seeds, with a first axis for them.
      protocol: what a task is.
    """
    layers = (job.images.inputs.shape[1], *LAYERS[1:-1], job.images.classes)
    tasks, seeds = protocol.tasks, jnp.asarray(job.seeds)

    def of_number(data: Any, seed: jax.Array, number: jax.Array) -> Task:
        return protocol.draw(data, seed, number, protocol.epochs, protocol.batch)

    draw = jax.jit(jax.vmap(of_number, (0, 0, None)))
    steps = jax.eval_shape(draw, data, seeds, 0).batches.shape[1]
    cooling = optax.linear_schedule(RATE, 0.0, steps)

    def schedule(count: jax.Array) -> jax.Array:
        return cooling(count % steps)

    def build(values: Values, key: Any) -> Transformation:
        return ALL[job.method].make(values, schedule)

    def drawn() -> Iterator[Task]:
        for number in range(tasks):
            yield draw(data, seeds, number)
            job.advance(1 / tasks)

    keys = jax.vmap(jax.random.key)(seeds)
    params = jax.jit(jax.vmap(lambda key: draw_network(key, layers)))(keys)
    learn = learner(boundary_of(job.method), protocol.tested)
    measured = lanes.learned(learn, build, job.points, params, keys, drawn())
    # points x seeds x learned x (tested, then what is measured of the units)
    return [scores(of_point, tasks) for of_point in np.stack([*measured], axis=2)]


def scores(measured: np.ndarray, tasks: int) -> lanes.Scores:
    """Sum up measures of shape (seeds, learned, tasks + 2): accuracies of all tasks, rank and dead units."""
    table = 100 * measured[..., :tasks]
    return lanes.Scores(
        {
            "all tasks": table[:, -1].mean(1),
            "last task": table[:, -1, -1],
            "forgetting": forgetting(table),
            RANK: measured[:, -1, tasks],
            DEAD: measured[:, -1, tasks + 1],
        },
        np.asarray([table[:, task, : task + 1].mean() for task in range(tasks)]),
    )


def run(job: Job, *, tasks: int, epochs: int, batch: int) -> list[lanes.Scores]:
    """Learn permutations of the pixels, one after the other.

    Args:
      job: what is run.
      tasks: how many.
      epochs: of each.
      batch: examples per step.
    """
    data = [make_data(seed, tasks, job.images) for seed in job.seeds]
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
    return learned(job, data, Protocol(draw_task, tested, tasks, epochs, batch))

"""Class-incremental learning: two classes a task, one head, and nothing that says which task is tested."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.continual.images import TEST_SHARE, Images, Params, logits
from benchmarks.continual.job import Job
from benchmarks.continual.permuted import Protocol, Task, batches_of, learned
from benchmarks.shared.lanes import Scores

CLASSES = 2  # of a task


class Split(NamedTuple):
    """Images of one seed, by task.

    Attributes:
      inputs: to train on, shape (tasks, examples, pixels).
      labels: shape (tasks, examples).
      test_inputs: of all tasks, shape (test examples, pixels).
      test_labels: shape (test examples,).
      classes: of each task, shape (tasks, 2).
    """

    inputs: jax.Array
    labels: jax.Array
    test_inputs: jax.Array
    test_labels: jax.Array
    classes: jax.Array


def make_splits(seeds: list[int], images: Images) -> Split:
    """Pair the classes at random for each seed, in a random order; every task gets as many examples.

    Returns:
      The data of all seeds, with a first axis for them.
    """
    found = []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(images.labels))
        test, train = np.split(order, [round(TEST_SHARE * len(order))])
        pairs = generator.permutation(images.classes)[: images.classes // CLASSES * CLASSES]
        pairs = pairs.reshape(-1, CLASSES)
        members = [train[np.isin(images.labels[train], pair)] for pair in pairs]
        found.append((test, members, pairs))
    count = min(len(rows) for _, members, _ in found for rows in members)
    each = [
        Split(
            np.stack([images.inputs[rows[:count]] for rows in members]),
            np.stack([images.labels[rows[:count]] for rows in members]),
            images.inputs[test],
            images.labels[test],
            pairs,
        )
        for test, members, pairs in found
    ]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *each)


def draw_task(data: Split, seed: jax.Array, number: jax.Array, epochs: int, batch: int) -> Task:
    """Draw the batches of a task."""
    inputs, labels = data.inputs[number], data.labels[number]
    return Task(data, inputs, labels, batches_of(seed, number, len(labels), epochs, batch))


def tested(params: Params, data: Split) -> jax.Array:
    """Return the accuracy on the classes of every task, where all classes are possible answers."""
    right = jnp.argmax(logits(params, data.test_inputs), axis=-1) == data.test_labels
    own = (data.test_labels[:, None, None] == data.classes).any(-1)
    return (right[:, None] * own).sum(0) / own.sum(0)


def run(job: Job, *, epochs: int, batch: int) -> list[Scores]:
    """Learn the classes two by two; the curve is the mean accuracy over the tasks so far.

    Args:
      job: what is run.
      epochs: of each task.
      batch: examples per step.
    """
    data = make_splits(list(job.seeds), job.images)
    return learned(job, data, Protocol(draw_task, tested, data.labels.shape[1], epochs, batch))

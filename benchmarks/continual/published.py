"""Streams of images as they are published: every task seen in full, online or for some epochs.

References:
  Dohare et al., `Loss of plasticity in deep continual learning
  <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature, 2024: online permuted MNIST, 800 tasks,
  784-2000-2000-2000-10
  Farias and Jozefiak, Self-normalized resets for plasticity in continual learning, ICLR, 2025:
  784-100-100-10, 10,000 images a task, the mean accuracy over the last 10% of the tasks
  Kumar et al., Maintaining plasticity in continual learning via regenerative regularization, 2023:
  label-permuted images and random labels
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.continual import online
from benchmarks.continual.images import Images
from benchmarks.continual.job import Job
from benchmarks.continual.methods import ONE_CHAIN, Scale, one_chain, online_methods
from benchmarks.continual.online import DrawTask, Form, Task
from benchmarks.shared.lanes import Scores
from benchmarks.shared.tuning import Axis

HIDDEN = (100, 100)
BATCH = 16
MEMORISED = "accuracy at end of task"  # of :func:`benchmarks.continual.online.scores`
SCALE = Scale(
    alpha=1000.0,
    metric=0.5,
    pull=1e-4,
    noise=1e-3,
    sgd=0.05,
    rmsprop=5e-4,
    adam=5e-4,
    l2=1e-4,
    share=1e-5,
    shake=3e-4,
    gradient_noise=0.01,
)
CHAIN = one_chain(SCALE, online.NETWORK, rate=Axis(2.0), pull=Axis(2e-4), replacement=Axis(1e-3, 4.0))
METHODS = online_methods(SCALE, online.NETWORK) | {ONE_CHAIN: CHAIN}


def keys_of(seed: jax.Array, number: jax.Array) -> jax.Array:
    """Return two random keys of a task: for what is new in it, and for the order of its images."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), number))


def orders(key: jax.Array, chosen: jax.Array, epochs: int, batch: int) -> jax.Array:
    """Return the rows of every step: in each epoch all images in a new order, short batches left out."""
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, chosen))(jax.random.split(key, epochs))
    return shuffled[:, : len(chosen) // batch * batch].reshape(-1, batch)


def permuted(number_of_images: int, epochs: int, batch: int) -> DrawTask:
    """Return tasks that permute the pixels, with images drawn anew."""

    def draw(images: Images, seed: jax.Array, number: jax.Array) -> Task:
        new, order = keys_of(seed, number)
        pixels_key, images_key = jax.random.split(new)
        chosen = jax.random.permutation(images_key, len(images.labels))[:number_of_images]
        pixels = jax.random.permutation(pixels_key, images.inputs.shape[1])
        labels = jnp.asarray(images.labels, jnp.int32)
        return Task(orders(order, chosen, epochs, batch), pixels, labels, jnp.zeros(()), order)

    return draw


def label_permuted(number_of_images: int, epochs: int, batch: int) -> DrawTask:
    """Return tasks that permute the labels, with images drawn anew."""

    def draw(images: Images, seed: jax.Array, number: jax.Array) -> Task:
        new, order = keys_of(seed, number)
        labels_key, images_key = jax.random.split(new)
        chosen = jax.random.permutation(images_key, len(images.labels))[:number_of_images]
        names = jax.random.permutation(labels_key, images.classes)
        labels = names[jnp.asarray(images.labels)]
        pixels = jnp.arange(images.inputs.shape[1])
        return Task(orders(order, chosen, epochs, batch), pixels, labels, jnp.zeros(()), order)

    return draw


def random_labels(number_of_images: int, epochs: int, batch: int) -> DrawTask:
    """Return tasks that give the same images of a seed a random label each."""

    def draw(images: Images, seed: jax.Array, number: jax.Array) -> Task:
        new, order = keys_of(seed, number + 1)
        same, _ = keys_of(seed, jnp.zeros((), jnp.int32))
        chosen = jax.random.permutation(same, len(images.labels))[:number_of_images]
        labels = jax.random.randint(new, (len(images.labels),), 0, images.classes)
        pixels = jnp.arange(images.inputs.shape[1])
        return Task(orders(order, chosen, epochs, batch), pixels, labels, jnp.zeros(()), order)

    return draw


def run(
    job: Job,
    *,
    tasks: int,
    images: int,
    epochs: int = 1,
    batch: int = BATCH,
    hidden: Sequence[int] = HIDDEN,
    of_kind: Callable[[int, int, int], DrawTask],
    main: str = "accuracy",
) -> list[Scores]:
    """Learn all tasks.

    Args:
      job: what is run.
      tasks: how many.
      images: of each, or as many as there are.
      epochs: how often each is seen.
      batch: images per step.
      hidden: widths of the hidden layers.
      of_kind: what a task is.
      main: the measure whose curve is kept.
    """
    form = Form(METHODS, tuple(hidden), main, in_turn=True)
    return online.learned(job, of_kind(images, epochs, batch), tasks, form)


run_permuted = partial(run, of_kind=permuted)
run_label_permuted = partial(run, of_kind=label_permuted)
run_random_labels = partial(run, of_kind=random_labels, main=MEMORISED)

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

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

import riemann_optax as ro
from benchmarks.continual import online
from benchmarks.continual.chains import (
    INFINITE,
    LONG_ACTIVITY,
    LONG_CHAIN,
    LONG_ISOMETRIC_CHAIN,
    ONE_CHAIN,
    SHARED,
    isometric_chain,
    one_chain,
)
from benchmarks.continual.images import Images, orders
from benchmarks.continual.job import Job
from benchmarks.continual.methods import Scale, online_methods
from benchmarks.continual.online import DrawTask, Form, Task
from benchmarks.continual.renewal import least_useful
from benchmarks.shared.experiment import Method
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
CHAINS = {
    ONE_CHAIN: one_chain(
        SCALE, online.NETWORK, least_useful, rate=Axis(2.0), pull=Axis(2e-4), replacement=Axis(1e-3, 4.0)
    )
}
REPLACEMENT = {"replacement": Axis(2.5e-4, 4.0)}
# The streams want pulls of very different strength. That to isometries is multiplied by the rate alone.
PULLED = {"rate": Axis(2.0), "pull": Axis(2e-5, 8.0)} | REPLACEMENT
ISOMETRIC = {"rate": Axis(2.0), "pull": Axis(1.5e-6, 10.0)} | REPLACEMENT
FAR = 1000.0  # so much larger an alpha leaves nothing of the 1 in E
OF_RULE = {"network": online.NETWORK, "renewal": least_useful}
CHAINS[LONG_CHAIN] = one_chain(SCALE, phi=LONG_ACTIVITY, **OF_RULE, **PULLED)
CHAINS[LONG_ISOMETRIC_CHAIN] = isometric_chain(SCALE, phi=LONG_ACTIVITY, **OF_RULE, **ISOMETRIC)


def controls_of(
    name: str, build: Callable[..., Method], axes: Mapping[str, Axis], far: Mapping[str, Axis]
) -> dict[str, Method]:
    """Return a chain with an alpha so much larger, at rates and pulls for it, and with a phi per array."""
    infinite = build(SCALE._replace(alpha=FAR * SCALE.alpha), phi=LONG_ACTIVITY, **OF_RULE, **far)
    shared = build(SCALE, phi=ro.phi.leaf_mean(LONG_ACTIVITY), **OF_RULE, **axes)
    return {
        f"{name}, {INFINITE}": infinite._replace(role="control"),
        f"{name}, {SHARED}": shared._replace(role="control"),
    }


FAST = {"rate": Axis(FAR * 2.0)}
CONTROLS = controls_of(LONG_CHAIN, one_chain, PULLED, PULLED | FAST) | controls_of(
    LONG_ISOMETRIC_CHAIN, isometric_chain, ISOMETRIC, ISOMETRIC | FAST | {"pull": Axis(1.5e-6 / FAR, 10.0)}
)
METHODS = online_methods(SCALE, online.NETWORK) | CHAINS | CONTROLS


# Of images and a key: what is new in a task, the order of the pixels and a label for every image.
New = Callable[[Images, jax.Array], tuple[jax.Array, jax.Array]]
OfKind = Callable[[int, int, int], DrawTask]  # of how many images, epochs and images in a batch


def kind(new: New, same_images: bool = False) -> OfKind:
    """Return tasks that differ in what is new, on images drawn anew or the same ones throughout."""

    def of_length(number_of_images: int, epochs: int, batch: int) -> DrawTask:
        def draw(images: Images, seed: jax.Array, number: jax.Array) -> Task:
            of_seed = jax.random.key(seed)
            new_key, images_key, order_key = jax.random.split(jax.random.fold_in(of_seed, number + 1), 3)
            if same_images:
                images_key = jax.random.fold_in(of_seed, 0)
            chosen = jax.random.permutation(images_key, len(images.labels))[:number_of_images]
            pixels, labels = new(images, new_key)
            return Task(orders(order_key, chosen, epochs, batch), pixels, labels, jnp.zeros(()), order_key)

        return draw

    return of_length


def new_pixels(images: Images, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Permute the pixels."""
    return jax.random.permutation(key, images.inputs.shape[1]), jnp.asarray(images.labels, jnp.int32)


def new_names(images: Images, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Permute the labels."""
    names = jax.random.permutation(key, images.classes)
    return jnp.arange(images.inputs.shape[1]), names[jnp.asarray(images.labels)]


def new_labels(images: Images, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Give every image a random label."""
    labels = jax.random.randint(key, (len(images.labels),), 0, images.classes)
    return jnp.arange(images.inputs.shape[1]), labels


permuted, label_permuted = kind(new_pixels), kind(new_names)
random_labels = kind(new_labels, same_images=True)


def run(
    job: Job,
    *,
    tasks: int,
    images: int,
    epochs: int = 1,
    batch: int = BATCH,
    hidden: Sequence[int] = HIDDEN,
    of_kind: OfKind,
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

"""The Transformers that are trained: small ones of many shapes, and one of a million weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.time_to_target.task import Task, weights_of
from riemann_optax.examples import data, models

WINDOWS = 256  # of the validation text, spread over all of it


class Shape(NamedTuple):
    """A Transformer on bytes and how it is trained.

    Attributes:
      width: of the residual stream.
      depth: blocks.
      batch: windows in a batch.
      window: bytes of context.
      steps: of a run.
    """

    width: int = 128
    depth: int = 2
    batch: int = 8
    window: int = 32
    steps: int = 150


SHAPES: dict[str, Shape] = {
    "width 64": Shape(64),
    "width 128": Shape(128),
    "width 256": Shape(256),
    "width 512": Shape(512),
    "depth 6": Shape(depth=6),
    "batch 64": Shape(64, batch=64),
}
# One to choose a rate by; fresh ones to report.
TUNING_SEED, SEEDS = 0, (10, 11, 12)
MILLION = Shape(width=128, depth=5, batch=16, window=64, steps=400)


def task(shape: Shape) -> Task:
    """Return the task of a shape: to predict the next byte of Python's help texts."""
    dataset = data.load_text(window=shape.window)
    train, validation = (
        {name: jnp.asarray(array) for name, array in dataset.parts[part].items()}
        for part in ("train", "validation")
    )

    def make(rngs: Any) -> models.Transformer:
        return models.Transformer(dataset.num_classes, shape.window, shape.width, shape.depth, rngs=rngs)

    apply, init = weights_of(make)

    def loss(params: Any, tokens: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, targets = tokens
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, inputs), targets).mean()

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return dataset.take(train, jax.random.randint(key, [shape.batch], 0, dataset.num_train))

    return Task(
        steps=shape.steps,
        init=init,
        sample=sample,
        loss=loss,
        followed=_validation(loss, dataset, validation),
        evaluations=5,
    )


def _validation(
    loss: Callable[..., jax.Array], dataset: data.Dataset, validation: dict[str, jax.Array]
) -> Callable[[Any], jax.Array]:
    window = dataset.input_shape[0]
    starts = np.linspace(0, len(validation["tokens"]) - window - 1, WINDOWS).astype(np.int32)
    parts = jnp.asarray(starts).reshape(8, -1)  # at once they would need more memory than the training

    def followed(params: Any) -> jax.Array:
        return jnp.mean(jax.lax.map(lambda indices: loss(params, dataset.take(validation, indices)), parts))

    return followed

"""Transformers that predict the next byte of Python's help texts: a small one, and a million weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.time_to_target.task import SPARING, Task, weights_of
from riemann_optax.examples import data, models


def _text(steps: int, window: int, batch: int, **network: int) -> Task:
    """Return the task of a Transformer; ``network`` is its width and depth."""
    dataset = data.load_text(window=window)
    train, validation = (
        {name: jnp.asarray(array) for name, array in dataset.parts[part].items()}
        for part in ("train", "validation")
    )
    apply, init = weights_of(
        lambda rngs: models.Transformer(dataset.num_classes, window, **network, rngs=rngs)
    )

    def loss(params: Any, tokens: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, targets = tokens
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, inputs), targets).mean()

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return dataset.take(train, jax.random.randint(key, [batch], 0, dataset.num_train))

    def spread(part: dict[str, jax.Array], windows: int) -> tuple[jax.Array, jax.Array]:
        starts = np.linspace(0, len(part["tokens"]) - window - 1, windows).astype(np.int32)
        return dataset.take(part, jnp.asarray(starts))

    # As many bytes whatever the window.
    probe, held_out = spread(train, 1536 // window), spread(validation, 8192 // window)
    return Task(
        steps=steps,
        init=init,
        sample=sample,
        loss=loss,
        followed=lambda params: loss(params, probe),
        held_out=lambda params: loss(params, held_out),
        **SPARING,
    )


def language_model() -> Task:
    """The example Transformer (2 layers, width 64) in windows of 32."""
    return _text(400, window=32, batch=8)


def gpt_million() -> Task:
    """A Transformer of 1.06 million weights, the one of ``benchmarks.drop_in`` (5 layers, width 128)."""
    return _text(250, window=64, batch=8, width=128, depth=5)

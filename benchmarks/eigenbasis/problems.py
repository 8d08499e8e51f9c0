"""What is learned: bytes by a decoder-only Transformer, or synthetic textures by a Vision Transformer."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from riemann_optax.examples import data, models

TRAIN, VALIDATION = 50_000, 2048  # textures
WAVES = 4  # of a texture
NOISE = 0.5  # of a pixel, whose texture has a variance of about 1


class Problem(NamedTuple):
    """What is learned.

    Attributes:
      examples: number of training examples.
      take: from ``"train"`` or ``"validation"`` and indices ``i32[batch]`` to inputs and targets; runs inside
        of the compiled step.
      validation: the indices that cover the validation part.
      model: from a seed to the model, whose initial weights are a function of the seed alone.
    """

    examples: int
    take: Callable[[str, Any], tuple[jax.Array, jax.Array]]
    validation: np.ndarray
    model: Callable[[int], models.Model]


def load(text: Path | None = None, *, width: int = 64, depth: int = 2, **shape: int) -> Problem:
    """Return what a shape describes.

    Args:
      text: a file of bytes to learn instead of Python's help topics.
      width: of the residual stream.
      depth: blocks.
      shape: ``window`` for a language model, or ``image``, ``patch`` and ``classes`` for textures.
    """
    if "window" in shape:
        return _bytes(text, width, depth, **shape)
    return _textures(width, depth, **shape)


def _bytes(text: Path | None, width: int, depth: int, window: int) -> Problem:
    dataset = data.load_text(text, window=window)
    parts = {
        part: {name: jnp.asarray(array) for name, array in dataset.parts[part].items()}
        for part in ("train", "validation")
    }
    tokens = dataset.num_classes

    def model(seed: int) -> models.Model:
        return models.functional(models.Transformer(tokens, window, width, depth, rngs=nnx.Rngs(seed)))

    return Problem(
        dataset.num_train,
        lambda part, indices: dataset.take(parts[part], indices),
        dataset.evaluation_indices("validation"),
        model,
    )


def _textures(width: int, depth: int, image: int, patch: int, classes: int) -> Problem:
    """Return textures: a class is four plane waves with a colour each, an example their phases and noise.

    An image is drawn from its index whenever it is wanted, so that no memory holds the data set. Phases shift
    each wave by itself, so that no pixel alone says anything.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    waves = math.pi * jax.random.uniform(keys[0], [classes, WAVES, 2], minval=-0.5, maxval=0.5)
    colours = jax.random.normal(keys[1], [classes, WAVES, 3]) * math.sqrt(2 / WAVES)
    places = jnp.stack(jnp.meshgrid(jnp.arange(image), jnp.arange(image), indexing="ij"), axis=-1)

    def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        label = index % classes
        own = jax.random.split(jax.random.fold_in(keys[2], index))
        phases = jax.random.uniform(own[0], [WAVES], maxval=2 * math.pi)
        picture = jnp.cos(places @ waves[label].T + phases) @ colours[label]
        return picture + NOISE * jax.random.normal(own[1], picture.shape), label

    def take(part: str, indices: Any) -> tuple[jax.Array, jax.Array]:
        offset = {"train": 0, "validation": TRAIN}[part]
        images, labels = jax.vmap(draw)(jnp.asarray(indices) + offset)
        return images, labels

    def model(seed: int) -> models.Model:
        return models.functional(VisionTransformer(image, patch, classes, width, depth, rngs=nnx.Rngs(seed)))

    return Problem(TRAIN, take, np.arange(VALIDATION, dtype=np.int32), model)


class VisionTransformer(nnx.Module):
    """Patches through pre-normalised Transformer blocks; the read-out is of their mean.

    Dosovitskiy et al, "An Image is Worth 16x16 Words", ICLR, 2021.
    """

    def __init__(
        self, image: int, patch: int, num_classes: int, width: int, depth: int, *, rngs: nnx.Rngs
    ) -> None:
        """Draw the weights."""
        self.patch = patch
        self.embed = nnx.Linear(3 * patch**2, width, rngs=rngs)
        self.position = nnx.Embed((image // patch) ** 2, width, rngs=rngs)
        self.blocks = nnx.List(models.Block(width, 4, causal=False, rngs=rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images ``[batch, side, side, 3]`` to logits."""
        batch, side = images.shape[:2]
        count = side // self.patch
        squares = images.reshape(batch, count, self.patch, count, self.patch, 3).swapaxes(2, 3)
        stream = self.embed(squares.reshape(batch, count**2, 3 * self.patch**2))
        stream = stream + self.position(jnp.arange(count**2)[None])
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream).mean(axis=1))

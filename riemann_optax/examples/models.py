"""Three small Flax NNX models: an MLP, a ConvNet and a decoder-only Transformer.

A model is used in functional form: :func:`build` splits it into a static graph and a plain nested
dictionary of parameters, and the :class:`Model` it returns maps ``(parameters, inputs)`` to logits. That is
what the training step differentiates, scans over and donates.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from riemann_optax import supply
from riemann_optax.examples.data import Dataset
from riemann_optax.examples.errors import InputError

Parameters = dict[str, Any]


class MLP(nnx.Module):
    """A multilayer perceptron with ReLU units on flattened images.

    Args:
      num_inputs: number of pixels of an image.
      num_classes: number of logits.
      width: units of each hidden layer.
      depth: number of hidden layers.
      rngs: the stream of keys for the initial weights.
    """

    def __init__(
        self, num_inputs: int, num_classes: int, width: int = 128, depth: int = 2, *, rngs: nnx.Rngs
    ) -> None:
        sizes = [num_inputs] + [width] * depth
        self.hidden = nnx.List(
            nnx.Linear(fan_in, fan_out, rngs=rngs) for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.head = nnx.Linear(sizes[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        received = images.reshape(images.shape[0], -1)
        for layer in self.hidden:
            received = nnx.relu(layer(received))
        return self.head(received)


def _halve(images: jax.Array) -> jax.Array:
    """Keep the largest of each 2x2 square; an odd last row or column is dropped."""
    batch, height, breadth, channels = images.shape
    even = images[:, : height // 2 * 2, : breadth // 2 * 2]
    # On CPU the gradient of this is several times faster than that of a windowed reduction.
    return even.reshape(batch, height // 2, 2, breadth // 2, 2, channels).max(axis=(2, 4))


class ConvNet(nnx.Module):
    """Three 3x3 convolutions, each normalised over its channels, and a linear read-out.

    The image is halved by maximum pooling after the first and after the third convolution.

    Args:
      image_shape: height, width and channels of an image.
      num_classes: number of logits.
      width: channels of the first convolution; the others have twice as many.
      rngs: the stream of keys for the initial weights.
    """

    def __init__(
        self, image_shape: tuple[int, ...], num_classes: int, width: int = 16, *, rngs: nnx.Rngs
    ) -> None:
        height, breadth, channels = image_shape
        sizes = [channels, width, 2 * width, 2 * width]
        self.convolutions = nnx.List(
            nnx.Conv(fan_in, fan_out, (3, 3), use_bias=False, rngs=rngs)
            for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(nnx.LayerNorm(size, rngs=rngs) for size in sizes[1:])
        self.head = nnx.Linear((height // 2 // 2) * (breadth // 2 // 2) * sizes[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        received = images
        for depth, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            received = nnx.relu(norm(convolution(received)))
            if depth in (0, 2):
                received = _halve(received)
        return self.head(received.reshape(images.shape[0], -1))


class Block(nnx.Module):
    """Self-attention and a two-layer perceptron, each normalised first and added to its input.

    Args:
      width: size of the residual stream.
      num_heads: attention heads.
      causal: whether a place sees only itself and those before it, or all places.
      rngs: the stream of keys for the initial weights.
    """

    def __init__(self, width: int, num_heads: int, *, causal: bool = True, rngs: nnx.Rngs) -> None:
        self.num_heads, self.causal = num_heads, causal
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.query_key_value = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.attention_out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp_in = nnx.Linear(width, 4 * width, rngs=rngs)
        self.mlp_out = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, stream: jax.Array) -> jax.Array:
        """Update the residual stream ``[batch, length, width]``."""
        batch, length, width = stream.shape
        heads = self.query_key_value(self.attention_norm(stream)).reshape(
            batch, length, 3, self.num_heads, width // self.num_heads
        )
        query, key, value = (heads[:, :, part] for part in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        stream = stream + self.attention_out(mixed.reshape(batch, length, width))
        return stream + self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(stream))))


class Transformer(nnx.Module):
    """A decoder-only Transformer that predicts the next byte from those before it.

    Args:
      num_tokens: size of the vocabulary.
      window: the longest context, in tokens.
      width: size of the residual stream.
      depth: number of blocks.
      num_heads: attention heads of each block.
      rngs: the stream of keys for the initial weights.
    """

    def __init__(
        self,
        num_tokens: int,
        window: int,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.embed = nnx.Embed(num_tokens, width, rngs=rngs)
        self.position = nnx.Embed(window, width, rngs=rngs)
        self.blocks = nnx.List(Block(width, num_heads, rngs=rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, num_tokens, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map tokens ``i32[batch, length]`` to next-token logits ``[batch, length, num_tokens]``."""
        stream = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1])[None])
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))


class Model(NamedTuple):
    """A model in functional form.

    Attributes:
      graph: the static structure of the NNX module.
      parameters: the initial weights, nested dictionaries of float32 arrays.
    """

    graph: nnx.GraphDef[Any]
    parameters: Parameters

    def apply(self, parameters: Parameters, inputs: jax.Array) -> jax.Array:
        """Return the logits of ``inputs`` under ``parameters``."""
        logits: jax.Array = supply.watch(nnx.merge(self.graph, parameters))(inputs)
        return logits


def functional(module: nnx.Module) -> Model:
    """Split a module that holds parameters and nothing else (no dropout, no running statistics)."""
    graph, parameters = nnx.split(module, nnx.Param)
    return Model(graph, nnx.to_pure_dict(parameters))


_MODULES: dict[str, type[nnx.Module]] = {"mlp": MLP, "convnet": ConvNet, "transformer": Transformer}
MODELS = tuple(_MODULES)


def build(name: str, dataset: Dataset, seed: int) -> Model:
    """Build a model whose size fits a data set, with initial weights that are a function of ``seed`` alone.

    Args:
      name: ``"mlp"``, ``"convnet"`` (both for images) or ``"transformer"`` (for text).
      dataset: the data, whose shapes the first and the last layer follow.
      seed: the seed of the initial weights.

    Returns:
      The model in functional form.

    Raises:
      InputError: if the model cannot read this kind of data.

    Examples:
      >>> from riemann_optax.examples import data, datasets, models
      >>> model = models.build("convnet", datasets.load("digits"), seed=0)
      >>> sorted(model.parameters)
      ['convolutions', 'head', 'norms']
    """
    rngs = nnx.Rngs(seed)
    module: nnx.Module
    if (name == "transformer") != (dataset.kind == "text"):
        remedy = "--data text" if name == "transformer" else "--model transformer"
        raise InputError(f"--model {name} cannot read --data {dataset.name} ({dataset.kind}): use {remedy}")
    if name == "mlp":
        module = MLP(math.prod(dataset.input_shape), dataset.num_classes, rngs=rngs)
    elif name == "convnet":
        module = ConvNet(dataset.input_shape, dataset.num_classes, rngs=rngs)
    elif name == "transformer":
        module = Transformer(dataset.num_classes, dataset.input_shape[0], rngs=rngs)
    else:
        raise InputError(f"--model {name} is not known: use one of {', '.join(MODELS)}")
    return functional(module)

"""Four small models of four libraries, each with a loss, a batch, and what a step needs beside."""

import functools
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import riemann_optax as ro

EXAMPLES = 6


class ConvNet(nnx.Module):
    """Convolution, BatchNorm, dropout and a read-out."""

    def __init__(self, rngs, rate=0.25):
        self.convolution = nnx.Conv(1, 3, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(3 * 4, 4, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.convolution(images)))
        return self.head(self.dropout(hidden).reshape(images.shape[0], -1))


class Block(linen.Module):
    """Attention and a perceptron."""

    @linen.compact
    def __call__(self, stream):
        normed = linen.LayerNorm(name="attention_norm")(stream)
        stream = stream + linen.MultiHeadDotProductAttention(2, name="attention")(normed)
        hidden = linen.gelu(linen.Dense(8, name="mlp_in")(linen.LayerNorm(name="mlp_norm")(stream)))
        return stream + linen.Dense(4, name="mlp_out")(hidden)


class Transformer(linen.Module):
    """Token embedding, one block, a read-out for each token."""

    @linen.compact
    def __call__(self, tokens, deterministic=True):
        stream = linen.Embed(7, 4, name="embed")(tokens)
        stream = linen.Dropout(0.25, name="dropout")(stream, deterministic=deterministic)
        return linen.Dense(7, name="head")(Block(name="block")(stream))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Case(NamedTuple):
    """A model under test: how it is made, its loss, its batch and the options of value_and_grad."""

    make: Any
    loss: Any
    batch: Any
    axes: Any = "flax"
    options: Any = MappingProxyType({})
    key: bool = False


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


LABELS = jnp.arange(EXAMPLES) % 4
IMAGES = {"images": array(0, EXAMPLES, 4, 4, 1), "labels": LABELS}
TOKENS = {"tokens": jnp.asarray(np.random.default_rng(1).integers(0, 7, (EXAMPLES, 5)))}
VECTORS = {"x": array(2, EXAMPLES, 3), "labels": LABELS}

TRANSFORMER = Transformer()
PERCEPTRON = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([5, 4])(x)))


def of_convnet(model, batch):
    return cross_entropy(model(batch["images"]), batch["labels"])


def of_transformer(params, batch, key):
    logits = TRANSFORMER.apply({"params": params}, batch["tokens"], False, rngs={"dropout": key})
    return cross_entropy(logits[:, :-1], batch["tokens"][:, 1:])


def of_equinox(model, batch):
    return cross_entropy(ro.supply.outputs(jax.vmap(model)(batch["x"])), batch["labels"])


def of_haiku(params, batch):
    return cross_entropy(ro.supply.outputs(PERCEPTRON.apply(params, batch["x"])), batch["labels"])


CASES = {
    "nnx": Case(lambda: ConvNet(nnx.Rngs(0)), of_convnet, IMAGES, options={"statistics": "running"}),
    "linen": Case(
        lambda: TRANSFORMER.init(jax.random.key(0), TOKENS["tokens"])["params"],
        of_transformer,
        TOKENS,
        options={"num_terms": EXAMPLES * 4},
        key=True,
    ),
    "equinox": Case(
        lambda: eqx.nn.MLP(3, 4, 5, 1, key=jax.random.key(0)), of_equinox, VECTORS, axes="equinox"
    ),
    "haiku": Case(lambda: PERCEPTRON.init(jax.random.key(0), VECTORS["x"]), of_haiku, VECTORS, axes="haiku"),
}


close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=1e-6)


class Net(nnx.Module):
    """A network without randomness, one of each usual layer."""

    def __init__(self, rngs):
        self.convolution = nnx.Conv(1, 3, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.convolution(images)))
        return self.head(hidden.reshape(images.shape[0], -1))


def quadratic(w, batch):
    """Curvature that is not diagonal."""
    return jnp.mean((jnp.tanh(batch["x"] @ w) - batch["y"]) ** 2)


W = array(5, 3)
DATA = {"x": array(6, 6, 3), "y": array(7, 6)}


def sgd_with(phi, **arguments):
    arguments = {"alpha": 1.0, "momentum": None, "conformal": None} | arguments
    return ro.riemannian_sgd(0.1, phi=phi, **arguments)


class ScannedLayer(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x, _):
        return jnp.tanh(linen.Dense(self.features, name="dense")(x)), None


class Scanned(linen.Module):
    """A stack of equal layers in a scan."""

    features: int
    length: int

    @linen.compact
    def __call__(self, x):
        split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        layers = linen.scan(ScannedLayer, length=self.length, **split)
        return layers(self.features, name="layers")(x, None)[0]

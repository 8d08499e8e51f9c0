"""The published protocols: a network, its loss, its first weights, and when it is tested."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from riemann_optax.examples import datasets

Params = list[dict[str, jax.Array]]
DIGITS_TEST = 360  # rows of scikit-learn's digits that are held out


class Images(NamedTuple):
    """Images as rows in [0, 1].

    Attributes:
      train_inputs, train_labels: to learn.
      test_inputs, test_labels: to test.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray


class Protocol(NamedTuple):
    """How a network is trained and tested.

    Attributes:
      title: in words.
      target: test accuracy, by the name of the data.
      batch: examples per update.
      limit: tests until a run counts as a miss.
      draw: from a key and the sizes of the layers to the first weights.
      prepare: from images and a seed to the images as this protocol shows them.
      outputs: from weights and inputs.
      loss: from outputs and labels, a mean over the batch.
      hidden: sizes of the hidden layers.
      margin: by how much tuning aims above the target: what costs least barely arrives, and a fresh seed may
        miss.
    """

    title: str
    target: dict[str, float]
    batch: int
    limit: int
    draw: Callable[[jax.Array, tuple[int, ...]], Params]
    prepare: Callable[[Images, int], Images]
    outputs: Callable[[Params, jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    hidden: tuple[int, ...]
    margin: float = 0.0


def load(name: str, folder: Path | None = None) -> Images:
    """Load scikit-learn's ``"digits"``, or a name of ``riemann_optax.examples.hub.SOURCES``, all rows."""
    if name == "digits":
        inputs, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        rows = (inputs / 16).astype(np.float32)
        test, train = np.split(order, [DIGITS_TEST])
        return Images(rows[train], labels[train], rows[test], labels[test])
    found = datasets.load(name, data_dir=folder)

    def joined(*parts: str) -> tuple[np.ndarray, np.ndarray]:
        pictures, labels = (
            np.concatenate([found.parts[part][kind] for part in parts]) for kind in ("images", "labels")
        )
        return pictures.reshape(len(pictures), -1).astype(np.float32) / found.scale, labels

    return Images(*joined("train", "validation"), *joined("heldout"))


def layers(params: Params, inputs: jax.Array, rectify: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return what the last layer gives, with ``rectify`` between the layers."""
    for number, layer in enumerate(params):
        inputs = inputs if number == 0 else rectify(inputs)
        inputs = inputs @ layer["kernel"] + layer["bias"]
    return inputs


def drawn(kernel: Callable[[jax.Array, tuple[int, int]], jax.Array]) -> Callable[..., Params]:
    """Return what draws layers with these kernels and biases of 0."""

    def draw(key: jax.Array, sizes: tuple[int, ...]) -> Params:
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"kernel": kernel(k, (m, n)), "bias": jnp.zeros(n)}
            for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    return draw


def as_they_are(images: Images, seed: int) -> Images:
    """Return the images unchanged."""
    return images


def centred(images: Images, seed: int) -> Images:
    """Subtract the mean image, and add a little noise, so that no input is always 0."""
    mean = images.train_inputs.mean(0)
    generator = np.random.default_rng(seed)
    noise = 1e-3 * generator.normal(size=images.train_inputs.shape)
    train = (images.train_inputs - mean + noise).astype(np.float32)
    return images._replace(train_inputs=train, test_inputs=images.test_inputs - mean)


def squares(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return half of the squared error, summed over outputs."""
    return jnp.mean(jnp.sum(jnp.square(outputs - targets), axis=-1)) / 2


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[..., None], axis=-1)
    return -chosen.mean()


def one_hot(labels: jax.Array, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Return targets for ten outputs."""
    return low + (high - low) * jax.nn.one_hot(labels, 10)


PROTOCOLS = {
    "li_van_rossum": Protocol(
        title="Li and van Rossum 2020: sigmoid units, targets .01 and .99, one example per update",
        target={"digits": 0.95, "mnist": 0.95},
        batch=1,
        limit=60,
        draw=drawn(lambda key, shape: jax.random.uniform(key, shape, minval=-0.01, maxval=0.01)),
        prepare=as_they_are,
        outputs=lambda params, x: jax.nn.sigmoid(layers(params, x, jax.nn.sigmoid)),
        loss=lambda outputs, labels: squares(outputs, one_hot(labels, 0.01, 0.99)),
        hidden=(100,),
    ),
    "van_rossum_pache": Protocol(
        title="van Rossum and Pache 2024: leaky rectifiers, linear outputs, one example per update",
        target={"digits": 0.95, "mnist": 0.95},
        batch=1,
        limit=60,
        draw=drawn(lambda key, shape: 0.03 * jax.random.normal(key, shape)),
        prepare=centred,
        outputs=lambda params, x: layers(params, x, lambda h: jax.nn.leaky_relu(h, 0.1)),
        loss=lambda outputs, labels: squares(outputs, one_hot(labels)),
        hidden=(100,),
    ),
    "modern": Protocol(
        title="rectifiers, cross-entropy, 32 examples per update, to AdamW's accuracy",
        target={"digits": 0.97, "mnist": 0.96},
        batch=32,
        limit=60,
        draw=drawn(lambda key, shape: jnp.sqrt(2 / shape[0]) * jax.random.normal(key, shape)),
        prepare=centred,
        outputs=lambda params, x: layers(params, x, jax.nn.relu),
        loss=cross_entropy,
        hidden=(256, 256),
        margin=0.005,
    ),
}

"""Images for the streams: the data, a small network, its exact Fisher information."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from riemann_optax.examples import datasets

LAYERS = (64, 100, 100, 10)
TEST_SHARE = 0.2
LIMIT = 10_000  # rows kept of a larger data set; every seed splits them anew

Params = list[dict[str, jax.Array]]


class Data(NamedTuple):
    """Digits of one seed: inputs in [0, 1], labels, and one permutation of the pixels per task.

    Attributes:
      train_inputs: shape (examples, 64).
      train_labels: shape (examples,).
      test_inputs: shape (test examples, 64).
      test_labels: shape (test examples,).
      permutations: shape (tasks, 64).
    """

    train_inputs: jax.Array
    train_labels: jax.Array
    test_inputs: jax.Array
    test_labels: jax.Array
    permutations: jax.Array


class Images(NamedTuple):
    """Pictures as rows.

    Attributes:
      inputs: shape (examples, pixels), in [0, 1].
      labels: shape (examples,).
      classes: how many labels there are.
    """

    inputs: np.ndarray
    labels: np.ndarray
    classes: int


def digits() -> Images:
    """Return scikit-learn's bundled digits."""
    inputs, labels = load_digits(return_X_y=True)
    return Images((inputs / 16).astype(np.float32), labels, 10)


def load(name: str, folder: Path | None = None) -> Images:
    """Load images as rows in [0, 1]: ``"digits"`` or a name of ``riemann_optax.examples.hub.SOURCES``.

    All published parts are one, of which ``LIMIT`` rows are kept: online learning holds nothing out.
    """
    if name == "digits":
        return digits()
    dataset = datasets.load(name, data_dir=folder)
    parts = [dataset.parts[part] for part in ("train", "validation", "heldout")]
    pictures, labels = (np.concatenate([p[name] for p in parts])[:LIMIT] for name in ("images", "labels"))
    rows = pictures.reshape(len(pictures), -1).astype(np.float32) / dataset.scale
    return Images(rows, labels, dataset.num_classes)


def make_data(seed: int, tasks: int, images: Images) -> Data:
    """Split the images at random and draw the permutations."""
    generator = np.random.default_rng(seed)
    inputs, labels, _ = images
    order = generator.permutation(len(labels))
    test, train = np.split(order, [round(TEST_SHARE * len(labels))])
    permutations = np.stack([generator.permutation(inputs.shape[1]) for _ in range(tasks)])
    return Data(*map(jnp.asarray, (inputs[train], labels[train], inputs[test], labels[test], permutations)))


def orders(key: jax.Array, rows: jax.Array, epochs: int, batch: int) -> jax.Array:
    """Return the rows of every step: in each epoch all in a new order, short batches left out."""
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
    return shuffled[:, : len(rows) // batch * batch].reshape(-1, batch)


def draw_network(key: jax.Array, layers: tuple[int, ...] = LAYERS) -> Params:
    """Draw He-initialised layers with zero biases."""
    keys = jax.random.split(key, len(layers) - 1)
    return [
        {"kernel": jnp.sqrt(2 / m) * jax.random.normal(k, (m, n)), "bias": jnp.zeros(n)}
        for k, m, n in zip(keys, layers[:-1], layers[1:], strict=True)
    ]


def logits(params: Params, inputs: jax.Array) -> jax.Array:
    """Return the logits of a network with ReLU."""
    return forward(params, inputs)[0]


def forward(
    params: Params, inputs: jax.Array, shifts: list[jax.Array] | None = None
) -> tuple[jax.Array, list[jax.Array]]:
    """Return the logits and the inputs of every layer; ``shifts`` are added to what each layer gives."""
    layer_inputs = []
    for number, layer in enumerate(params):
        if number:
            inputs = jax.nn.relu(inputs)
        layer_inputs.append(inputs)
        inputs = inputs @ layer["kernel"] + layer["bias"]
        if shifts is not None:
            inputs = inputs + shifts[number]
    return inputs, layer_inputs


def loss(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a batch."""
    log_probabilities = jax.nn.log_softmax(logits(params, inputs))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


def accuracy(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of inputs classified correctly."""
    return jnp.mean(jnp.argmax(logits(params, inputs), axis=-1) == labels)


def mean_fisher(params: Params, inputs: jax.Array) -> Params:
    """Return the diagonal of the Fisher information per example, with the labels' own expectation.

    Each example counts every label with the probability that the network gives it, so nothing is sampled. The
    score of a kernel is the outer product of the layer's input and the slope of what it gives, and so is its
    square: the mean over examples is one product of matrices.
    """

    def squares(x: jax.Array, _: None) -> list[jax.Array]:
        def log_probabilities(shifts: list[jax.Array]) -> jax.Array:
            return jax.nn.log_softmax(forward(params, x, shifts)[0])

        still = [jnp.zeros_like(layer["bias"]) for layer in params]
        weights = jnp.exp(log_probabilities(still))
        return [weights @ s**2 for s in jax.jacrev(log_probabilities)(still)]

    return _mean_squares(params, squares, inputs, None)


def reversed_fisher(params: Params, inputs: jax.Array, labels: jax.Array) -> Params:
    """Return the mean squared score of the labels under the negated logits (EWC-DR).

    Where a network is sure of a label its own score vanishes, and with it the importance of all weights; the
    score under the negated logits is then largest.

    References:
      Liu and Chang, `Elastic weight consolidation done right for continual learning
      <https://arxiv.org/abs/2603.18596>`_, CVPR, 2026
    """

    def squares(x: jax.Array, label: jax.Array) -> list[jax.Array]:
        def log_probability(shifts: list[jax.Array]) -> jax.Array:
            return jax.nn.log_softmax(-forward(params, x, shifts)[0])[label]

        still = [jnp.zeros_like(layer["bias"]) for layer in params]
        return [s**2 for s in jax.grad(log_probability)(still)]

    return _mean_squares(params, squares, inputs, labels)


def _mean_squares(
    params: Params, squares: Callable[..., list[jax.Array]], inputs: jax.Array, labels: jax.Array | None
) -> Params:
    """Return the mean over examples from the squares of each layer's slopes."""

    def one(x: jax.Array, label: jax.Array | None) -> tuple[list[jax.Array], list[jax.Array]]:
        return forward(params, x)[1], squares(x, label)

    layer_inputs, slopes = jax.vmap(one)(inputs, labels)
    return [
        {"kernel": jnp.square(x).T @ s / len(inputs), "bias": s.mean(0)}
        for x, s in zip(layer_inputs, slopes, strict=True)
    ]

"""The tasks: what is learned, for how many steps, and what is measured along the way."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.time_to_target import networks
from benchmarks.time_to_target.language import gpt_million, language_model
from benchmarks.time_to_target.mnist import MNIST
from benchmarks.time_to_target.other_kinds import recurrent, tabular
from benchmarks.time_to_target.task import SPARING, Task, batches_of, weights_of
from riemann_optax.examples import data, models

PROBE = 256  # training examples whose loss is followed: always the same, so that it has no sampling noise


def regression() -> Task:
    """Least squares without noise, singular values from 1 to 0.01, in full batches."""
    size = 50
    spectrum = jnp.logspace(0, -2, size)
    turn_left, turn_right = (
        jnp.linalg.qr(jax.random.normal(jax.random.key(k), (size, size)))[0] for k in (0, 1)
    )
    matrix = turn_left * spectrum @ turn_right

    def loss(params: jax.Array, batch: None) -> jax.Array:
        return jnp.sum(jnp.square(matrix @ (params - 1.0))) / 2

    def init(seed: int) -> jax.Array:
        return 1.0 + jax.random.normal(jax.random.key(seed), [size])

    return Task(1000, init, lambda key: None, loss, lambda params: loss(params, None), evaluations=500)


def saddle() -> Task:
    """Out of a saddle by noisy gradients: double wells of very different depths, begun on the ridge.

    The wells are at different distances: were they not, signs of gradients and one lucky rate would do.
    """
    weights = jnp.logspace(0, -2, 20)
    places = jax.random.uniform(jax.random.key(0), weights.shape, minval=0.5, maxval=2.0)

    def value(params: jax.Array) -> jax.Array:
        return jnp.sum(weights * jnp.square(jnp.square(params / places) - 1.0)) / 4

    def loss(params: jax.Array, noise: jax.Array) -> jax.Array:
        return value(params) + jnp.vdot(noise, params)

    return Task(
        steps=500,
        init=lambda seed: 1e-3 * jax.random.normal(jax.random.key(seed), weights.shape),
        sample=lambda key: 1e-3 * jax.random.normal(key, weights.shape),
        loss=loss,
        followed=value,
        evaluations=500,
    )


def plateau() -> Task:
    """Off a plateau and into a narrow bend: products of four weights, each to reach a value of its own."""
    weights, depth = jnp.logspace(0, -2, 10), 4
    products = jax.random.uniform(jax.random.key(0), weights.shape, minval=0.3, maxval=3.0)

    def value(params: jax.Array) -> jax.Array:
        return jnp.sum(weights * jnp.square(jnp.prod(params, axis=1) - products)) / 2

    def init(seed: int) -> jax.Array:
        return jax.random.uniform(jax.random.key(seed), (len(weights), depth), minval=0.1, maxval=0.4)

    return Task(500, init, lambda key: None, lambda params, batch: value(params), value, evaluations=500)


class Digits(NamedTuple):
    """The digits of scikit-learn in memory: images ``[rows, 8, 8, 1]`` in 0..1 and their labels."""

    images: jax.Array
    labels: jax.Array


def digits(part: str, rows: int | None = None) -> Digits:
    """Return the first rows of a part, or all of it."""
    dataset = data.load_digits()
    chosen = dataset.take(dataset.parts[part], dataset.evaluation_indices(part)[:rows])
    return Digits(*map(jnp.asarray, chosen))


def _classification(make: Callable[[nnx.Rngs], nnx.Module], steps: int, **options: Any) -> Task:
    apply, init = weights_of(make)
    train, probe, held_out = digits("train"), digits("train", PROBE), digits("heldout")

    def loss(params: Any, batch: Digits) -> jax.Array:
        logits = apply(params, batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return Task(
        steps=steps,
        init=init,
        sample=batches_of(train, 32),
        loss=loss,
        followed=lambda params: loss(params, probe),
        held_out=lambda params: loss(params, held_out),
        **options,
    )


def digits_mlp() -> Task:
    """A perceptron with one hidden layer of 64 units on the digits."""
    return _classification(lambda rngs: models.MLP(64, 10, width=64, depth=1, rngs=rngs), 500)


def digits_convnet() -> Task:
    """The example ConvNet, half as wide, on the digits."""
    return _classification(lambda rngs: models.ConvNet((8, 8, 1), 10, width=8, rngs=rngs), 250, **SPARING)


def digits_mixer() -> Task:
    """A small MLP-mixer on the digits."""
    return _classification(lambda rngs: networks.Mixer(10, rngs=rngs), 300, **SPARING)


def auto_encoder() -> Task:
    """A deep tanh auto-encoder on the digits; squared error summed over pixels."""
    apply, init = weights_of(lambda rngs: networks.AutoEncoder(rngs=rngs))
    train, probe, held_out = (
        images.reshape(-1, 64)
        for images in (digits("train").images, digits("train", PROBE).images, digits("heldout").images)
    )

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum(jnp.square(apply(params, images) - images), axis=-1))

    return Task(
        steps=800,
        init=init,
        sample=batches_of(train, 64),
        loss=loss,
        followed=lambda params: loss(params, probe),
        held_out=lambda params: loss(params, held_out),
    )


def variational() -> Task:
    """A variational auto-encoder on the digits; the negative lower bound, in nats per image."""
    code = 8
    apply, init = weights_of(lambda rngs: networks.VariationalAutoEncoder(code=code, rngs=rngs))
    train, probe, held_out = (
        images.reshape(-1, 64)
        for images in (digits("train").images, digits("train", PROBE).images, digits("heldout").images)
    )
    batches = batches_of(train, 64)

    def bound(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        images, noise = batch
        logits, mean, log_variance = apply(params, images, noise)
        reconstruction = optax.sigmoid_binary_cross_entropy(logits, images).sum(-1)
        divergence = optax.losses.l2_loss(mean) + (jnp.exp(log_variance) - log_variance - 1) / 2
        return jnp.mean(reconstruction + divergence.sum(-1))

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key)
        return batches(keys[0]), jax.random.normal(keys[1], (64, code))

    def with_fixed_noise(images: jax.Array) -> Callable[[Any], jax.Array]:
        noise = jax.random.normal(jax.random.key(0), (len(images), code))
        return lambda params: bound(params, (images, noise))

    return Task(600, init, sample, bound, with_fixed_noise(probe), with_fixed_noise(held_out))


TASKS: dict[str, Callable[[], Task]] = {
    "regression": regression,
    "saddle": saddle,
    "plateau": plateau,
    "digits_mlp": digits_mlp,
    "digits_convnet": digits_convnet,
    "digits_mixer": digits_mixer,
    "auto_encoder": auto_encoder,
    "variational": variational,
    "language_model": language_model,
    "recurrent": recurrent,
    "tabular": tabular,
    "gpt_million": gpt_million,
}

# Those that need nothing, and then those that read a folder.
NAMES = (*TASKS, *MNIST)
# A few seconds each: the loop in which a change is tried.
FAST = ("regression", "saddle", "plateau", "digits_mlp", "auto_encoder", "tabular")


def available(folder: Path | None) -> dict[str, Callable[[], Task]]:
    """Return what makes each task; those that read a folder are left out where there is none."""
    if folder is None:
        return dict(TASKS)
    return TASKS | {name: partial(learner.task, folder) for name, learner in MNIST.items()}


def initial(name: str) -> Any:
    """Return the parameters of seed 0 of a task, without reading a folder."""
    return MNIST[name].init(0) if name in MNIST else TASKS[name]().init(0)

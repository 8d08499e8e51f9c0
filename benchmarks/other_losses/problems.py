"""Four problems on which averages of weights behave otherwise than on a mean over fixed examples."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax.examples.data import load_digits

Tree = Any


class Problem(NamedTuple):
    """A problem. All randomness comes from keys.

    Attributes:
      title: in words, with what is measured.
      steps: length of a run.
      init: from a key to the first weights and what else the training changes, such as running statistics.
      gradients: of weights, the rest and a key: what the optimiser gets, and the rest afterwards.
      measures: of the weights that are evaluated, the rest and a key: numbers by name. The first is tuned.
      higher: whether more of the first is better.
    """

    title: str
    steps: int
    init: Callable[[jax.Array], tuple[Tree, Tree]]
    gradients: Callable[[Tree, Tree, jax.Array], tuple[Tree, Tree]]
    measures: Callable[[Tree, Tree, jax.Array], dict[str, jax.Array]]
    higher: bool = False


def perceptron(key: jax.Array, *sizes: int) -> list[dict[str, jax.Array]]:
    """Return the weights of a perceptron: kernels of variance 2 / inputs, biases of 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (n, m)) * jnp.sqrt(2.0 / n), "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def outputs(layers: list[dict[str, jax.Array]], inputs: jax.Array) -> jax.Array:
    """Return what a perceptron of leaky rectifiers makes of ``[batch, inputs]``."""
    *hidden, last = layers
    for layer in hidden:
        inputs = jax.nn.leaky_relu(inputs @ layer["kernel"] + layer["bias"], 0.1)
    return inputs @ last["kernel"] + last["bias"]


# A generator and its critic: Goodfellow et al, "Generative Adversarial Nets", NeurIPS, 2014.

CODE, DRAWN = 4, 128


def ring(key: jax.Array, count: int) -> jax.Array:
    """Return points ``[count, 2]`` round eight places on a circle of radius 2."""
    place_key, noise_key = jax.random.split(key)
    angle = jax.random.randint(place_key, (count,), 0, 8) * (2 * jnp.pi / 8)
    return 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1) + 0.2 * jax.random.normal(noise_key, (count, 2))


def _gan_init(key: jax.Array) -> tuple[Tree, Tree]:
    first, second = jax.random.split(key)
    return {"generator": perceptron(first, CODE, 64, 64, 2), "critic": perceptron(second, 2, 64, 64, 1)}, ()


def _gan_gradients(params: Tree, rest: Tree, key: jax.Array) -> tuple[Tree, Tree]:
    data_key, code_key = jax.random.split(key)
    real, codes = ring(data_key, DRAWN), jax.random.normal(code_key, (DRAWN, CODE))

    def of_critic(critic: Tree) -> jax.Array:
        made = outputs(params["generator"], codes)
        return (jax.nn.softplus(-outputs(critic, real)) + jax.nn.softplus(outputs(critic, made))).mean()

    def of_generator(generator: Tree) -> jax.Array:
        return jax.nn.softplus(-outputs(params["critic"], outputs(generator, codes))).mean()

    return {
        "generator": jax.grad(of_generator)(params["generator"]),
        "critic": jax.grad(of_critic)(params["critic"]),
    }, rest


def sliced_distance(first: jax.Array, second: jax.Array, directions: int = 32) -> jax.Array:
    """Return the mean Wasserstein-1 distance of two clouds ``[count, 2]`` of one size, seen from the side."""
    angle = jnp.arange(directions) * (jnp.pi / directions)
    seen = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return jnp.abs(jnp.sort(first @ seen, axis=0) - jnp.sort(second @ seen, axis=0)).mean()


def _gan_measures(params: Tree, rest: Tree, key: jax.Array) -> dict[str, jax.Array]:
    data_key, code_key = jax.random.split(key)
    made = outputs(params["generator"], jax.random.normal(code_key, (4096, CODE)))
    return {"distance": sliced_distance(made, ring(data_key, 4096))}


# A policy: Williams, "Simple Statistical Gradient-Following Algorithms", Machine Learning, 1992. The cart and
# its pole: Barto, Sutton and Anderson, "Neuronlike Adaptive Elements", IEEE Trans. Systems, Man, Cybernetics,
# 1983.

EPISODES, HORIZON = 16, 200


def cart(state: jax.Array, push: jax.Array) -> jax.Array:
    """Return place, speed, angle and its speed ``[4]``, 0.02 seconds after a push of -1 or 1 times 10 N."""
    _, speed, angle, turning = state
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    pull = (10 * push + 0.05 * turning**2 * sine) / 1.1
    angular = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    along = pull - 0.05 * angular * cosine / 1.1
    return state + 0.02 * jnp.stack([speed, along, turning, angular])


def episode(params: Tree, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the log-probability of each action of an episode, and whether the pole stood after it."""
    first, rest = jax.random.split(key)

    def step(carry: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[Any, Any]:
        state, alive = carry
        scores = jax.nn.log_softmax(outputs(params, state))
        action = jax.random.categorical(key, scores)
        state = cart(state, 2.0 * action - 1.0)
        standing = alive & (jnp.abs(state[0]) < 2.4) & (jnp.abs(state[2]) < 0.2095)
        return (state, standing), (jnp.where(alive, scores[action], 0.0), standing.astype(jnp.float32))

    begin = jax.random.uniform(first, (4,), minval=-0.05, maxval=0.05)
    _, (scores, standing) = jax.lax.scan(step, (begin, jnp.array(True)), jax.random.split(rest, HORIZON))
    return scores, standing


def _policy_gradients(params: Tree, rest: Tree, key: jax.Array) -> tuple[Tree, Tree]:
    def loss(params: Tree) -> jax.Array:
        scores, standing = jax.vmap(episode, (None, 0))(params, jax.random.split(key, EPISODES))
        to_come = jnp.cumsum(standing[:, ::-1], axis=1)[:, ::-1]
        gain = to_come - to_come.mean(axis=0)  # better than the other episodes at that time
        gain = gain / (gain.std() + 1e-6)
        return -(scores * gain).mean()

    return jax.grad(loss)(params), rest


def _policy_measures(params: Tree, rest: Tree, key: jax.Array) -> dict[str, jax.Array]:
    _, standing = jax.vmap(episode, (None, 0))(params, jax.random.split(key, 64))
    return {"seconds": 0.02 * standing.sum(axis=1).mean()}


# Tables of users and items: Koren, Bell and Volinsky, "Matrix Factorization Techniques", Computer, 2009.

USERS, ITEMS, RANK, RATINGS = 600, 400, 8, 20_000


@functools.cache
def ratings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users, items and ratings; they are products of hidden tables, with noise of deviation 0.3."""
    draw = np.random.default_rng(0)
    users = draw.integers(USERS, size=RATINGS + 5000)
    items = np.minimum(draw.geometric(0.01, size=len(users)) - 1, ITEMS - 1)  # few are seen by many
    hidden = draw.normal(size=(USERS, RANK)), draw.normal(size=(ITEMS, RANK))
    exact = (hidden[0][users] * hidden[1][items]).sum(1) / np.sqrt(RANK)
    return users, items, (exact + 0.3 * draw.normal(size=len(users))).astype(np.float32)


def _rated(params: Tree, rows: Any) -> jax.Array:
    users, items, wanted = (jnp.asarray(column)[rows] for column in ratings())
    found = (params["users"][users] * params["items"][items]).sum(1)
    return ((found - wanted) ** 2).mean()


def _factorisation_init(key: jax.Array) -> tuple[Tree, Tree]:
    first, second = jax.random.split(key)
    return {
        "users": 0.1 * jax.random.normal(first, (USERS, RANK)),
        "items": 0.1 * jax.random.normal(second, (ITEMS, RANK)),
    }, ()


def _factorisation_gradients(params: Tree, rest: Tree, key: jax.Array) -> tuple[Tree, Tree]:
    return jax.grad(_rated)(params, jax.random.randint(key, (256,), 0, RATINGS)), rest


def _factorisation_measures(params: Tree, rest: Tree, key: jax.Array) -> dict[str, jax.Array]:
    return {"held out": _rated(params, np.arange(RATINGS, RATINGS + 5000))}


# Running statistics: Ioffe and Szegedy, "Batch Normalization", ICML, 2015.

KEPT = 0.95  # of a running statistic at each step


class Normalised(nn.Module):
    """A perceptron of rectifiers with BatchNorm before each of them.

    Attributes:
      kept: of a running statistic at each step; at 0 it becomes that of the batch.
      running: whether running statistics are used, and not the batch's.
    """

    kept: float = KEPT
    running: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map images ``[batch, 64]`` to logits."""
        for _ in range(2):
            inputs = nn.Dense(64, use_bias=False)(inputs)
            inputs = nn.relu(nn.BatchNorm(use_running_average=self.running, momentum=self.kept)(inputs))
        return nn.Dense(10)(inputs)


@functools.cache
def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return scikit-learn's digits by part: rows of 64 pixels from 0 to 1, and labels."""
    data = load_digits()
    return {
        name: (np.float32(part["images"].reshape(-1, 64) / data.scale), part["labels"].astype(np.int32))
        for name, part in data.parts.items()
    }


def _normalised_init(key: jax.Array) -> tuple[Tree, Tree]:
    variables = Normalised().init(key, jnp.zeros((1, 64)))
    return variables["params"], variables["batch_stats"]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _normalised_gradients(params: Tree, running: Tree, key: jax.Array) -> tuple[Tree, Tree]:
    pixels, labels = map(jnp.asarray, digits()["train"])
    rows = jax.random.randint(key, (32,), 0, len(labels))

    def loss(params: Tree) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": running}
        logits, new = Normalised().apply(variables, pixels[rows], mutable=["batch_stats"])
        return _cross_entropy(logits, labels[rows]), new["batch_stats"]

    return jax.grad(loss, has_aux=True)(params)


def _normalised_measures(params: Tree, running: Tree, key: jax.Array) -> dict[str, jax.Array]:
    learned, _ = map(jnp.asarray, digits()["train"])
    pixels, labels = map(jnp.asarray, digits()["heldout"])
    variables = {"params": params, "batch_stats": running}
    _, anew = Normalised(kept=0.0).apply(variables, learned, mutable=["batch_stats"])

    def held_out(statistics: Tree) -> jax.Array:
        variables = {"params": params, "batch_stats": statistics}
        return _cross_entropy(Normalised(running=True).apply(variables, pixels), labels)

    return {
        "statistics made anew": held_out(anew["batch_stats"]),
        "statistics of the training": held_out(running),
    }


PROBLEMS = {
    "gan": Problem(
        "generator and critic: sliced Wasserstein distance", 3000, _gan_init, _gan_gradients, _gan_measures
    ),
    "policy": Problem(
        "policy of a cart with a pole: seconds that it stands, of 4",
        30,
        lambda key: (perceptron(key, 4, 32, 2), ()),
        _policy_gradients,
        _policy_measures,
        higher=True,
    ),
    "factorisation": Problem(
        "tables of users and items: held-out square error",
        3000,
        _factorisation_init,
        _factorisation_gradients,
        _factorisation_measures,
    ),
    "normalised": Problem(
        "perceptron with BatchNorm on digits: held-out loss",
        600,
        _normalised_init,
        _normalised_gradients,
        _normalised_measures,
    ),
}

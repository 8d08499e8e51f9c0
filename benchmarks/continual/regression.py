"""The slowly-changing regression as a stream: per task all slow bits are drawn anew, or one is flipped."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.continual.chains import ONE_CHAIN, one_chain
from benchmarks.continual.job import Job
from benchmarks.continual.methods import Scale, ablation, online_methods
from benchmarks.continual.network import Network
from benchmarks.continual.slow_bits import BITS, HIDDEN, SLOW, Target, draw_learner, draw_target
from benchmarks.shared import lanes

FAST = BITS - SLOW
# All values of the fast bits: within a task no other input occurs than these.
FAST_VALUES = ((np.arange(2**FAST)[:, None] >> np.arange(FAST)) & 1).astype(np.float32)
SCALE = Scale(
    alpha=12_500.0,
    metric=100.0,
    pull=5e-4,
    noise=0.07,
    sgd=0.002,
    rmsprop=0.004,
    adam=0.001,
    l2=4e-3,
    share=2e-4,
    shake=2e-3,
    gradient_noise=0.5,
)


class Own(NamedTuple):
    """What belongs to a seed.

    Attributes:
      target: the net to be learned.
      slow: the slow bits of the task.
      key: that of the next task.
    """

    target: Target
    slow: jax.Array
    key: jax.Array


def split(params: jax.Array) -> list[dict[str, jax.Array]]:
    """Return the two layers of the learner, which is one vector."""
    kernel, bias, output, output_bias = jnp.split(
        params, [BITS * HIDDEN, (BITS + 1) * HIDDEN, len(params) - 1]
    )
    return [
        {"kernel": kernel.reshape(BITS, HIDDEN), "bias": bias},
        {"kernel": output[:, None], "bias": output_bias},
    ]


def join(layers: list[dict[str, jax.Array]]) -> jax.Array:
    """Return the layers as one vector."""
    first, last = layers
    parts = (first["kernel"], first["bias"], last["kernel"], last["bias"])
    return jnp.concatenate([part.reshape(-1) for part in parts])


def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw a Kaiming-uniform kernel."""
    bound = (6 / shape[0]) ** 0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


NETWORK = Network(split, join, draw)
# Without renewal, which five units on a single example at a time have no use for.
CHAIN = one_chain(SCALE, NETWORK, None, **SCALE.three(SCALE.metric))
METHODS = online_methods(SCALE, NETWORK) | ablation(SCALE) | {ONE_CHAIN: CHAIN}


def loss(params: jax.Array, inputs: jax.Array, target: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Return half of the squared error of one example, and the hidden activities."""
    first, last = split(params)
    hidden = jax.nn.relu(inputs @ first["kernel"] + first["bias"])
    prediction = hidden @ last["kernel"][:, 0] + last["bias"][0]
    return 0.5 * jnp.square(prediction - target), [hidden]


def next_task(own: Own, steps: int, flip: bool) -> tuple[Own, jax.Array, jax.Array, jax.Array]:
    """Draw a task: its inputs and their targets, and which of them each step has."""
    key, slow_key, fast_key = jax.random.split(own.key, 3)
    if flip:
        chosen = jnp.arange(SLOW) == jax.random.randint(slow_key, (), 0, SLOW)
        slow = jnp.where(chosen, 1 - own.slow, own.slow)
    else:
        slow = jax.random.bernoulli(slow_key, shape=(SLOW,)).astype(jnp.float32)
    inputs = jnp.concatenate([jnp.broadcast_to(slow, (len(FAST_VALUES), SLOW)), FAST_VALUES], axis=1)
    which = jax.random.randint(fast_key, (steps,), 0, len(FAST_VALUES), jnp.uint8)
    return own._replace(slow=slow, key=key), inputs, own.target(inputs), which


def draw_own(seed: jax.Array) -> tuple[Own, jax.Array, jax.Array]:
    """Draw what belongs to a seed, its learner, and the key of an optimiser's noise."""
    target_key, learner_key, noise_key, slow_key, key = jax.random.split(jax.random.key(seed), 5)
    slow = jax.random.bernoulli(slow_key, shape=(SLOW,)).astype(jnp.float32)
    return Own(draw_target(target_key), slow, key), draw_learner(learner_key), noise_key


def learn(build, values, params, state, task):
    """Learn one task online; return the mean squared error, each from before its step, too."""
    inputs, targets, which = task
    # The key of the noise is in the state by now.
    tx = build(values, jax.random.key(0))

    def step(carry, row):
        (params, state), (boundary, index) = carry, row
        (half_error, hidden), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, inputs[index], targets[index]
        )
        update, state = tx.update(
            gradient,
            state,
            params,
            activations=hidden,
            obj_fn=lambda p: loss(p, inputs[index], targets[index])[0],
            task_boundary=boundary,
        )
        return (params + update, state), 2 * half_error

    first = jnp.arange(len(which)) == 0
    (params, state), errors = jax.lax.scan(step, (params, state), (first, which))
    return params, state, errors.mean()


@functools.cache
def drawing(steps: int, flip: bool) -> Callable[[Own], tuple[Own, jax.Array, jax.Array, jax.Array]]:
    """Return :func:`next_task` for all seeds, compiled."""
    return jax.jit(jax.vmap(lambda own: next_task(own, steps, flip)))


def run(job: Job, *, tasks: int, steps: int, flip: bool = False) -> list[lanes.Scores]:
    """Learn all tasks online.

    Args:
      job: what is run.
      tasks: how many times the slow bits change, and one.
      steps: of one example each, per task.
      flip: whether one slow bit changes at a time instead of all being drawn anew.
    """
    own, params, keys = jax.jit(jax.vmap(draw_own))(jnp.asarray(job.seeds))

    def drawn() -> Iterator[Any]:
        seeds = own
        for _ in range(tasks):
            seeds, *task = drawing(steps, flip)(seeds)
            yield tuple(task)
            job.advance(1 / tasks)

    errors = lanes.learned(learn, METHODS[job.method].make, job.points, params, keys, drawn())
    table = np.stack([error.astype(np.float64) for error in errors], axis=-1)  # points x seeds x tasks
    return [lanes.scores({"error": by_seed}, "error") for by_seed in table]

"""The slowly-changing regression of Dohare et al: a stream of bits, a fixed target net, a small learner."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

BITS, SLOW = 20, 15  # input bits; how many of them change only with the task, the others at every step
TARGET_UNITS, HIDDEN = 100, 5
THRESHOLD = 0.7  # of the target's units, as a share of the number of their inputs


class Target(NamedTuple):
    """The net to be learned: linear threshold units between weights of +-1.

    Attributes:
      weights: shape (BITS, TARGET_UNITS).
      bias: shape (TARGET_UNITS,).
      threshold: shape (TARGET_UNITS,).
      output: shape (TARGET_UNITS,).
      output_bias: a scalar.
    """

    weights: jax.Array
    bias: jax.Array
    threshold: jax.Array
    output: jax.Array
    output_bias: jax.Array

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return the targets of inputs of shape (..., BITS)."""
        active = inputs @ self.weights + self.bias > self.threshold
        return active @ self.output + self.output_bias


def draw_target(key: jax.Array) -> Target:
    """Draw a target net: each unit is active for about 0.7 of its inputs at their more active value."""
    keys = jax.random.split(key, 4)
    weights = jax.random.rademacher(keys[0], (BITS, TARGET_UNITS), jnp.float32)
    bias = jax.random.rademacher(keys[1], (TARGET_UNITS,), jnp.float32)
    negative = (BITS - weights.sum(0) + bias) / 2
    return Target(
        weights=weights,
        bias=bias,
        threshold=THRESHOLD * (BITS + 1) - negative,
        output=jax.random.rademacher(keys[2], (TARGET_UNITS,), jnp.float32),
        output_bias=jax.random.rademacher(keys[3], (), jnp.float32),
    )


def draw_learner(key: jax.Array) -> jax.Array:
    """Draw the learner, 20-5-1 with ReLU, as one vector: Kaiming-uniform weights and zero biases.

    One vector, because every part of the optimisers compared is elementwise, and four small arrays would
    cost four times the calls in a scan of a million steps.
    """
    hidden_key, output_key = jax.random.split(key)
    hidden_bound, output_bound = (6 / BITS) ** 0.5, (3 / HIDDEN) ** 0.5
    hidden = jax.random.uniform(hidden_key, (BITS * HIDDEN,), minval=-hidden_bound, maxval=hidden_bound)
    output = jax.random.uniform(output_key, (HIDDEN,), minval=-output_bound, maxval=output_bound)
    return jnp.concatenate([hidden, jnp.zeros(HIDDEN), output, jnp.zeros(1)])


def predict(params: jax.Array, inputs: jax.Array) -> jax.Array:
    """Return the learner's prediction for one input."""
    weights, bias, output, output_bias = jnp.split(
        params, [BITS * HIDDEN, (BITS + 1) * HIDDEN, len(params) - 1]
    )
    hidden = jax.nn.relu(inputs @ weights.reshape(BITS, HIDDEN) + bias)
    return hidden @ output + output_bias[0]


def loss(params: jax.Array, inputs: jax.Array, target: jax.Array) -> jax.Array:
    """Return half of the squared error of one example, whose gradient is the error times the slope."""
    return 0.5 * jnp.square(predict(params, inputs) - target)


def draw_task(key: jax.Array, steps: int) -> jax.Array:
    """Draw the inputs of one task: its slow bits all anew and then constant, the others at each step."""
    slow_key, fast_key = jax.random.split(key)
    slow = jax.random.bernoulli(slow_key, shape=(SLOW,))
    fast = jax.random.bernoulli(fast_key, shape=(steps, BITS - SLOW))
    inputs = jnp.concatenate([jnp.broadcast_to(slow, (steps, SLOW)), fast], axis=1)
    return inputs.astype(jnp.float32)


def learn_task(
    tx: optax.GradientTransformation,
    params: jax.Array,
    state: optax.OptState,
    inputs: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    """Learn one task online, one example per step; return the squared errors from before each step too."""

    def step(carry, example):
        params, state = carry
        half_error, gradient = jax.value_and_grad(loss)(params, *example)
        update, state = tx.update(gradient, state, params)
        return (params + update, state), 2 * half_error

    (params, state), errors = jax.lax.scan(step, (params, state), (inputs, targets))
    return params, state, errors

"""Nets of the slowly-changing regression of Dohare et al: a fixed target of bits, and a small learner."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

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

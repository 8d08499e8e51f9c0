"""The schedules of the trainer and the benchmarks: a linear warm-up, then a cosine or a constant rate."""

import math

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(peak: jax.typing.ArrayLike, steps: int) -> optax.Schedule:
    """Learning rate that rises linearly over the first 5% of the steps and falls to 0 along a cosine.

    Args:
      peak: the highest rate; may be traced.
      steps: number of steps of the whole run.

    Returns:
      A schedule: the count of steps taken, from 0, to the rate of the next one.

    Examples:
      >>> schedule = warmup_cosine(1.0, 100)
      >>> [round(float(schedule(count)), 2) for count in (0, 4, 52, 99)]
      [0.2, 1.0, 0.5, 0.0]
    """
    warmup = max(1, steps // 20)
    peak = jnp.asarray(peak)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        rising = (jnp.asarray(count) + 1) / warmup
        progress = jnp.clip((jnp.asarray(count) - warmup) / max(1, steps - warmup), 0.0, 1.0)
        return peak * jnp.minimum(rising, 0.5 * (1 + jnp.cos(math.pi * progress)))

    return schedule


def warmup_constant(peak: jax.typing.ArrayLike, warmup_steps: int) -> optax.Schedule:
    """Learning rate that rises linearly over ``warmup_steps`` and stays: what schedule-free averaging wants.

    Args:
      peak: the rate after the warm-up; may be traced.
      warmup_steps: steps until the full rate; 0 for none.

    Returns:
      A schedule: the count of steps taken, from 0, to the rate of the next one.

    Examples:
      >>> schedule = warmup_constant(1.0, 4)
      >>> [float(schedule(count)) for count in (0, 3, 1000)]
      [0.25, 1.0, 1.0]
    """
    peak = jnp.asarray(peak)
    return lambda count: peak * jnp.minimum(1.0, (jnp.asarray(count) + 1) / max(1, warmup_steps))

"""Means of a phi that is the product of two factors, from the factors: no pass over the weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _tree


def group_means(first: Any, second: Any, over: _tree.Group | None) -> Any:
    """Return the mean of ``first * second`` over each leaf or over the tree, and None for any other group.

    Two trees of arrays, which broadcast to the leaves and have all of their axes.
    """
    if over not in ("leaf", "tree"):
        return None
    sizes = jax.tree.map(lambda a, b: math.prod(np.broadcast_shapes(a.shape, b.shape)), first, second)
    sums = jax.tree.map(_sum_of_product, first, second)
    if over == "leaf":
        return jax.tree.map(jnp.divide, sums, sizes)
    return _tree.mean_of_sums(sums, sum(jax.tree.leaves(sizes)))


def _sum_of_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``sum(a * b)``; where one of the two does not vary along an axis the other is summed first."""
    of_a = tuple(axis for axis in range(a.ndim) if b.shape[axis] == 1)
    of_b = tuple(axis for axis in range(a.ndim) if a.shape[axis] == 1 and axis not in of_a)
    return jnp.sum(_sum(a, of_a) * _sum(b, of_b))


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis=axes, keepdims=True) if axes else x

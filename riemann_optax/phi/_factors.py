"""Means of a phi that is the product of two factors, from the factors: no pass over the weights."""

import math
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _tree

Pair = tuple[jax.Array, jax.Array | None]


def group_means(pairs: list[Pair], over: _tree.Group | None) -> list[jax.Array] | None:
    """Return the mean of the product of each pair, or of all together; None for any other group.

    The two factors of a pair broadcast to the leaf and have all of its axes; a second factor of None is 1.
    """
    if over not in ("leaf", "tree"):
        return None
    sizes = [math.prod(a.shape if b is None else np.broadcast_shapes(a.shape, b.shape)) for a, b in pairs]
    if over == "leaf":
        return [_sum_of_product(*pair) / size for pair, size in zip(pairs, sizes, strict=True)]
    means: list[jax.Array] = _tree.mean_of_sums(_sums_of_alike(pairs), sum(sizes), [a for a, _ in pairs])
    return means


def _sums_of_alike(pairs: list[Pair]) -> list[jax.Array]:
    """Return the sums over all pairs of one shape, dtype and sharding together.

    A few reductions of stacked factors in the place of several for each leaf: the time to compile them, and
    on a GPU to launch them, is then that of the kinds of leaves.
    """
    alike = defaultdict(list)
    for a, b in pairs:
        alike[jax.typeof(a), b if b is None else jax.typeof(b)].append((a, b))
    stacks = [
        [None if factor[0] is None else jnp.stack(factor) for factor in zip(*same, strict=True)]
        for same in alike.values()
    ]
    return [_sum_of_product(*stack, own=1) for stack in stacks]


def _sum_of_product(a: jax.Array, b: jax.Array | None, own: int = 0) -> jax.Array:
    """Return ``sum(a * b)``; where one of the two does not vary along an axis the other is summed first.

    The first ``own`` axes are no axes of the product: they stack pairs.
    """
    if b is None:
        return jnp.sum(a)
    of_a = tuple(axis for axis in range(own, a.ndim) if b.shape[axis] == 1)
    of_b = tuple(axis for axis in range(own, a.ndim) if a.shape[axis] == 1 and axis not in of_a)
    return jnp.sum(_sum(a, of_a) * _sum(b, of_b))


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis=axes, keepdims=True) if axes else x

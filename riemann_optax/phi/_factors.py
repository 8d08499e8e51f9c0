"""Means of a phi that is a product of two factors, computed from the factors without a pass over weights."""

import functools
import math
import operator
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
        return [
            jnp.sum(_first_summed(*pair)) / float(max(size, 1))
            for pair, size in zip(pairs, sizes, strict=True)
        ]
    # Of a leaf without weights a factor may be a mean of nothing, which is no number.
    filled = [pair for pair, size in zip(pairs, sizes, strict=True) if size]
    means: list[jax.Array] = _tree.mean_of_sums(_sums_of_alike(filled), sum(sizes), [a for a, _ in pairs])
    return means


@jax.custom_jvp
def share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Return ``part / whole``, and 0, with a derivative of 0, where the whole is 0.

    JAX's own derivative has the square of the denominator: of mean squares of gradients it underflows in
    float32 from gradients of 1e-10 on, and is NaN.
    """
    return _tree.divided(part, whole, 0.0)


@share.defjvp
def _derivative_of_share(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (part, whole), (of_part, of_whole) = primals, tangents
    quotient = share(part, whole)
    safe = jnp.where(whole == 0, jnp.ones_like(whole), whole)
    slope = (of_part - quotient * of_whole) / safe
    return quotient, jnp.where(whole == 0, jnp.zeros_like(slope), slope)


# Number of arrays added in one kernel; XLA compiles identical kernels once.
_TOGETHER = 16


def _sums_of_alike(pairs: list[Pair]) -> list[jax.Array]:
    """Return parts of the sum over all pairs.

    Pairs of one shape, dtype and sharding are summed together: each second factor is multiplied by the sum
    of its first, and these products are added before the reduction. One reduction per leaf would cost a
    compilation and a GPU launch each. (Stacking does not help: XLA splits the reduction again.)
    """
    alike = defaultdict(list)
    for a, b in pairs:
        alike[jax.typeof(a), b if b is None else jax.typeof(b)].append(_first_summed(a, b))
    groups = [
        same[start : start + _TOGETHER] for same in alike.values() for start in range(0, len(same), _TOGETHER)
    ]
    return [jnp.sum(functools.reduce(operator.add, group)) for group in groups]


def _first_summed(a: jax.Array, b: jax.Array | None) -> jax.Array:
    """Return an array with the sum of ``a * b``: the axes along which ``b`` does not vary are summed."""
    return a if b is None else _sum(a, tuple(axis for axis in range(a.ndim) if b.shape[axis] == 1)) * b


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis=axes, keepdims=True) if axes else x

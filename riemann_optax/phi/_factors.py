"""Means of a phi that is the product of two factors, from the factors: no pass over the weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _tree


def mean_of_products(first: Any, second: Any, over: _tree.Group) -> Any:
    """Return ``_tree.group_mean`` of ``first * second``, two trees of arrays that broadcast to the leaves."""

    def shape(a: jax.Array, b: jax.Array) -> tuple[int, ...]:
        return tuple(np.broadcast_shapes(a.shape, b.shape))

    if over == "tree":
        sums = jax.tree.map(lambda a, b: _sum_of_product(a, b, tuple(range(len(shape(a, b))))), first, second)
        sizes = jax.tree.map(lambda a, b: math.prod(shape(a, b)), first, second)
        return _tree.mean_of_sums(sums, sum(jax.tree.leaves(sizes)))

    def mean(a: jax.Array, b: jax.Array) -> jax.Array:
        by_neuron = over == "neuron" and len(shape(a, b)) > 1
        axes = tuple(range(len(shape(a, b)) - by_neuron))
        total = _sum_of_product(a, b, axes, keepdims=by_neuron)
        return total / math.prod(shape(a, b)[axis] for axis in axes)

    return jax.tree.map(mean, first, second)


def _sum_of_product(a: jax.Array, b: jax.Array, axes: tuple[int, ...], keepdims: bool = False) -> jax.Array:
    """Sum ``a * b`` over axes; where one of them does not vary along an axis, before it is multiplied."""
    of_a = tuple(axis for axis in axes if b.shape[axis] == 1)
    of_b = tuple(axis for axis in axes if a.shape[axis] == 1 and axis not in of_a)
    of_both = tuple(axis for axis in axes if axis not in of_a + of_b)
    total = _sum(_sum(a, of_a) * _sum(b, of_b), of_both)
    return total if keepdims else jax.lax.squeeze(total, axes)


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axis=axes, keepdims=True) if axes else x

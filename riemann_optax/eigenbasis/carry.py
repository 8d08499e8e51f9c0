"""Converting what is stored in the coordinates of a basis when the basis changes."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from riemann_optax.eigenbasis.bases import product
from riemann_optax.eigenbasis.layout import Layout
from riemann_optax.eigenbasis.mesh import first_axes, placed


def carried(
    average: jax.Array,
    change: jax.Array,
    layout: Layout,
    side: Literal["left", "right"],
    shape: tuple[int, ...],
    linear: bool,
    precision: Any,
    place: PartitionSpec | None = None,
) -> jax.Array:
    """Return an average in the coordinates of the new basis.

    If the average is reduced over an axis that turns, the *matrix* is reduced before the product. Reducing
    the product of a matrix with a broadcast array is more work, and the CPU backend of JAX 0.10.2 returns
    garbage for it at shapes such as (100, 50).

    Args:
      average: an array of the leaf's shape, perhaps with axes reduced to 1, or with further axes in front.
      change: ``[*stack, blocks, old, new]``.
      layout: the layout of the leaf.
      side: which side has changed.
      shape: the shape of the leaf.
      linear: whether the average is linear in gradient or weights; if not, rows and columns of ``change``
        sum to 1.
      precision: the precision of the products.
      place: where the blocked matrices of the average lie meanwhile, see :func:`places`.
    """
    if average.ndim > len(shape):
        moved: jax.Array = jax.vmap(lambda one: carried(one, change, layout, side, shape, linear, precision))(
            average
        )
        return moved
    stack, axes, others = layout.axes(side)
    reduced = [axis for axis in axes if average.shape[axis] != shape[axis]]
    if not linear and len(reduced) == len(axes):
        return average  # a mean over all coordinates that turn is the same in every basis
    merged = tuple(number for number, axis in enumerate(stack) if average.shape[axis] != shape[axis])
    if merged:
        change = jnp.mean(change, axis=merged, keepdims=True)
    if reduced:
        change = _reduced_change(change, [shape[a] for a in axes], [axes.index(a) for a in reduced])
    order = (*stack, *axes, *others)
    permuted = jnp.transpose(average, order)
    blocks, size = change.shape[-3:-1]
    lead = permuted.shape[: len(stack)]
    columns = permuted.reshape(*lead, blocks, size, -1).astype(change.dtype)
    if columns.shape[-1] == 1:
        # XLA compiles each product with a vector by itself, and equal sums once.
        carried_columns = jnp.sum(change * columns, axis=-2)
    else:
        flat = None if place is None else PartitionSpec(*place[:-4], None, None, first_axes(place[-4:]))
        columns = placed(columns, flat)
        carried_columns = placed(product("...pad,...pak->...pdk", change, columns, precision), flat)
    turned = carried_columns.reshape(permuted.shape)
    return jnp.transpose(turned, [order.index(axis) for axis in range(len(shape))]).astype(average.dtype)


def _reduced_change(change: jax.Array, lengths: list[int], reduced: list[int]) -> jax.Array:
    """Return the change of a mean over some axes of a side, ``[*stack, 1, old, new]`` of the others."""
    *stack, blocks, _, _ = change.shape
    if blocks > 1:
        change = jnp.einsum("...pad,pq->...paqd", change, jnp.eye(blocks, dtype=change.dtype))
    full = change.reshape(*stack, *lengths, *lengths)
    first_old, first_new = len(stack), len(stack) + len(lengths)
    means = jnp.mean(full, axis=tuple(first_new + axis for axis in reduced), keepdims=True)
    sums = jnp.sum(means, axis=tuple(first_old + axis for axis in reduced), keepdims=True)
    rest = math.prod(n for axis, n in enumerate(lengths) if axis not in reduced)
    return sums.reshape(*stack, 1, rest, rest)

"""The bases: running correlations, turning into a basis and back, and refreshing it."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax.eigenbasis.coordinates import Coordinates
from riemann_optax.eigenbasis.layout import Layout
from riemann_optax.eigenbasis.mesh import spread


def turn(matrices: jax.Array, left: Any, right: Any, precision: Any = None) -> jax.Array:
    """Return ``left^T X right`` for blocked matrices ``[*stack, p, a, q, c]``; a basis of None is 1."""
    if left is not None:
        left = left.astype(matrices.dtype)
        matrices = jnp.einsum("...pad,...paqc->...pdqc", left, matrices, precision=precision)
    if right is not None:
        right = right.astype(matrices.dtype)
        matrices = jnp.einsum("...paqc,...qce->...paqe", matrices, right, precision=precision)
    return matrices


def turn_back(matrices: jax.Array, left: Any, right: Any, precision: Any = None) -> jax.Array:
    """Return ``left X right^T``."""
    left, right = (None if basis is None else jnp.swapaxes(basis, -1, -2) for basis in (left, right))
    return turn(matrices, left, right, precision)


def correlations(matrices: jax.Array, side: Literal["left", "right"], precision: Any = None) -> jax.Array:
    """Return ``X X^T`` (left) or ``X^T X`` (right) of each block."""
    subscripts = "...paqc,...pdqc->...pad" if side == "left" else "...paqc,...paqe->...qce"
    return jnp.einsum(subscripts, matrices, matrices, precision=precision)


def decompose(correlation: jax.Array) -> jax.Array:
    """Return the eigenvectors of ``[..., n, n]`` as columns, those of the largest eigenvalues first."""
    return jnp.flip(jnp.linalg.eigh(correlation)[1], -1)


def iterate(correlation: jax.Array, basis: jax.Array, precision: Any = None) -> tuple[jax.Array, jax.Array]:
    """Return a nearer basis after one power iteration, and the order its columns were first put into.

    The QR decomposition gives way to columns further left, so the columns are sorted by what the correlation
    is along them.
    """
    product = jnp.matmul(correlation, basis, precision=precision)
    order = jnp.argsort(jnp.sum(basis * product, axis=-2), axis=-1, descending=True)
    sorted_product = jnp.take_along_axis(product, order[..., None, :], axis=-1)
    return jnp.linalg.qr(sorted_product)[0], order


class Job(NamedTuple):
    """One side of one leaf, whose bases are refreshed together.

    Attributes:
      leaf: number of the leaf.
      side: which side of it.
      shape: shape of its bases, ``(*stack, blocks, size, size)``.
      dtype: what they are computed in.
      slot: the refresh comes at steps that are this modulo ``update_every``.
    """

    leaf: int
    side: Literal["left", "right"]
    shape: tuple[int, ...]
    dtype: Any
    slot: int = 0


def schedule(
    layouts: list[Layout | None], dtypes: list[Any], update_every: int, together: int
) -> list[list[Job]]:
    """Spread the refreshes over steps; return groups of jobs of one shape, dtype and slot.

    The largest come first; each run of ``together`` alike jobs goes into the slot that has least to do.
    """
    alike: dict[tuple[int, tuple[int, ...], str], list[Job]] = {}
    for index, (layout, dtype) in enumerate(zip(layouts, dtypes, strict=True)):
        for side in ("left", "right"):
            if layout is not None and getattr(layout, side):
                job = Job(index, side, layout.square(side), dtype)
                alike.setdefault((job.shape[-1], job.shape, str(dtype)), []).append(job)
    work = [0] * update_every
    groups: list[list[Job]] = []
    for (size, shape, _), jobs in sorted(alike.items(), reverse=True):
        by_slot: dict[int, list[Job]] = {}
        for first in range(0, len(jobs), together):
            slot = work.index(min(work))
            for job in jobs[first : first + together]:
                work[slot] += math.prod(shape) * size
                by_slot.setdefault(slot, []).append(job._replace(slot=slot))
        groups += by_slot.values()
    return groups


class Change(NamedTuple):
    """How coordinates along one side change with its basis; matrices ``[..., old, new]``.

    Attributes:
      vectors: ``Q_old^T Q_new``, for what is linear in the gradient.
      squares: for second moments.
    """

    vectors: jax.Array
    squares: jax.Array


def first_bases(factors: list[jax.Array], likes: list[jax.Array], dtype: Any) -> list[jax.Array]:
    """Return the eigenvectors of factors of one size, in shape and dtype of the bases ``likes``."""
    new = spread(decompose(_stacked(factors, dtype)))
    return [
        part.reshape(like.shape).astype(like.dtype)
        for part, like in zip(_unstacked(new, likes), likes, strict=True)
    ]


def refreshed(
    factors: list[jax.Array], bases: list[jax.Array], dtype: Any, mix: bool, precision: Any
) -> tuple[list[jax.Array], list[Change]]:
    """Return the new bases of one group, all of one size, and how coordinates change.

    Args:
      factors: running correlations ``[..., n, n]``.
      bases: the old bases, of the same shapes.
      dtype: to compute in.
      mix: whether second moments are mixed by the squares of the change, or only reordered.
      precision: of the products.
    """
    old = _stacked(bases, dtype)
    new, order = iterate(_stacked(factors, dtype), old, precision)
    # What is stored is what coordinates refer to, so the change is that between rounded bases.
    new = spread(new).astype(bases[0].dtype)
    vectors = jnp.matmul(jnp.swapaxes(old, -1, -2), new.astype(dtype), precision=precision)
    squares = jnp.square(vectors) if mix else jax.nn.one_hot(order, old.shape[-1], dtype=dtype, axis=-2)
    parts = [_unstacked(array, bases) for array in (new, vectors, squares)]
    shaped = [[part.reshape(b.shape) for part, b in zip(column, bases, strict=True)] for column in parts]
    return shaped[0], [Change(*pair) for pair in zip(*shaped[1:], strict=True)]


def _stacked(squares: list[jax.Array], dtype: Any) -> jax.Array:
    """Return all matrices of one size as one array ``[number, n, n]``."""
    return spread(jnp.concatenate([s.astype(dtype).reshape(-1, *s.shape[-2:]) for s in squares]))


def _unstacked(array: jax.Array, likes: list[jax.Array]) -> list[jax.Array]:
    counts = [math.prod(like.shape[:-2]) for like in likes]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [array[start : start + count] for start, count in zip(starts, counts, strict=True)]


def carried(
    average: jax.Array,
    change: jax.Array,
    layout: Layout,
    side: Literal["left", "right"],
    shape: tuple[int, ...],
    linear: bool,
    precision: Any,
) -> jax.Array:
    """Return an average in the coordinates of the new basis.

    Where the average is reduced over an axis that turns, the *matrix* is reduced before the product, never
    the product: a mean over the product of a matrix with something broadcast is more work, and XLA's CPU
    backend of JAX 0.10.2 returns garbage for it at shapes such as (100, 50).

    Args:
      average: of the shape of its leaf, or with 1 for axes it is reduced over, or with further axes in front.
      change: ``[*stack, blocks, old, new]``.
      layout: of the leaf.
      side: which side has changed.
      shape: of the leaf.
      linear: whether the average is linear in gradient or weights; if not, the squares in a row and in a
        column of ``change`` sum to 1.
      precision: of the products.
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
    product = jnp.einsum("...pad,...pak->...pdk", change, columns, precision=precision)
    turned = product.reshape(permuted.shape)
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


class Refresh(NamedTuple):
    """The refresh of one group: run at every step, it does its work when its turn has come.

    Attributes:
      group: the jobs.
      layouts: of all leaves.
      shapes: of all leaves.
      coordinates: the arrays of the inner state that hold coordinates, for all leaves.
      update_every: steps between two refreshes.
      mix: whether second moments are mixed, or only reordered.
      precision: of the products.
    """

    group: list[Job]
    layouts: list[Layout | None]
    shapes: list[tuple[int, ...]]
    coordinates: list[list[Coordinates]]
    update_every: int
    mix: bool
    precision: Any

    def run(
        self, count: jax.Array, factors: list[jax.Array], bases: list[jax.Array], arrays: dict[int, jax.Array]
    ) -> tuple[list[jax.Array], dict[int, jax.Array]]:
        """Return the bases and the arrays of the inner state, by their position in it."""
        turn_has_come = jnp.logical_and(count > 0, count % self.update_every == self.group[0].slot)
        new: tuple[list[jax.Array], dict[int, jax.Array]] = jax.lax.cond(
            turn_has_come, self._work, lambda _, bases, arrays: (bases, arrays), factors, bases, arrays
        )
        return new

    def _work(
        self, factors: list[jax.Array], bases: list[jax.Array], arrays: dict[int, jax.Array]
    ) -> tuple[list[jax.Array], dict[int, jax.Array]]:
        new_bases, changes = refreshed(factors, bases, self.group[0].dtype, self.mix, self.precision)
        arrays = dict(arrays)
        for job, change in zip(self.group, changes, strict=True):
            layout, shape = self.layouts[job.leaf], self.shapes[job.leaf]
            if layout is None:
                continue
            for one in self.coordinates[job.leaf]:
                matrix = change.vectors if one.linear else change.squares
                array = arrays[one.position]
                arrays[one.position] = carried(
                    array, matrix, layout, job.side, shape, one.linear, self.precision
                )
        return new_bases, arrays

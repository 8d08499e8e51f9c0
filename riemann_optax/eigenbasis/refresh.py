"""Refreshing bases, and converting everything that is stored in their coordinates."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax._check import is_concrete_number
from riemann_optax.eigenbasis.bases import decompose, has_turned, iterate
from riemann_optax.eigenbasis.coordinates import Coordinates
from riemann_optax.eigenbasis.layout import Layout
from riemann_optax.eigenbasis.mesh import on_auto_mesh, spread
from riemann_optax.eigenbasis.orthonormal import EXACT, Method
from riemann_optax.eigenbasis.schedule import Job

_LAST = 2**31 - 1


class RefreshRules(NamedTuple):
    """How bases are refreshed.

    Attributes:
      mix: whether second moments are mixed, or only reordered.
      tau: how far a basis must have turned to be refreshed; 0 refreshes all.
      method: the method of :func:`orthonormalise`.
      precision: precision of the products that convert averages.
    """

    mix: bool
    tau: float = 0.0
    method: Method = "auto"
    precision: Any = None

    def refreshes_all(self) -> bool:
        """Return whether ``tau`` is known to be 0; a traced one is not known, and may change in a run."""
        return is_concrete_number(self.tau) and self.tau == 0


class Change(NamedTuple):
    """How coordinates along one side change with its basis; matrices ``[..., old, new]``.

    Attributes:
      vectors: ``Q_old^T Q_new``, for arrays linear in the gradient.
      squares: for second moments.
    """

    vectors: jax.Array
    squares: jax.Array


def first_bases(
    factors: list[jax.Array], likes: list[jax.Array], dtype: Any
) -> tuple[list[jax.Array], jax.Array]:
    """Return the eigenvectors of factors of one size, in shape and dtype of ``likes``, and how many failed.

    Where a factor is not finite and has none, the old basis is kept.
    """
    old = _stacked(likes, dtype)
    new = spread(decompose(_stacked(factors, dtype)))
    found = jnp.all(jnp.isfinite(new), axis=(-2, -1), keepdims=True)
    new = jnp.where(found, new, old)
    if len({like.dtype for like in likes}) == 1:
        new = new.astype(likes[0].dtype)
    parts = [
        part.reshape(like.shape).astype(like.dtype)
        for part, like in zip(_unstacked(new, likes), likes, strict=True)
    ]
    return parts, jnp.sum(~found, dtype=jnp.int32)


def refreshed(
    factors: list[jax.Array], bases: list[jax.Array], dtype: Any, rules: RefreshRules
) -> tuple[list[jax.Array], list[Change], jax.Array]:
    """Return the new bases of one group, all of one size, how coordinates change, and how many were kept.

    A basis is kept, and counted, if no orthonormal one was found. It is kept, and not counted, if it has not
    turned by ``rules.tau``.

    Args:
      factors: running correlations ``[..., n, n]``.
      bases: the old bases, of the same shapes.
      dtype: the dtype of the computation.
      rules: the rules.
    """
    old, correlation = _stacked(bases, dtype), _stacked(factors, dtype)
    new, order, found = iterate(correlation, old, rules.method)
    change = found if rules.refreshes_all() else found & has_turned(correlation, old, rules.tau)
    # Coordinates refer to the stored bases, so compute the change between the rounded bases.
    stored = jnp.where(change[:, None, None], spread(new), old).astype(bases[0].dtype)
    unit = jnp.broadcast_to(jnp.eye(old.shape[-1], dtype=dtype), old.shape)
    vectors = jnp.einsum("...ij,...ik->...jk", old, stored.astype(dtype), precision=EXACT)
    vectors = jnp.where(change[:, None, None], vectors, unit)
    if rules.mix:
        squares = jnp.square(vectors)
    else:
        moved = jax.nn.one_hot(order, old.shape[-1], dtype=dtype, axis=-2)
        squares = jnp.where(change[:, None, None], moved, unit)
    parts = [_unstacked(array, bases) for array in (stored, vectors, squares)]
    shaped = [[part.reshape(b.shape) for part, b in zip(column, bases, strict=True)] for column in parts]
    changes = [Change(*pair) for pair in zip(*shaped[1:], strict=True)]
    return shaped[0], changes, jnp.sum(~found, dtype=jnp.int32)


def _stacked(squares: list[jax.Array], dtype: Any) -> jax.Array:
    """Return all matrices of one size as one array ``[number, n, n]``."""
    flat = [square.reshape(-1, *square.shape[-2:]) for square in squares]
    if len({square.dtype for square in squares}) > 1:
        flat = [square.astype(dtype) for square in flat]
    return spread(jnp.concatenate(flat)).astype(dtype)  # one conversion to compile, not one for each


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
    """The refresh of some groups: called at every step, it acts only when one of them is due.

    Attributes:
      groups: groups of jobs whose bases have the same shapes, each with its own slot. What refreshes them is
        compiled once.
      layouts: the layouts of all leaves.
      shapes: the shapes of all leaves.
      coordinates: the arrays of the inner state that hold coordinates, for all leaves.
      period: steps between two refreshes.
      rules: the rules.
    """

    groups: list[list[Job]]
    layouts: list[Layout | None]
    shapes: list[tuple[int, ...]]
    coordinates: list[list[Coordinates]]
    period: int
    rules: RefreshRules

    def positions(self, group: list[Job]) -> list[int]:
        """Return which arrays of the inner state change with the bases of a group."""
        return sorted({one.position for job in group for one in self.coordinates[job.leaf]})

    def run(
        self,
        count: jax.Array,
        factors: list[list[jax.Array]],
        bases: list[list[jax.Array]],
        arrays: dict[int, jax.Array],
    ) -> tuple[list[list[jax.Array]], dict[int, jax.Array], jax.Array]:
        """Return the bases, the arrays of the inner state by their position in it, and how many were kept.

        Factors and bases are lists with one entry for each group.
        """
        slot = count % self.period
        due = [jnp.logical_and(count > 0, slot == group[0].slot) for group in self.groups]
        some = jnp.any(jnp.stack(due))
        number = jnp.argmax(jnp.stack(due)).astype(jnp.int32)
        if not self.rules.refreshes_all():
            some = jax.lax.cond(
                some, self._any_has_turned, lambda *_: jnp.zeros([], jnp.bool_), number, factors, bases
            )
            due = [jnp.logical_and(some, one) for one in due]
        new, changes, kept = jax.lax.cond(some, self._refreshed, self._unchanged, number, factors, bases)
        arrays, results = dict(arrays), []
        for one, group, old in zip(due, self.groups, bases, strict=True):
            basis, moved = jax.lax.cond(
                one,
                lambda new, changes, old, averages, group=group: (
                    new,
                    self._carried(group, changes, averages),
                ),
                lambda new, changes, old, averages: (old, averages),
                new,
                changes,
                old,
                {at: arrays[at] for at in self.positions(group)},
            )
            arrays.update(moved)
            results.append(basis)
        return results, arrays, kept

    def _any_has_turned(
        self, number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]]
    ) -> jax.Array:
        dtype = self.groups[0][0].dtype
        factors_due, bases_due = _chosen(number, factors, bases)
        return jnp.any(has_turned(_stacked(factors_due, dtype), _stacked(bases_due, dtype), self.rules.tau))

    def _refreshed(
        self, number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]]
    ) -> tuple[list[jax.Array], list[Change], jax.Array]:
        return refreshed(*_chosen(number, factors, bases), self.groups[0][0].dtype, self.rules)

    def _unchanged(
        self, number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]]
    ) -> tuple[list[jax.Array], list[Change], jax.Array]:
        """Return zeros, which nobody reads, in the form of :meth:`_refreshed`."""
        zeros = [jnp.zeros(basis.shape, self.groups[0][0].dtype) for basis in bases[0]]
        new = [jnp.zeros(basis.shape, basis.dtype) for basis in bases[0]]
        return new, [Change(zero, zero) for zero in zeros], jnp.zeros([], jnp.int32)

    def _carried(
        self, group: list[Job], changes: list[Change], arrays: dict[int, jax.Array]
    ) -> dict[int, jax.Array]:
        arrays = dict(arrays)
        for job, change in zip(group, changes, strict=True):
            layout, shape = self.layouts[job.leaf], self.shapes[job.leaf]
            if layout is None:
                continue
            for one in self.coordinates[job.leaf]:
                matrix = change.vectors if one.linear else change.squares
                array = arrays[one.position]
                arrays[one.position] = carried(
                    array, matrix, layout, job.side, shape, one.linear, self.rules.precision
                )
        return arrays


def _chosen(
    number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the factors and bases of one group, which is known only at run time."""
    pairs = list(zip(factors, bases, strict=True))
    chosen: tuple[list[jax.Array], list[jax.Array]] = jax.lax.switch(
        number, [lambda pairs, at=at: pairs[at] for at in range(len(pairs))], pairs
    )
    return chosen


def refresh_group(
    work: Refresh, count: jax.Array, matrices: dict[str, list[Any]], arrays: list[jax.Array]
) -> jax.Array:
    """Refresh the group that is due, if one is; write the new arrays into ``matrices`` and ``arrays``.

    Returns how many bases were kept because no new one was found.
    """
    factors, old = (
        [[matrices[f"{job.side}_{kind}"][job.leaf] for job in group] for group in work.groups]
        for kind in ("factors", "bases")
    )
    averaged = {at: arrays[at] for group in work.groups for at in work.positions(group)}
    kept: jax.Array
    new, moved, kept = on_auto_mesh(work.run, (old, averaged, count), count, factors, old, averaged)
    for group, bases in zip(work.groups, new, strict=True):
        for job, basis in zip(group, bases, strict=True):
            matrices[f"{job.side}_bases"][job.leaf] = basis
    for position, array in moved.items():
        arrays[position] = array
    return kept


def saturated_sum(count: jax.Array, more: jax.Array) -> jax.Array:
    """Return the sum of two counts, at most the largest int32."""
    return jnp.where(count > _LAST - more, jnp.full_like(count, _LAST), count + more)

"""Refreshing bases, those of one size by one computation."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax._check import is_concrete_number
from riemann_optax._population import when
from riemann_optax.eigenbasis.bases import decompose, has_turned, iterate
from riemann_optax.eigenbasis.carry import carried
from riemann_optax.eigenbasis.coordinates import Coordinates
from riemann_optax.eigenbasis.layout import Layout
from riemann_optax.eigenbasis.mesh import (
    ANYWHERE,
    Places,
    on_auto_mesh,
    places,
    spread,
)
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

    def found_by(
        decompose_all: Callable[[jax.Array], jax.Array], factors: list[jax.Array], likes: list[jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
        old = _stacked(likes, dtype)
        new = spread(decompose_all(_stacked(factors, dtype)))
        found = jnp.all(jnp.isfinite(new), axis=(-2, -1), keepdims=True)
        new = jnp.where(found, new, old)
        if len({like.dtype for like in likes}) == 1:
            new = new.astype(likes[0].dtype)
        return _unstacked(new, likes), jnp.sum(~found, dtype=jnp.int32)

    def together(factors: list[jax.Array], likes: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        return found_by(decompose, factors, likes)

    def one_by_one(stack: jax.Array) -> jax.Array:
        if stack.shape[0] == 1:
            return decompose(stack)
        found: jax.Array = jax.lax.map(lambda matrix: decompose(matrix[None])[0], stack)
        return found

    def alone(factors: list[jax.Array], likes: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        parts = [found_by(one_by_one, [factor], [like]) for factor, like in zip(factors, likes, strict=True)]
        new = [basis for (basis,), _ in parts]
        return new, jnp.sum(jnp.stack([failed for _, failed in parts]), dtype=jnp.int32)

    if sum(math.prod(factor.shape[:-2]) for factor in factors) == 1:
        return together(factors, likes)
    # LAPACK decomposes one matrix after the other in any case. XLA compiles kernels of equal code once, but
    # those that take different parts of a stack one by one. And JAX 0.10 waits in a thread of XLA's pool for
    # the parts of a stack, which wait for a thread of that pool: several devices in a process can hang.
    both: tuple[list[jax.Array], jax.Array] = jax.lax.platform_dependent(
        factors, likes, cpu=alone, default=together
    )
    return both


def refreshed(
    factors: jax.Array, bases: jax.Array, dtype: Any, rules: RefreshRules
) -> tuple[jax.Array, Change, jax.Array]:
    """Return the new bases, how coordinates change, and which bases were kept as no new one was found.

    A basis is kept, and not counted, if it has not turned by ``rules.tau``.

    Args:
      factors: running correlations ``[number, n, n]``.
      bases: the old bases, of the same shape.
      dtype: the dtype of the computation.
      rules: the rules.
    """
    old, correlation = spread(bases).astype(dtype), spread(factors).astype(dtype)
    new, order, found = iterate(correlation, old, rules.method)
    change = found if rules.refreshes_all() else found & has_turned(correlation, old, rules.tau)
    # Coordinates refer to the stored bases, so compute the change between the rounded bases.
    stored = jnp.where(change[:, None, None], spread(new), old).astype(bases.dtype)
    unit = jnp.broadcast_to(jnp.eye(old.shape[-1], dtype=dtype), old.shape)
    vectors = jnp.einsum("...ij,...ik->...jk", old, stored.astype(dtype), precision=EXACT)
    vectors = jnp.where(change[:, None, None], vectors, unit)
    if rules.mix:
        squares = jnp.square(vectors)
    else:
        moved = jax.nn.one_hot(order, old.shape[-1], dtype=dtype, axis=-2)
        squares = jnp.where(change[:, None, None], moved, unit)
    return stored, Change(vectors, squares), ~found


def _first_refreshed(
    number: jax.Array, factors: jax.Array, bases: jax.Array, dtype: Any, rules: RefreshRules
) -> tuple[jax.Array, Change, jax.Array]:
    """Return what :func:`refreshed` returns for the first ``number`` bases, and how many of them were kept.

    The others are there so that one computation serves groups of different sizes; nobody reads theirs.
    """
    most = bases.shape[0]

    def together(
        number: jax.Array, factors: jax.Array, bases: jax.Array
    ) -> tuple[jax.Array, Change, jax.Array]:
        new, change, kept = refreshed(factors, bases, dtype, rules)
        return new, change, jnp.sum(kept & (jnp.arange(most, dtype=number.dtype) < number), dtype=jnp.int32)

    def one_by_one(
        number: jax.Array, factors: jax.Array, bases: jax.Array
    ) -> tuple[jax.Array, Change, jax.Array]:
        def one(numbered: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
            at, *pair = numbered
            return jax.lax.cond(
                at < number,
                lambda factor, basis: refreshed(factor, basis, dtype, rules),
                lambda factor, basis: _unchanged(basis, dtype),
                *pair,
            )

        order = jnp.arange(most, dtype=number.dtype)
        new, change, kept = jax.lax.map(one, (order, factors[:, None], bases[:, None]))
        new, change = jax.tree.map(lambda array: array[:, 0], (new, change))
        return new, change, jnp.sum(kept, dtype=jnp.int32)

    if most == 1 or rules.method != "auto":
        return together(number, factors, bases)
    # A stack may hang on a CPU, as in :func:`first_bases`.
    both: tuple[jax.Array, Change, jax.Array] = jax.lax.platform_dependent(
        number, factors, bases, cpu=one_by_one, default=together
    )
    return both


def _unchanged(bases: jax.Array, dtype: Any) -> tuple[jax.Array, Change, jax.Array]:
    """Return zeros, which nobody reads, in the form of :func:`refreshed`."""
    zeros = jnp.zeros(bases.shape, dtype)
    return zeros.astype(bases.dtype), Change(zeros, zeros), jnp.zeros(bases.shape[0], jnp.bool_)


def _stacked(squares: list[jax.Array], dtype: Any) -> jax.Array:
    """Return all matrices of one size as one array ``[number, n, n]``."""
    return spread(_of_one_dtype(squares, dtype)).astype(dtype)  # one conversion to compile, not one for each


def _of_one_dtype(squares: list[jax.Array], dtype: Any) -> jax.Array:
    """Return them as one array, in ``dtype`` unless all have the same."""
    flat = [square.reshape(-1, *square.shape[-2:]) for square in squares]
    if len({square.dtype for square in squares}) > 1:
        flat = [square.astype(dtype) for square in flat]
    return jnp.concatenate(flat)


def _unstacked(array: jax.Array, likes: list[jax.Array], dtype: Any = None) -> list[jax.Array]:
    """Return the parts of ``[number, n, n]`` in the shapes of ``likes``; in their dtypes by default."""
    counts = [math.prod(like.shape[:-2]) for like in likes]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [
        array[start : start + count].reshape(like.shape).astype(dtype or like.dtype)
        for start, count, like in zip(starts, counts, likes, strict=True)
    ]


class Refresh(NamedTuple):
    """The refresh of some groups: called at every step, it acts only when one of them is due.

    Attributes:
      groups: groups of jobs whose bases have the same size, each with its own slot, and none with more than
        twice as many as another. What refreshes them is compiled once.
      layouts: the layouts of all leaves.
      shapes: the shapes of all leaves.
      coordinates: the arrays of the inner state that hold coordinates, for all leaves.
      period: steps between two refreshes.
      rules: the rules.
      where: by position in the inner state, where an array lies while it changes coordinates.
    """

    groups: list[list[Job]]
    layouts: list[Layout | None]
    shapes: list[tuple[int, ...]]
    coordinates: list[list[Coordinates]]
    period: int
    rules: RefreshRules
    where: Mapping[int, Places] = MappingProxyType({})

    def positions(self, group: list[Job]) -> list[int]:
        """Return which arrays of the inner state change with the bases of a group."""
        return sorted({one.position for job in group for one in self.coordinates[job.leaf]})

    def places_of(self, arrays: dict[int, jax.Array]) -> dict[int, Places]:
        """Return where arrays of the inner state lie while they change coordinates, by their position."""
        leaves = {one.position: leaf for leaf, found in enumerate(self.coordinates) for one in found}
        return {
            at: places(array, self.layouts[leaves[at]])
            for at, array in arrays.items()
            if array.shape == self.shapes[leaves[at]]
        }

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
        slots = jnp.asarray([group[0].slot for group in self.groups], count.dtype)
        is_due = jnp.logical_and(count > 0, count % self.period == slots)
        some, number = jnp.any(is_due), jnp.argmax(is_due).astype(jnp.int32)
        if not self.rules.refreshes_all():
            some = when(
                some, self._any_has_turned, lambda *_: jnp.zeros([], jnp.bool_), number, factors, bases
            )
        new, changes, kept = when(some, self._refreshed, self._unchanged, number, factors, bases)
        arrays, results = dict(arrays), []
        due = _flags(jnp.where(some, number, len(self.groups)), len(self.groups))
        for one, group, old in zip(due, self.groups, bases, strict=True):
            basis, moved = when(
                one,
                lambda new, changes, old, averages, group=group: (
                    _unstacked(new, old),
                    self._carried(group, changes, old, averages),
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
        _, *stacks = _chosen(number, factors, bases, dtype)
        factors_due, bases_due = (spread(stack).astype(dtype) for stack in stacks)
        return jnp.any(has_turned(factors_due, bases_due, self.rules.tau))

    def _refreshed(
        self, number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]]
    ) -> tuple[jax.Array, Change, jax.Array]:
        dtype = self.groups[0][0].dtype
        return _first_refreshed(*_chosen(number, factors, bases, dtype), dtype, self.rules)

    def _unchanged(
        self, number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]]
    ) -> tuple[jax.Array, Change, jax.Array]:
        dtype = self.groups[0][0].dtype
        _, _, like = jax.eval_shape(functools.partial(_chosen, dtype=dtype), number, factors, bases)
        return *_unchanged(like, dtype)[:2], jnp.zeros([], jnp.int32)

    def _carried(
        self, group: list[Job], stacked: Change, bases: list[jax.Array], arrays: dict[int, jax.Array]
    ) -> dict[int, jax.Array]:
        arrays = dict(arrays)
        dtype = self.groups[0][0].dtype
        changes = (_unstacked(matrices, bases, dtype) for matrices in stacked)
        for job, *pair in zip(group, *changes, strict=True):
            change = Change(*pair)
            layout, shape = self.layouts[job.leaf], self.shapes[job.leaf]
            if layout is None:
                continue
            for one in self.coordinates[job.leaf]:
                matrix = change.vectors if one.linear else change.squares
                array = arrays[one.position]
                place = getattr(self.where.get(one.position, ANYWHERE), job.side)
                arrays[one.position] = carried(
                    array, matrix, layout, job.side, shape, one.linear, self.rules.precision, place
                )
        return arrays


def _flags(number: jax.Array, length: int) -> list[jax.Array]:
    """Return booleans of which that at ``number`` is True, and none if ``number`` is ``length``.

    Branches of constants: XLA would compile a comparison with each position on its own.
    """

    def branch(at: int) -> Callable[[], list[jax.Array]]:
        return lambda: [jnp.asarray(at == other) for other in range(length)]

    flags: list[jax.Array] = jax.lax.switch(number, [branch(at) for at in range(length + 1)])
    return flags


def _chosen(
    number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]], dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return how many bases one group has, which is known only at run time, its factors and its bases.

    The smaller groups are filled up with copies to the length of the largest.
    """
    counts = [sum(math.prod(basis.shape[:-2]) for basis in group) for group in bases]
    most = max(counts)
    alike = all(len({array.dtype for group in kind for array in group}) == 1 for kind in (factors, bases))

    def stack(squares: list[jax.Array], count: int) -> jax.Array:
        array = _of_one_dtype(squares, dtype) if alike else _of_one_dtype(squares, dtype).astype(dtype)
        return array if count == most else jnp.concatenate([array, array[: most - count]])

    def choose(at: int) -> Any:
        def branch(
            factors: list[list[jax.Array]], bases: list[list[jax.Array]]
        ) -> tuple[jax.Array, jax.Array]:
            return stack(factors[at], counts[at]), stack(bases[at], counts[at])

        return branch

    chosen: tuple[jax.Array, jax.Array] = jax.lax.switch(
        number, [choose(at) for at in range(len(counts))], factors, bases
    )
    return jnp.asarray(counts, jnp.int32)[number], *chosen


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
    work = work._replace(where=work.places_of(averaged))
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

"""Refreshing bases, those of one size by one computation."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax._population import when
from riemann_optax._varying import varying_like
from riemann_optax.eigenbasis.bases import has_turned
from riemann_optax.eigenbasis.carry import carried
from riemann_optax.eigenbasis.coordinates import Coordinates
from riemann_optax.eigenbasis.layout import Layout
from riemann_optax.eigenbasis.mesh import ANYWHERE, Places, on_auto_mesh, places, spread
from riemann_optax.eigenbasis.schedule import Job
from riemann_optax.eigenbasis.stack import (
    Change,
    RefreshRules,
    first_refreshed,
    of_one_dtype,
    unchanged,
    unstacked,
)

_LAST = 2**31 - 1


class Refresh(NamedTuple):
    """The refresh of some groups: called at every step, it acts only on those that are due.

    Attributes:
      groups: groups of jobs whose bases have the same size, each with its own slot, and none with more than
        twice as many as another. What refreshes them is compiled once.
      layouts: the layouts of all leaves.
      shapes: the shapes of all leaves.
      coordinates: the arrays of the inner state that hold coordinates, for all leaves.
      period: steps between two refreshes.
      settling: steps until the refreshes are so far apart.
      rules: the rules.
      where: by position in the inner state, where an array lies while it changes coordinates.
    """

    groups: list[list[Job]]
    layouts: list[Layout | None]
    shapes: list[tuple[int, ...]]
    coordinates: list[list[Coordinates]]
    period: int
    settling: int
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
        distance = self.distance(count)
        # Nothing here is negative; of signed numbers ``%`` and ``//`` are three kernels more to compile.
        of_slots, of_count = (
            jax.lax.rem(one, jnp.broadcast_to(jnp.asarray(distance, one.dtype), one.shape))
            for one in (slots, count)
        )
        is_due = (count > 0) & (of_count == of_slots)
        numbers = jnp.arange(len(self.groups), dtype=jnp.int32)

        def next_due(after: jax.Array | int) -> jax.Array:
            return jnp.min(jnp.where(is_due & (numbers > after), numbers, len(self.groups)))

        def refresh_one(carry: Any) -> Any:
            number, bases, arrays, kept = carry
            bases, arrays, more = self._refresh_one(number, factors, bases, arrays)
            return next_due(number), bases, arrays, kept + more

        def refresh_all_due(*start: Any) -> Any:
            return jax.lax.while_loop(lambda carry: carry[0] < len(self.groups), refresh_one, start)

        # The choice keeps what the loop moves between devices out of the steps that refresh nothing.
        start = next_due(-1), bases, arrays, jnp.zeros([], jnp.int32)
        start = varying_like(start, (start, factors))
        _, bases, arrays, kept = when(jnp.any(is_due), refresh_all_due, lambda *start: start, *start)
        return bases, arrays, kept

    def distance(self, count: jax.Array) -> jax.Array | int:
        """Return the steps between two refreshes of a group: it grows to the period while bases settle."""
        if not self.settling:
            return self.period
        grown = jnp.minimum(count, self.settling) * self.period
        return jnp.maximum(jax.lax.div(grown, jnp.full_like(grown, self.settling)), 1)

    def _refresh_one(
        self,
        number: jax.Array,
        factors: list[list[jax.Array]],
        bases: list[list[jax.Array]],
        arrays: dict[int, jax.Array],
    ) -> tuple[list[list[jax.Array]], dict[int, jax.Array], jax.Array]:
        """Return what :meth:`run` does, after the refresh of one group, unless it has not turned."""
        dtype = self.groups[0][0].dtype
        due, *chosen = _chosen(number, factors, bases, dtype)
        if self.rules.refreshes_all():
            new, changes, kept = self._refreshed(*chosen)
        else:
            factors_due, bases_due = (spread(stack).astype(dtype) for stack in chosen[1:])
            some = jnp.any(has_turned(factors_due, bases_due, self.rules.tau))
            new, changes, kept = when(some, self._refreshed, self._unchanged, *chosen)
            due = [one & some for one in due]
        arrays, results = dict(arrays), []
        for one, group, old in zip(due, self.groups, bases, strict=True):
            basis, moved = when(
                one,
                lambda new, changes, old, averages, group=group: (
                    unstacked(new, old),
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

    def _refreshed(
        self, length: jax.Array, factors: jax.Array, bases: jax.Array
    ) -> tuple[jax.Array, Change, jax.Array]:
        return first_refreshed(length, factors, bases, self.groups[0][0].dtype, self.rules)

    def _unchanged(
        self, length: jax.Array, factors: jax.Array, bases: jax.Array
    ) -> tuple[jax.Array, Change, jax.Array]:
        del length, factors
        return *unchanged(bases, self.groups[0][0].dtype, self.rules)[:2], jnp.zeros([], jnp.int32)

    def _carried(
        self, group: list[Job], stacked: Change, bases: list[jax.Array], arrays: dict[int, jax.Array]
    ) -> dict[int, jax.Array]:
        arrays = dict(arrays)
        for job, change in zip(group, stacked.unstacked(bases), strict=True):
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


def _chosen(
    number: jax.Array, factors: list[list[jax.Array]], bases: list[list[jax.Array]], dtype: Any
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
    """Return one group, whose number is known only at run time: booleans, length, factors and bases.

    The booleans tell which group it is; they are constants of each branch, since XLA would compile a
    comparison with each number on its own. Smaller groups are filled up with copies to the length of the
    largest.
    """
    counts = [sum(math.prod(basis.shape[:-2]) for basis in group) for group in bases]
    most = max(counts)
    alike = all(len({array.dtype for group in kind for array in group}) == 1 for kind in (factors, bases))

    def stack(squares: list[jax.Array], count: int) -> jax.Array:
        array = of_one_dtype(squares, dtype) if alike else of_one_dtype(squares, dtype).astype(dtype)
        return array if count == most else jnp.concatenate([array, array[: most - count]])

    def choose(at: int) -> Any:
        def branch(factors: list[list[jax.Array]], bases: list[list[jax.Array]]) -> Any:
            flags = [jnp.asarray(at == other) for other in range(len(counts))]
            length = jnp.asarray(counts[at], jnp.int32)
            return flags, length, stack(factors[at], counts[at]), stack(bases[at], counts[at])

        return branch

    chosen: tuple[list[jax.Array], jax.Array, jax.Array, jax.Array] = jax.lax.switch(
        number, [choose(at) for at in range(len(counts))], factors, bases
    )
    return chosen


def refresh_group(
    work: Refresh, count: jax.Array, matrices: dict[str, list[Any]], arrays: list[jax.Array]
) -> jax.Array:
    """Refresh the groups that are due; write the new arrays into ``matrices`` and ``arrays``.

    Returns how many bases were kept because no new one was found.
    """
    factors, old = (
        [[matrices[f"{job.side}_{kind}"][job.leaf] for job in group] for group in work.groups]
        for kind in ("factors", "bases")
    )
    averaged = {at: arrays[at] for group in work.groups for at in work.positions(group)}
    work = work._replace(where=work.places_of(averaged))
    kept: jax.Array
    new, moved, kept = on_auto_mesh(
        lambda tau, *arguments: work._replace(rules=work.rules._replace(tau=tau)).run(*arguments),
        (old, averaged, count),
        work.rules.tau,
        *(count, factors, old, averaged),
    )
    for group, bases in zip(work.groups, new, strict=True):
        for job, basis in zip(group, bases, strict=True):
            matrices[f"{job.side}_bases"][job.leaf] = basis
    for position, array in moved.items():
        arrays[position] = array
    return kept


def saturated_sum(count: jax.Array, more: jax.Array) -> jax.Array:
    """Return the sum of two counts, at most the largest int32."""
    return jnp.where(count > _LAST - more, jnp.full_like(count, _LAST), count + more)

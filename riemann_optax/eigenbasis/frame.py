"""The bases of all leaves at one update: computing them, rotating into them and back."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from riemann_optax import _tree
from riemann_optax._population import when
from riemann_optax._varying import varying_like
from riemann_optax._vocabulary import EXTRA_ARGUMENTS
from riemann_optax.eigenbasis import bases
from riemann_optax.eigenbasis.coordinates import Coordinates
from riemann_optax.eigenbasis.layout import Layout
from riemann_optax.eigenbasis.mesh import ANYWHERE, Places, on_auto_mesh, places, square_sharding
from riemann_optax.eigenbasis.schedule import Job
from riemann_optax.eigenbasis.stack import first_bases


class Frame(NamedTuple):
    """The bases of all leaves at the beginning of an update."""

    layouts: list[Layout | None]
    left: list[Any]
    right: list[Any]
    precision: Any

    def enter(self, tree: Any) -> Any:
        """Return a tree of vectors in the coordinates of the bases, in float32 or wider."""
        return self._map(bases.turn, _tree.widen(tree))

    def leave(self, tree: Any, like: Any = None) -> Any:
        """Return a tree of vectors in the original coordinates, in the dtypes of ``like`` if it is given."""
        turned = self._map(bases.turn_back, _tree.widen(tree))
        if like is None:
            return turned
        return jax.tree.map(lambda x, original: x.astype(original.dtype), turned, like)

    def enter_captured(self, state: Any, coordinates: list[list[Coordinates]], count: jax.Array) -> Any:
        """Return the state; at the first update rotate the weights that ``init`` copied into it."""
        captured = {
            one.position: leaf for leaf, found in enumerate(coordinates) for one in found if one.captured
        }
        if not captured:
            return state
        arrays, structure = jax.tree.flatten(state)

        def turned(arrays: dict[int, jax.Array]) -> dict[int, jax.Array]:
            return {at: self._leaf(bases.turn, array, captured[at]) for at, array in arrays.items()}

        original = {at: arrays[at] for at in captured}
        for at, array in when(count == 0, turned, lambda same: same, original).items():
            arrays[at] = array
        return jax.tree.unflatten(structure, arrays)

    def _leaf(self, change: Callable[..., jax.Array], x: Any, leaf: int) -> Any:
        layout = self.layouts[leaf]
        return x if layout is None else self._one(change, x, layout, self.left[leaf], self.right[leaf])

    def arguments(self, extra_args: dict[str, Any], params: Any) -> dict[str, Any]:
        """Return the extra arguments in these coordinates; functions get the dtypes of params."""
        return {name: self._argument(name, value, params) for name, value in extra_args.items()}

    def _argument(self, name: str, value: Any, params: Any) -> Any:
        argument = EXTRA_ARGUMENTS.get(name)
        kind = "unknown" if argument is None else argument.kind
        if value is None or kind == "other":
            return value
        if kind == "function":
            return self._composed(value, params) if callable(value) else value
        if kind == "vectors":
            return self.enter(_tree.masked_like(value, params))  # masks hide no part of an extra argument
        if kind == "per_weight":
            raise ValueError(
                f"in_eigenbasis: the extra argument {name} belongs to single weights, which the eigenbasis "
                "mixes: keep what needs it outside of in_eigenbasis."
            )
        if callable(value) or any(np.ndim(leaf) for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"in_eigenbasis: the extra argument {name} may depend on the coordinates of the weights, and "
                "nobody has declared how: keep what needs it outside of in_eigenbasis."
            )
        return value

    def _composed(self, function: Callable[..., Any], params: Any) -> Callable[..., Any]:
        numbered = _tree.numbered(params)

        def in_coordinates(turned: Any, *args: Any, **kwargs: Any) -> Any:
            places = _tree.places(turned, numbered) or []  # the caller may be masked
            frame = self._of([place for place in places if place >= 0])
            return function(frame.leave(turned, _tree.masked_like(params, turned)), *args, **kwargs)

        return in_coordinates

    def _of(self, leaves: list[int]) -> "Frame":
        left, right, layouts = (
            [own[leaf] for leaf in leaves] for own in (self.left, self.right, self.layouts)
        )
        return Frame(layouts, left, right, self.precision)

    def _map(self, change: Callable[..., jax.Array], tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        where = [places(*pair) for pair in zip(leaves, self.layouts, strict=True)]

        def all_leaves(leaves: list[Any], left: list[Any], right: list[Any]) -> list[Any]:
            return [
                x if layout is None else self._one(change, x, layout, q, r, place)
                for x, layout, q, r, place in zip(leaves, self.layouts, left, right, where, strict=True)
            ]

        return jax.tree.unflatten(structure, on_auto_mesh(all_leaves, leaves, leaves, self.left, self.right))

    def _one(
        self,
        change: Callable[..., jax.Array],
        x: Any,
        layout: Layout,
        left: Any,
        right: Any,
        place: Places = ANYWHERE,
    ) -> Any:
        if x.ndim > len(layout.permutation):
            return jax.vmap(lambda one: self._one(change, one, layout, left, right))(x)
        left, right = (None if _tree.is_masked(basis) else basis for basis in (left, right))
        turned = change(layout.matrices(_tree.to_working_dtype(x)), left, right, self.precision, place)
        return layout.array(turned, x.shape).astype(x.dtype)


def averaged(
    gradients: list[Any],
    layouts: list[Layout | None],
    factors: list[Any],
    side: Literal["left", "right"],
    decay: Any,
    tempered: bool,
) -> list[Any]:
    """Return the running means of one side's correlations, updated with these gradients."""
    where = [places(*pair) for pair in zip(gradients, layouts, strict=True)]

    def all_leaves(gradients: list[Any], factors: list[Any], decay: Any) -> list[Any]:
        new = []
        for gradient, layout, factor, place in zip(gradients, layouts, factors, where, strict=True):
            if layout is None or _tree.is_masked(factor):
                new.append(factor)
                continue
            matrices = layout.matrices(_tree.to_working_dtype(gradient))
            rate = jnp.asarray(decay).astype(matrices.dtype)
            if tempered:
                matrices = bases.tempered(matrices, side)
            correlation = bases.correlations(matrices, side, place)
            mean = rate * factor.astype(matrices.dtype) + (1 - rate) * correlation
            new.append(mean.astype(factor.dtype))
        return new

    return on_auto_mesh(all_leaves, factors, gradients, factors, decay)  # type: ignore[no-any-return]


def differences_of(gradients: list[Any], previous: list[Any], count: jax.Array) -> list[Any]:
    """Return how gradients have changed since the last update; 0 at the first."""

    def change(gradient: jax.Array, old: Any) -> jax.Array:
        if _tree.is_masked(old):
            return gradient
        difference = gradient - old.astype(gradient.dtype)
        return jnp.where(count == 0, jnp.zeros_like(difference), difference)

    return [change(*pair) for pair in zip(gradients, previous, strict=True)]


def decompose_first(groups: list[list[Job]], squares: dict[str, list[Any]], count: jax.Array) -> jax.Array:
    """At the first update, set the bases to the eigenvectors of the factors.

    Returns for how many factors none were found.
    """
    alike: dict[tuple[int, str], list[Job]] = {}
    for job in (job for group in groups for job in group):
        alike.setdefault((job.shape[-1], str(job.dtype)), []).append(job)
    kept = jnp.zeros([], jnp.int32)
    for jobs in alike.values():
        factors = [squares[f"{job.side}_factors"][job.leaf] for job in jobs]
        old = [squares[f"{job.side}_bases"][job.leaf] for job in jobs]

        def choose(
            count: jax.Array, factors: list[jax.Array], old: list[jax.Array], dtype: Any = jobs[0].dtype
        ) -> tuple[list[jax.Array], jax.Array]:
            return when(  # type: ignore[no-any-return]
                count == 0,
                lambda factors, old: first_bases(factors, old, dtype),
                lambda factors, old: (old, jnp.zeros([], jnp.int32)),
                factors,
                old,
            )

        new, failed = on_auto_mesh(choose, (old, count), count, factors, old)
        kept = kept + failed
        for job, basis in zip(jobs, new, strict=True):
            squares[f"{job.side}_bases"][job.leaf] = basis
    return kept


def without_noise(
    turned: Any, layouts: list[Layout | None], count: jax.Array, dtypes: list[Any], state_dtype: Any
) -> Any:
    """At the first update, set entries to 0 that are rounding errors: a gradient's own basis diagonalises it.

    Adam, and any metric with infinite alpha, would divide these errors by themselves. ``dtypes`` are the
    dtypes of the original gradients.
    """
    leaves, structure = jax.tree.flatten(turned)
    rules = {at: layout for at, layout in enumerate(layouts) if layout is not None}

    def limits(matrices: list[jax.Array]) -> list[jax.Array]:
        return [
            _resolved(matrix, layout, dtypes[at], state_dtype)
            for matrix, (at, layout) in zip(matrices, rules.items(), strict=True)
        ]

    def none(matrices: list[jax.Array]) -> list[jax.Array]:
        return [jnp.zeros(limit.shape, limit.dtype) for limit in jax.eval_shape(limits, matrices)]

    def clean(count: jax.Array, matrices: list[jax.Array]) -> list[jax.Array]:
        # A branch for a few numbers, and not for all entries: these are then compared where they are used.
        found = when(count == 0, limits, none, matrices)
        return [
            jnp.where(jnp.abs(matrix) <= limit, jnp.zeros_like(matrix), matrix)
            for matrix, limit in zip(matrices, found, strict=True)
        ]

    matrices = [leaves[at] for at in rules]
    for at, cleaned in zip(rules, on_auto_mesh(clean, matrices, count, matrices), strict=True):
        leaves[at] = cleaned
    return jax.tree.unflatten(structure, leaves)


def _resolved(leaf: jax.Array, layout: Layout, dtype: Any, state_dtype: Any) -> jax.Array:
    """Return the size below which entries of a leaf's matrices are not resolved by their bases.

    The bases come from squares, which resolve nothing below the root of the working precision, and are
    rounded to ``state_dtype``. Entries of the gradient have errors of half an epsilon of its own ``dtype``;
    relative to the largest, its components have at most the same.
    """
    working = _tree.working_dtype(leaf)
    relative = max(_epsilon(working) ** 0.5, _epsilon(dtype), 4 * _epsilon(state_dtype or working))
    largest = jnp.max(jnp.abs(leaf), axis=layout.permutation[len(layout.stack) :], keepdims=True)
    return jnp.asarray(relative, leaf.dtype) * largest


def _epsilon(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def first_square(
    leaf: Any,
    layout: Layout | None,
    side: Literal["left", "right"],
    fill: Callable[..., jax.Array],
    state_dtype: Any,
) -> Any:
    """Return the first factor or basis of one side of a leaf, with its sharding."""
    if layout is None or not getattr(layout, side):
        return optax.MaskedNode()
    square = varying_like(fill(layout.square(side), state_dtype or _tree.working_dtype(leaf)), leaf)
    sharding = square_sharding(leaf, layout, side)
    if sharding is None:
        return square
    # The type of a traced array has its Explicit axes alone, the sharding of a concrete one all of them.
    if isinstance(square, jax.core.Tracer) and AxisType.Explicit in sharding.mesh.axis_types:
        return jax.sharding.reshard(square, sharding)
    return jax.device_put(square, sharding)


def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return the first factors."""
    return jnp.zeros(shape, dtype)


def identity(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return the bases before there is a gradient."""
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


def check_made_for(
    gradients: Any, layouts: list[Layout | None], left_factors: Any, right_factors: Any
) -> None:
    """Raise ``ValueError`` that names the first leaf for which the state was not made."""
    given, left, right = (
        dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf=_tree.is_masked))
        for tree in (gradients, left_factors, right_factors)
    )
    for path in left:
        if path not in given:
            raise ValueError(
                f"in_eigenbasis: the gradients lack {_tree.leaf_name(path)}, or have None there, and the "
                "state has been made for it: give init and update the same leaves, with None in the "
                "parameters too for what is not trained."
            )
    paths = [path for path, leaf in given.items() if not _tree.is_masked(leaf)]
    for path, layout in zip(paths, layouts, strict=True):
        if path not in left:
            raise ValueError(
                f"in_eigenbasis: the state has not been made for {_tree.leaf_name(path)}: give init and "
                "update the same leaves."
            )
        for square, factor in zip(_squares(layout), (left[path], right[path]), strict=True):
            if (square is None) != _tree.is_masked(factor):
                raise ValueError(
                    f"in_eigenbasis: {_tree.leaf_name(path)} of shape {given[path].shape} has a basis here "
                    "for other sides than in the state: give sides, axes and limits as when it was made; for "
                    "another choice, or after a parameter has been resized, make it anew with tx.init, "
                    "or move it with riemann_optax.checkpoint.transplant."
                )
            if square != (None if _tree.is_masked(factor) else factor.shape):
                raise ValueError(
                    f"in_eigenbasis: {_tree.leaf_name(path)} has shape {given[path].shape}, and the state "
                    "has been made for another: after a parameter has been resized make it anew with tx.init."
                )


def _squares(layout: Layout | None) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Return the shapes of the factors of both sides, None for a side that is left alone."""
    if layout is None:
        return None, None
    return layout.square("left") if layout.left else None, layout.square("right") if layout.right else None

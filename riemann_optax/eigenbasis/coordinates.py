"""Which arrays of an inner state hold coordinates, and how each changes with the basis."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _axes, _tree
from riemann_optax._state_fields import (
    StateFields,
    is_of_metric,
    owner_and_field,
    owners_and_fields,
    state_fields,
)
from riemann_optax.boundary import check_outermost


class Coordinates(NamedTuple):
    """An array of the inner state that changes with the basis of a leaf.

    Attributes:
      position: its number among the arrays of the state.
      linear: whether it is linear in the gradient or the weights; if not, it mixes as a variance does.
      captured: whether ``init`` copies weights into it, in the original coordinates.
    """

    position: int
    linear: bool
    captured: bool = False


class OfOtherAxes(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # Optax ships no types
    """An eigenbasis that turns axes which the eigenbasis around it leaves alone.

    What it knows of its own axes does not depend on the basis of others. How it reads arrays is not told to
    those who listen.
    """

    @classmethod
    def of(cls, init: Callable[..., Any], update: Callable[..., Any]) -> "OfOtherAxes":
        """Return an eigenbasis of other axes from its two functions."""

        def unheard(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                with _axes.listen():
                    return function(*args, **kwargs)

            return called

        return cls(unheard(init), unheard(update))


# Of such a state no change of the basis around it changes anything but what is inside.
_OF_OTHER_AXES = ("left_factors", "right_factors", "left_bases", "right_bases")


def fields_of(
    inner: optax.GradientTransformation, linear: Sequence[str], squared: Sequence[str]
) -> StateFields:
    """Return the fields that the caller of an eigenbasis declares, and those that stay as they are."""
    invariant = _OF_OTHER_AXES if isinstance(inner, OfOtherAxes) else ()
    return StateFields(tuple(linear), tuple(squared), invariant=invariant)


def coordinate_arrays(
    state: optax.OptState, params: Any, turned: list[bool], extra: StateFields
) -> list[list[Coordinates]]:
    """Return, for each leaf of ``params``, the arrays of a state that hold its coordinates.

    A part of the state with the structure of ``params`` (leaves and branches may be masked) holds them in the
    arrays that have the shape of the leaf; further axes in front, and axes reduced to 1, are allowed. The
    state class declares how each array changes.

    Args:
      state: the state of the inner transformation.
      params: the parameters or the gradients.
      turned: whether each leaf has a basis.
      extra: fields declared by the caller, see :func:`fields_of`.

    Raises:
      ValueError: for coordinates of a turned leaf in an undeclared or a refused field, in 8 bits, or in one
        vector of all weights; for what counts the energy of weights, which are turned here.
    """
    if any(turned):
        check_outermost("in_eigenbasis", state)
    leaves, numbered = jax.tree.leaves(params), _tree.numbered(params)
    total = sum(np.size(leaf) for leaf in leaves)
    found: list[list[Coordinates]] = [[] for _ in leaves]

    def like_params(tree: Any) -> bool:
        return _tree.places(tree, numbered) is not None

    position = 0
    for path, part in jax.tree_util.tree_leaves_with_path(state, is_leaf=like_params):
        places = _tree.places(part, numbered)
        if places is None:
            if any(turned) and np.shape(part) == (total,) and jnp.issubdtype(part.dtype, jnp.inexact):
                _refuse_flat(state, path, total)
            position += 1
            continue
        for number, array in zip(places, jax.tree.leaves(part, is_leaf=_tree.is_masked), strict=True):
            if _tree.is_masked(array):
                continue
            if number >= 0 and turned[number] and _may_hold_coordinates(array):
                has_axes = _has_axes_of(array, leaves[number].shape)
                _refuse_codes(state, path, array, has_axes)
                found[number] += _coordinates(state, path, position, extra, has_axes)
            position += 1
    return found


def _coordinates(
    state: optax.OptState, path: tuple[Any, ...], position: int, extra: StateFields, has_axes: bool
) -> list[Coordinates]:
    """Return a list with how the array at ``path`` changes; an empty list if it holds no coordinates."""
    owners = owners_and_fields(state, path)
    owner, field = owners[-1] if owners else (None, "")
    if field in extra.invariant:
        return []
    declared = state_fields(type(owner))
    linear, squared = field in declared.linear + extra.linear, field in declared.squared + extra.squared
    if linear or squared:
        # ``E`` is a diagonal, and means of it are too.
        linear = linear and not any(is_of_metric(one) for one, _ in owners)
        captured = field in declared.captured + extra.linear
        return [Coordinates(position, linear, captured)] if has_axes else []
    if field in declared.refused:
        raise ValueError(
            f"in_eigenbasis: no change of basis can carry {type(owner).__name__}.{field}: keep this "
            "transformation outside of in_eigenbasis."
        )
    if not has_axes:
        return []
    if owner is None:
        raise ValueError(
            f"in_eigenbasis: the array at {jax.tree_util.keystr(path)} of the state has the axes of a weight "
            "and no name by which to declare how it changes when a basis does: make that state a NamedTuple "
            "and name the field in linear_fields or squared_fields, or keep this transformation outside of "
            "in_eigenbasis."
        )
    raise ValueError(
        f"in_eigenbasis: nobody has declared how {type(owner).__name__}.{field} changes when a basis does. "
        "If it is linear in gradients or weights (a momentum, a copy of the weights), name it in "
        f'linear_fields=("{field}",); if it is a second moment, in squared_fields=("{field}",). These are '
        "class attributes of the state class if it is yours, and arguments of in_eigenbasis otherwise. If it "
        "is neither, keep this transformation outside of in_eigenbasis."
    )


def _refuse_flat(state: optax.OptState, path: tuple[Any, ...], total: int) -> None:
    owner, field = owner_and_field(state, path)
    raise ValueError(
        f"in_eigenbasis: {type(owner).__name__}.{field} is one vector of all {total} weights, and which of "
        "its values belong to a matrix is not known: leave out optax.flatten."
    )


def _refuse_codes(state: optax.OptState, path: tuple[Any, ...], array: Any, has_axes: bool) -> None:
    """Raise ``ValueError`` for coordinates in 8 bits, which no matrix can rotate."""
    if has_axes and jnp.issubdtype(array.dtype, jnp.integer):
        owner, field = owner_and_field(state, path)
        raise ValueError(
            f"in_eigenbasis: {type(owner).__name__}.{field} is codes of {array.dtype}, which cannot change "
            "coordinates: put low_precision_state around in_eigenbasis instead of inside it, or use "
            'storage="bfloat16".'
        )


def _may_hold_coordinates(array: Any) -> bool:
    # One number for a whole leaf is the same in every basis. Integers of 8 bits are codes.
    narrow = array.dtype in (jnp.int8, jnp.uint8)
    return (narrow or bool(jnp.issubdtype(array.dtype, jnp.inexact))) and np.size(array) != 1


def _has_axes_of(array: Any, shape: tuple[int, ...]) -> bool:
    if array.ndim < len(shape):
        return False
    last = array.shape[array.ndim - len(shape) :]
    return all(a in (1, s) for a, s in zip(last, shape, strict=True))

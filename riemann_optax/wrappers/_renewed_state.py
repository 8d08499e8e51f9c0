"""The state of an optimiser with the values of some weights reset to their initial values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _axes, _tree
from riemann_optax._axes import Axes
from riemann_optax._state_fields import is_of_metric, owner_and_field, state_fields
from riemann_optax.eigenbasis import InEigenbasisState
from riemann_optax.wrappers.precision import LowPrecisionState

Slices = list[tuple[int, jax.Array]]


class Renewal(NamedTuple):
    """Which weights are new, and their values.

    Attributes:
      params: the leaves of the parameters, with the new weights.
      numbered: the parameters with and without boxes, with the number of each leaf in its place, or -1 if it
        is masked.
      slices: for each leaf, its axes with new positions, and the positions along each.
      turned: for each leaf, whether its inputs and its outputs are in the coordinates of a basis.
      sides: for each leaf, the axes of its inputs and outputs.
    """

    params: list[Any]
    numbered: tuple[Any, ...]
    slices: list[Slices]
    turned: list[tuple[bool, bool]]
    sides: list[tuple[tuple[int, ...], tuple[int, ...]]]


def renewal_of(params: Any, weights: list[Any], slices: list[Slices], axes: Axes) -> Renewal:
    """Return the renewal with ``weights`` as the new leaves of ``params``."""
    bare = _tree.bare(params)
    return Renewal(
        params=weights,
        numbered=_tree.numbered(params),
        slices=slices,
        turned=[(False, False)] * len(weights),
        sides=[((), ()) if read is None else (read.inputs, read.outputs) for read in _axes.read(bare, axes)],
    )


def where_new(slices: Slices, new: Any, old: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Put ``new`` at the new positions of an array with the axes of a leaf, perhaps with more in front.

    All units share an axis that is reduced to 1; it does not change.
    """
    first = old.ndim - len(shape)
    for axis, chosen in slices:
        if old.shape[first + axis] == shape[axis]:
            place = [1] * old.ndim
            place[first + axis] = shape[axis]
            old = jnp.where(chosen.reshape(place), new, old)
    return old


def renewed(state: Any, begun: Any, renewal: Renewal) -> Any:
    """Return a state with the values of new weights taken from the fresh state ``begun``.

    Raises:
      ValueError: if the values of the new weights cannot be separated from others; it names the field.
    """
    total = sum(np.size(weight) for weight in renewal.params)

    def is_whole(node: Any) -> bool:
        is_own = isinstance(node, InEigenbasisState | LowPrecisionState)
        return is_own or is_of_metric(node) or _tree.places(node, renewal.numbered) is not None

    def visit(path: tuple[Any, ...], node: Any, new: Any) -> Any:
        if isinstance(node, InEigenbasisState):
            return _in_eigenbasis(node, new, renewal)
        if isinstance(node, LowPrecisionState):
            return node.with_wide(renewed(node.wide(), new.wide(), renewal))
        if is_of_metric(node):
            return node  # of a weight without a gradient E is not 0
        is_other = _tree.places(node, renewal.numbered) is None
        if is_other and not (np.shape(node) == (total,) and jnp.issubdtype(node.dtype, jnp.inexact)):
            return node
        owner, field = owner_and_field(state, path)
        if is_other:
            raise ValueError(
                f"reset_units: {type(owner).__name__}.{field} is one vector of all {total} weights, and "
                "which of its values belong to a unit is not known: leave out optax.flatten."
            )
        return _leaves(node, new, renewal, type(owner), field)

    return jax.tree_util.tree_map_with_path(visit, state, begun, is_leaf=is_whole)


def _leaves(tree: Any, begun: Any, renewal: Renewal, kind: type[Any], field: str) -> Any:
    fields = state_fields(kind)
    holds_weights = field in fields.weights + fields.captured
    arrays, structure = jax.tree.flatten(tree, is_leaf=_tree.is_masked)
    found = []
    values = jax.tree.leaves(begun, is_leaf=_tree.is_masked)
    for number, old, new in zip(_tree.places(tree, renewal.numbered) or [], arrays, values, strict=True):
        slices = [] if _tree.is_masked(old) or number < 0 else renewal.slices[number]
        weight = renewal.params[number]
        shape = np.shape(weight)
        # One number for a whole leaf, or a random key, belongs to no unit.
        if not slices or (np.size(old) == 1 and np.shape(old) != shape) or _is_key(old):
            found.append(old)
            continue
        _check_axes(old, shape, f"{kind.__name__}.{field}")
        _check_coordinates(number, renewal, f"{kind.__name__}.{field}", holds_weights)
        value = weight.astype(old.dtype) if holds_weights else new
        found.append(where_new(slices, value, old, shape))
    return jax.tree.unflatten(structure, found)


def _in_eigenbasis(state: InEigenbasisState, begun: InEigenbasisState, renewal: Renewal) -> InEigenbasisState:
    """Return the state of an eigenbasis, whose inner state is in the coordinates of the basis."""
    left, right = (_with_arrays(bases, renewal) for bases in (state.left_bases, state.right_bases))
    # An eigenbasis of other axes or leaves may be around this one.
    turned = [
        (number in left or before[0], number in right or before[1])
        for number, before in enumerate(renewal.turned)
    ]
    own = renewal._replace(turned=turned)
    for number, slices in enumerate(renewal.slices):
        if slices:
            _check_coordinates(number, own, "the inner state", holds_weights=False)
    previous = _leaves(
        state.previous_gradients, begun.previous_gradients, renewal, InEigenbasisState, "previous_gradients"
    )
    return state._replace(previous_gradients=previous, inner=renewed(state.inner, begun.inner, own))


def _check_axes(array: Any, shape: tuple[int, ...], field: str) -> None:
    own = array.shape[array.ndim - len(shape) :] if array.ndim >= len(shape) else None
    if own is None or any(a not in (1, s) for a, s in zip(own, shape, strict=True)):
        raise ValueError(
            f"reset_units: which values of {field}, of shape {array.shape}, belong to a unit of a weight of "
            f"shape {shape} is not known: use a transformation whose state has the axes of the weights, such "
            "as riemann_optax.phi.factored_activity."
        )


def _check_coordinates(number: int, renewal: Renewal, field: str, holds_weights: bool) -> None:
    """Raise ``ValueError`` if an eigenbasis mixes the values of a unit with the values of others."""
    turned, (inputs, outputs) = renewal.turned[number], renewal.sides[number]
    mixed = {*(inputs if turned[0] else ()), *(outputs if turned[1] else ())}
    if (holds_weights and any(turned)) or mixed.intersection(axis for axis, _ in renewal.slices[number]):
        raise ValueError(
            f"reset_units: in_eigenbasis mixes the units of a weight of shape "
            f"{np.shape(renewal.params[number])} with others in {field}, and a unit cannot be taken out: "
            'leave the sides with hidden units alone (sides= a function of the name: "input" for the first '
            'layer, "none" between two hidden layers, "output" for the last), and keep anchors outside.'
        )


def _with_arrays(tree: Any, renewal: Renewal) -> set[int]:
    """Return the numbers of the weights that have an array in a tree like the parameters."""
    return set(_tree.places(tree, renewal.numbered) or ()) - {-1}


def _is_key(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))

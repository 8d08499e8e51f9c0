"""State arrays of parameters that have grown: old values in front, initial values for new entries.

The result equals the state of a run of the larger model in which the new weights had no gradient and did not
move. If the old state does not determine that, an error names the array.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _tree
from riemann_optax._state_fields import state_fields
from riemann_optax.checkpoint.matching import Path, Station

# Fields that are means over axes of the weights: new weights, which had no gradient, reduce the mean.
_MEANS: dict[str, tuple[str, ...]] = {
    "FactoredActivityState": ("rows", "columns"),
    "PerNeuronState": ("second_moment",),
}
_REFUSED: dict[str, str] = {
    "FactoredState": "its means are of axes that the state does not tell",
    "PermutedState": "another permutation is drawn for another shape",
}
_OF_METRIC = jax.tree_util.GetAttrKey("state_of_metric")  # of an OnMetricState
_SIDES = ("left", "right")


class Weight(NamedTuple):
    """A parameter that an array of the state belongs to.

    Attributes:
      path: the path of the parameter.
      value: the parameter now.
      old_shape: its shape before, or None if that is not known.
    """

    path: Path
    value: Any
    old_shape: tuple[int, ...] | None

    @property
    def has_grown(self) -> bool:
        """Whether its shape has changed."""
        return self.old_shape is not None and self.old_shape != np.shape(self.value)


def weights_of(params: optax.Params, old_params: optax.Params | None) -> dict[str, Weight]:
    """Return the parameters by name, with their old shapes."""
    before = {}
    if old_params is not None:
        leaves = jax.tree_util.tree_leaves_with_path(_tree.bare(old_params))
        before = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(_tree.bare(params)):
        name = jax.tree_util.keystr(path)
        old, now = before.get(name), np.shape(leaf)
        if old is not None and (len(old) != len(now) or any(a > b for a, b in zip(old, now, strict=True))):
            raise ValueError(
                f"transplant: {_tree.leaf_name(path)} of params has shape {now} and had {old}: axes can only "
                "grow. Leave out old_params to begin the state of such arrays anew."
            )
        found[name] = Weight(path, leaf, old)
    return found


def weight_of(place: Path, params: dict[str, Weight]) -> Weight | None:
    """Return the parameter whose path is the end of the array's path within its state."""
    endings = (jax.tree_util.keystr(place[start:]) for start in range(1, len(place) + 1))
    return next((params[ending] for ending in endings if ending in params), None)


def holds_weights(station: Station, place: Path) -> bool:
    """Whether a field holds weights: as weights they begin, for there is no second first update."""
    declared = state_fields(station.kind)
    return bool(place) and getattr(place[0], "name", None) in declared.captured + declared.weights


def captures_weights(station: Station, place: Path) -> bool:
    """Whether a field holds weights that ``init`` copies."""
    return bool(place) and getattr(place[0], "name", None) in state_fields(station.kind).captured


def grown(station: Station, place: Path, old: Any, begun: Any, weight: Weight) -> Any:
    """Return an array of the state for a parameter that has grown.

    Args:
      station: the new state that holds the array.
      place: the path of the array within it.
      old: the old array.
      begun: the initial array; the weights themselves if the array holds weights.
      weight: the parameter.

    Returns:
      The array, with the shape and dtype of ``begun``.

    Raises:
      ValueError: if the old state does not determine the array.
    """
    if _OF_METRIC in station.path:
        raise _refusal(station, place, "it holds values of E, which the state does not tell of new weights")
    if station.kind.__name__ in _REFUSED:
        raise _refusal(station, place, _REFUSED[station.kind.__name__])
    shape, new_shape = np.shape(old), np.shape(begun)
    if len(shape) != len(new_shape) or any(a > b for a, b in zip(shape, new_shape, strict=True)):
        raise _refusal(station, place, f"its shape is {new_shape} here and was {shape}")
    if getattr(place[0], "name", None) in _MEANS.get(station.kind.__name__, ()):
        old = old * np.asarray(_share(new_shape, weight), np.asarray(old).dtype)
    if shape == new_shape:
        return old
    front = tuple(slice(0, size) for size in shape)
    return jnp.asarray(begun).at[front].set(jnp.asarray(old).astype(begun.dtype))


def _share(new_shape: tuple[int, ...], weight: Weight) -> float:
    """Return the share of old weights among all weights of each mean."""
    now, before = np.shape(weight.value), weight.old_shape or ()
    if len(new_shape) != len(now):
        return float(np.prod(before) / np.prod(now))
    pairs = zip(new_shape, before, now, strict=True)
    return float(np.prod([b / n for kept, b, n in pairs if kept == 1]))


def check_bases(station: Station, old: Station, weight: Weight) -> None:
    """Raise unless the bases of a grown parameter can be the old ones plus new directions."""
    for side in _SIDES:
        before, here = (base_of(one, weight.path, side) for one in (old, station))
        place = (jax.tree_util.GetAttrKey(f"{side}_bases"), *weight.path)
        if (before is None) != (here is None):
            raise _refusal(station, place, "that side has a basis in one of the two only")
        if before is None or here is None or before.shape == here.shape:
            continue
        blocks = {before.shape[-3], here.shape[-3]}
        axes = before.shape[-1] in (weight.old_shape or ()) and here.shape[-1] in np.shape(weight.value)
        if blocks != {1} or before.shape[:-2] != here.shape[:-2] or not axes:
            raise _refusal(station, place, "its sides are cut into blocks, or made of several axes")


def base_of(station: Station, path: Path, side: str) -> Any:
    """Return the bases of one side of a parameter in an ``InEigenbasisState``, or None."""
    return station.arrays.get((jax.tree_util.GetAttrKey(f"{side}_bases"), *path))


def has_basis(station: Station, path: Path) -> bool:
    """Whether a parameter has a basis on any side."""
    return any(base_of(station, path, side) is not None for side in _SIDES)


def same_bases(station: Station, old: Station, path: Path) -> bool:
    """Whether both states have bases of the same shapes for a parameter."""

    def shapes(one: Station) -> list[Any]:
        return [np.shape(base) for side in _SIDES for base in [base_of(one, path, side)] if base is not None]

    return shapes(station) == shapes(old) and all(
        (base_of(station, path, side) is None) == (base_of(old, path, side) is None) for side in _SIDES
    )


def refuse_turned_weights(station: Station, place: Path) -> None:
    """Raise ``ValueError`` for weights that are stored in the coordinates of a basis."""
    raise _refusal(station, place, "it holds weights in the coordinates of a basis")


def _refusal(station: Station, place: Path, reason: str) -> ValueError:
    array, state = (jax.tree_util.keystr(path) for path in (station.path + place, station.path))
    return ValueError(
        f"transplant: {array} of {station.kind.__name__} cannot be grown exactly ({reason}): begin this "
        f"state anew with anew=({state!r},)."
    )

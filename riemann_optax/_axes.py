"""How the arrays of a tree are read: fan-in, fan-out, and stacks of layers, by axes= or by convention."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._conventions import PRESETS, MatrixAxes, Preset, Reading, by_convention
from riemann_optax._tree import Group

ChooseAxes = Callable[[str, Any], MatrixAxes | Preset | None]
Axes = Preset | ChooseAxes | MatrixAxes | Mapping[Any, Any] | None

_PRESETS = ", ".join(map(repr, PRESETS))
_PAIR = "ro.MatrixAxes of two tuples, such as ro.MatrixAxes((0,), (1,))"


def check_axes(axes: Any) -> None:
    """Raise ``ValueError`` unless ``axes`` can say how arrays are read."""
    if isinstance(axes, Mapping):
        for part in axes.values():
            check_axes(part)
    elif not (axes is None or callable(axes) or isinstance(axes, MatrixAxes)):
        if not isinstance(axes, str):
            raise ValueError(
                f"axes must be one of {_PRESETS}, None for single weights, {_PAIR}, a function of a leaf's "
                "name and the leaf that returns one of these, or a dictionary of these by name, got "
                f"{axes!r}."
            )
        _check.check_choice("axes", axes, PRESETS)


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[Any, ...]]:
    """Return the path of each leaf, without the ``.value`` of the box that a leaf may be in.

    Flax's Variables and boxes are in the parameters that ``init`` sees, not in those of every ``update``.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf)]
    below = Counter(path[:depth] for path in paths for depth in range(len(path)))
    value = (jax.tree_util.GetAttrKey("value"),)
    return [path[:-1] if path[-1:] == value and below[path[:-1]] == 1 else path for path in paths]


def read(tree: Any, axes: Axes) -> list[MatrixAxes | None]:
    """Return how each leaf of a tree is read, None for no matrix: each of its weights stands alone.

    Args:
      tree: parameters or gradients.
      axes: the argument of that name: axes, a preset, a function of a leaf's name and the leaf that returns
        either or None, or a dictionary of these by the names of modules, where what is not named is read as
        the dictionaries around say, in the end ``"flax"``. A name with ``*`` stands for all that it matches.

    Raises:
      ValueError: for axes that a leaf does not have, for an answer of a function that is no axes, and for a
        name that the tree does not have.
    """
    if isinstance(axes, Mapping):
        _check_names(tree, axes)
    paths, leaves = leaf_paths(tree), jax.tree.leaves(tree)
    readings = [read_leaf(path, leaf, axes) for path, leaf in zip(paths, leaves, strict=True)]
    heard = _heard.get()
    if heard is not None:
        heard.update(zip(paths, _doubted(paths, [np.shape(leaf) for leaf in leaves], readings), strict=True))
    return [reading.axes for reading in readings]


def _doubted(
    paths: list[tuple[Any, ...]], shapes: list[tuple[int, ...]], readings: list[Reading]
) -> list[Reading]:
    """Return the readings, in doubt where an array may be a stack, as the arrays beside it are.

    The scale of a norm with two axes belongs to stacked layers. So does then all in the largest module around
    it in which all arrays have as many places along the first axis.
    """
    stacked = []
    for path, shape in zip(paths, shapes, strict=True):
        if len(shape) == 2 and entry_key(path[-1] if path else None) == "scale":
            for depth in range(len(path)):
                sizes = {
                    other[:1] for at, other in zip(paths, shapes, strict=True) if at[:depth] == path[:depth]
                }
                if sizes == {shape[:1]}:
                    stacked.append(path[:depth])
                    break

    def doubted(path: tuple[Any, ...], reading: Reading) -> Reading:
        beside = any(path[: len(module)] == module for module in stacked)
        whole = reading.axes is not None and 0 in reading.axes.inputs + reading.axes.outputs
        return reading._replace(certain=False) if beside and whole and reading.preset == "flax" else reading

    return [doubted(path, reading) for path, reading in zip(paths, readings, strict=True)]


_heard: ContextVar[dict[tuple[Any, ...], Reading] | None] = ContextVar("heard", default=None)


@contextmanager
def listen() -> Iterator[dict[tuple[Any, ...], Reading]]:
    """Collect how leaves are read while an update runs, by their paths."""
    readings: dict[tuple[Any, ...], Reading] = {}
    token = _heard.set(readings)
    try:
        yield readings
    finally:
        _heard.reset(token)


def map_leaves(function: Callable[..., Any], axes: Axes, tree: Any, *others: Any) -> Any:
    """Map ``function(matrix_axes, leaf, *others)`` over the leaves of a tree."""
    leaves: list[Any]
    structure: Any
    leaves, structure = jax.tree.flatten(tree)
    columns = [structure.flatten_up_to(other) for other in others]
    rows = zip(read(tree, axes), leaves, *columns, strict=True)
    return jax.tree.unflatten(structure, [function(*row) for row in rows])


def group_axes(axes: MatrixAxes | None, ndim: int, over: Group) -> tuple[int, ...]:
    """Return the axes of a leaf that its own share of a group extends over."""
    if over != "neuron":
        return tuple(range(ndim))
    if axes is None:
        return ()
    return axes.outputs if axes.lookup else axes.inputs


def group_mean(tree: Any, over: Group, axes: Axes = "flax") -> Any:
    """Return, for every leaf, the mean over its group, broadcastable against the leaf.

    ``"leaf"`` averages a whole array, ``"tree"`` all weights of the tree alike, and ``"neuron"`` the fan-in
    of each output (of a vector all of it, of an embedding each row).
    """
    if over != "neuron":
        return _tree.group_mean(tree, over)

    def mean(axes: MatrixAxes | None, leaf: jax.Array) -> jax.Array:
        keepdims = leaf.ndim > 1 or axes is None
        return _tree.mean(leaf, group_axes(axes, leaf.ndim, over), keepdims)

    return map_leaves(mean, axes, tree)


Sides = tuple[tuple[int, ...], tuple[int, ...]]


def sides(axes: MatrixAxes | None) -> Sides | None:
    """Return the axes of the two sides of a matrix, as they come in the array; None where it is no matrix."""
    if axes is None or not (axes.inputs and axes.outputs):
        return None
    first, second = sorted((axes.inputs, axes.outputs), key=min)
    return first, second


def in_words(axes: MatrixAxes | None, shape: tuple[int, ...]) -> str:
    """Return how an array is read, for a person."""
    if axes is None:
        return "single weights"

    def size(chosen: tuple[int, ...]) -> str:
        return "*".join(str(shape[axis]) for axis in chosen) or "1"

    stack = tuple(axis for axis in range(len(shape)) if axis not in (*axes.inputs, *axes.outputs))
    one = f"inputs {size(axes.inputs)}, outputs {size(axes.outputs)}"
    if not axes.outputs:
        one = f"a vector of {size(axes.inputs)}"
    elif axes.lookup:
        one = f"{size(axes.inputs)} rows that are looked up, of {size(axes.outputs)}"
    return f"a stack of {size(stack)}: {one}" if stack else one


def called(path: tuple[Any, ...]) -> str:
    """Return how a person is told of a leaf: by its path, which a single array does not have."""
    return jax.tree_util.keystr(path) or _tree.leaf_name(path)


def remarks(params: Any, readings: dict[tuple[Any, ...], Reading]) -> tuple[str, ...]:
    """Return what is worth telling of how arrays were read: not of a plain matrix or a single vector.

    Of a plain matrix where its name is Equinox's, which has the outputs first, and not Flax's.
    """
    found = []
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        axes, certain, _ = readings.get(path, Reading(None))
        shape = np.shape(leaf)
        plain = len(shape) < 2 or (certain and axes == MatrixAxes((0,), (1,)))
        if axes is not None and not plain:
            remedy = "name the module in axes=" if path else f"give axes=ro.{axes!r}"
            default = "" if certain else f", by default: {remedy} to confirm or to change it"
            found.append(f"{called(path)} {shape}: {in_words(axes, shape)}{default}")
        elif axes is not None and len(shape) == 2 and path[-1:] == (jax.tree_util.GetAttrKey("weight"),):
            hint = 'as in Flax; a Linear of Equinox has the outputs first, axes="equinox"'
            found.append(f"{called(path)} {shape}: {in_words(axes, shape)}, {hint}")
    return tuple(found)


def read_leaf(path: tuple[Any, ...], leaf: Any, axes: Axes) -> Reading:
    """Return how one leaf at a path of the tree is read."""
    shape, named = np.shape(leaf), False
    if isinstance(axes, Mapping):
        axes, named = _said_of(path, axes)
    name = jax.tree_util.keystr(path)
    chosen = axes(name, leaf) if callable(axes) else axes
    if isinstance(chosen, str) and chosen in PRESETS:
        conventional, certain = by_convention(chosen, name, shape)
        # A single array has no name: whoever gives it a preset that is not the default has decided.
        certain = certain or named or (not path and chosen != "flax")
        certain = certain or int(np.prod(shape)) == max(shape, default=1)  # a vector, however it is read
        return Reading(conventional, certain, "" if named else chosen)
    if chosen is not None:
        chosen = _well_formed(path, chosen)
        every = (*chosen.inputs, *chosen.outputs)
        if len(set(every)) != len(every) or not set(every) <= set(range(len(shape))):
            raise ValueError(
                f"axes of {_tree.leaf_name(path)}, which has shape {shape}, must be different axes counted "
                f"from 0, got {chosen}."
            )
        if not set(chosen.window) <= set(chosen.inputs):
            raise ValueError(
                f"axes of {_tree.leaf_name(path)}: the window {chosen.window} must be among the inputs, "
                f"{chosen.inputs}."
            )
    return Reading(chosen)


def _said_of(path: tuple[Any, ...], axes: Mapping[Any, Any]) -> tuple[Any, bool]:
    """Return what a dictionary says of the array at a path, and whether a name of it led there.

    In each dictionary a name without ``*`` counts before those with it, and these in their order. What a
    dictionary does not name is what the dictionaries around it say, in the end ``"flax"``.
    """
    dictionaries, otherwise = [axes], "flax"
    for key in map(entry_key, path):
        found = [said for dictionary in dictionaries for said in _children(dictionary, key)]
        dictionaries = list(itertools.takewhile(lambda said: isinstance(said, Mapping), found))
        if found and not dictionaries:
            return found[0], True
        if len(dictionaries) < len(found):
            otherwise = found[len(dictionaries)]
    return otherwise, False


def _children(mapping: Mapping[Any, Any], key: Any) -> list[Any]:
    """Return what a dictionary has under a key: by its own name, then by patterns."""
    exact = [mapping[name] for name in dict.fromkeys((key, str(key))) if name in mapping]
    patterns = [said for name, said in mapping.items() if name not in (key, str(key)) and matches(name, key)]
    return exact + patterns


def matches(name: Any, key: Any) -> bool:
    """Return whether a name of a dictionary means a key: ``"*"`` in it stands for any letters.

    Examples:
      >>> matches("0", 0), matches("*", 11), matches("Block_*", "Block_11"), matches("Block_*", "head")
      (True, True, True, False)
    """
    if not isinstance(name, str):
        return bool(name == key)
    return re.fullmatch(".*".join(map(re.escape, name.split("*"))), str(key), re.DOTALL) is not None


def _well_formed(path: tuple[Any, ...], chosen: Any) -> MatrixAxes:
    """Return axes with tuples, also of lists; raise ``ValueError`` for what is no axes at all."""
    if isinstance(chosen, MatrixAxes):
        parts = (chosen.inputs, chosen.outputs, chosen.window)
        if all(isinstance(part, tuple | list) for part in parts) and all(
            isinstance(axis, int | np.integer) for part in parts for axis in part
        ):
            inputs, outputs, window = map(tuple, parts)
            return chosen._replace(inputs=inputs, outputs=outputs, window=window)
    raise ValueError(
        f"axes of {_tree.leaf_name(path)} must be one of {_PRESETS}, None for single weights, or {_PAIR}, "
        f"got {chosen!r}."
    )


def entry_key(entry: Any) -> Any:
    """Return the name or number that one entry of a path stands for."""
    return getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))


def module_of(path: tuple[Any, ...]) -> str:
    """Return the path of the module of a leaf, with / between its parts; of a leaf in none its own."""
    return "/".join(str(entry_key(entry)) for entry in path[:-1] or path)


def _is_left_out(node: Any) -> bool:
    """Return whether ``masked``, ``partition`` or a filter has left out what was here, perhaps a module."""
    return node is None or isinstance(node, optax.MaskedNode)


def _check_names(tree: Any, axes: Mapping[Any, Any]) -> None:
    """Raise ``ValueError`` for a name in ``axes`` that no module or array of the tree has.

    What is left out of a tree is in it for this purpose: one dictionary serves all parts of a partition.
    """
    places = leaf_paths(tree, _is_left_out)
    left_out = map(_is_left_out, jax.tree.leaves(tree, is_leaf=_is_left_out))
    paths = [(tuple(map(entry_key, place)), out) for place, out in zip(places, left_out, strict=True)]
    if paths:
        _check_names_below(axes, paths, "")


def _check_names_below(
    axes: Mapping[Any, Any], paths: list[tuple[tuple[Any, ...], bool]], place: str
) -> None:
    if any(left_out and not keys for keys, left_out in paths):
        return  # the names of a module that is left out are not known
    for name, part in axes.items():
        below = [(keys[1:], out) for keys, out in paths if keys and matches(name, keys[0])]
        if not below:
            there = ", ".join(dict.fromkeys(repr(keys[0]) for keys, _ in paths if keys))
            if there:
                what, remedy = there, "what a dictionary names must be there"
            else:
                what = "no names, for they are one array"
                remedy = 'give ro.MatrixAxes((0,), (1,)), or a preset such as "scanned", and no dictionary'
            raise ValueError(
                f"axes{place} has the name {name!r}, and the parameters there have {what}: {remedy}."
            )
        if isinstance(part, Mapping):
            _check_names_below(part, below, f"{place}[{name!r}]")

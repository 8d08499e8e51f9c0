"""What the axes of an array mean: fan-in, fan-out, and stacks of layers, known here and nowhere else."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._tree import Group


class MatrixAxes(NamedTuple):
    """Which axes of an array are the inputs of its layer and which the outputs.

    Attributes:
      inputs: the axes of the fan-in, merged into the rows of a matrix.
      outputs: the axes of the fan-out, merged into columns; none for a vector, such as a bias. All other axes
        stack matrices, as a scan over layers does.
      lookup: whether one row at a time is looked up, as in an embedding. A row, not a column, is then the
        group called "neuron": the memory of a rare token is its own.
      window: those of the inputs that are places in the window of a convolution, not channels.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.per_neuron(axes={"w": ro.MatrixAxes(inputs=(1,), outputs=(0,))})  # as in PyTorch
      >>> print(phi.init({"w": jnp.zeros([5, 3])}).second_moment["w"].shape)  # five outputs, five neurons
      (5, 1)
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lookup: bool = False
    window: tuple[int, ...] = ()


Preset = Literal["flax", "equinox", "haiku", "scanned", "convolution"]
PRESETS: tuple[str, ...] = get_args(Preset)
ChooseAxes = Callable[[str, Any], MatrixAxes | None]
Axes = Preset | ChooseAxes | MatrixAxes | Mapping[Any, Any] | None

_WORDS = re.compile(r"""\[['"]([^'"]*)['"]\]|\.(\w+)|\[(\d+)\]""")
_VECTORS = {"flax": {"bias", "scale"}, "haiku": {"b", "scale", "offset"}}
_STACKED = re.compile("einsum|expert|moe", re.IGNORECASE)
# A projection of Flax's attention has about as many outputs as inputs; a scan over layers, or a convolution,
# that goes by the same name has axes that would be far from it.
_WIDEST_PROJECTION = 8
_PROJECTIONS = ("query", "key", "value", "out")


class Reading(NamedTuple):
    """How an array is read.

    Attributes:
      axes: None for an array that is no matrix.
      certain: whether name and shape leave no other way, or the user has said so.
    """

    axes: MatrixAxes | None
    certain: bool = True


def kernel_axes(name: str, leaf: Any) -> MatrixAxes:
    """Return the matrix axes of an array by Flax's conventions: the preset ``"flax"``, which is the default.

    ============================================================  ==========================================
    array                                                         read as
    ============================================================  ==========================================
    ``(n,)``                                                      a vector
    ``(..., n)`` named ``bias`` or ``scale``                      a vector for each layer of a scan
    ``(..., rows, features)`` named ``embedding``                 a matrix whose rows are looked up
    ``(in, out)``                                                 a matrix
    ``(..., in, heads, size)`` under query, key or value          ``(in, heads * size)``
    ``(..., heads, size, out)`` under out                         ``(heads * size, out)``
    the last two with a stack on axis 1, if sizes fit better so   a matrix for each layer of a scan
    ``(window, in, out)`` where the module's name has "conv"      ``(window * in, out)``
    ``(..., in, out)`` under "einsum", "expert" or "moe"          a matrix for each layer, head or expert
    ``(stack, in, out)``                                          a matrix for each layer of a scan
    ``(..., height, width, in, out)``                             ``(height * width * in, out)``
    ============================================================  ==========================================

    The first line that fits counts. The names of attention count only where the sizes fit too: at most 8
    times as many outputs as inputs, and under ``out`` at least half as many. The line with a stack on axis 1
    and the last two lines are defaults: neither name nor shape tells for sure what such arrays are, and
    :func:`describe` lists them.

    For other conventions there are further presets, a function such as this one, or a dictionary of these by
    the names of modules: what it does not name is read as ``"flax"`` does, and a name that the parameters do
    not have is an error. A module that is named counts as confirmed: nothing warns of it. The presets:

    - ``"equinox"``: ``weight`` is ``(out, in)`` or ``(out, in, *window)``, with the layers of a
      ``filter_vmap`` in front; the weight of a module with "norm" in its name is a vector, with "embed" one
      whose rows are looked up.
    - ``"haiku"``: vectors are named ``b``, ``scale`` and ``offset``, and an embedding ``embeddings``.
    - ``"scanned"``: the first axis of every array stacks layers (or members of a population), what is left is
      read as ``"flax"`` does.
    - ``"convolution"``: of every array that is no vector the last axis is the outputs, and all others are
      inputs: a convolution whose module is not called so.

    Args:
      name: the path of the leaf, as ``jax.tree_util.keystr`` writes it.
      leaf: the parameter, of which only the shape is read.

    Returns:
      The axes.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> ro.kernel_axes("['conv']['kernel']", jnp.zeros([3, 3, 16, 32]))
      MatrixAxes(inputs=(0, 1, 2), outputs=(3,), lookup=False, window=(0, 1))
      >>> ro.kernel_axes("['attention']['query']['kernel']", jnp.zeros([64, 4, 16]))
      MatrixAxes(inputs=(0,), outputs=(1, 2), lookup=False, window=())
      >>> ro.kernel_axes("['layers']['bias']", jnp.zeros([12, 64]))  # twelve layers
      MatrixAxes(inputs=(1,), outputs=(), lookup=False, window=())
    """
    return _by_convention("flax", _words(name), np.shape(leaf))[0]


def check_axes(axes: Any) -> None:
    """Raise ``ValueError`` unless ``axes`` can say how arrays are read."""
    if isinstance(axes, Mapping):
        for part in axes.values():
            check_axes(part)
    elif not (axes is None or callable(axes) or isinstance(axes, MatrixAxes)):
        if not isinstance(axes, str):
            raise ValueError(
                f"axes must be one of {', '.join(map(repr, PRESETS))}, a function of a leaf's name and the "
                f"leaf that returns MatrixAxes, or a dictionary of these by name, got {axes!r}."
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
      axes: the argument of that name: a preset, a function of a leaf's name and the leaf, or a dictionary of
        these by the names of modules, where what is not named is read as ``"flax"`` does.

    Raises:
      ValueError: for axes that a leaf does not have, and for a name that the tree does not have.
    """
    if isinstance(axes, Mapping):
        _check_names(tree, axes)
    found = []
    heard = _heard.get()
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        reading = read_leaf(path, leaf, axes)
        if heard is not None:
            heard[path] = reading
        found.append(reading.axes)
    return found


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


def remarks(params: Any, readings: dict[tuple[Any, ...], Reading]) -> tuple[str, ...]:
    """Return what is worth telling of how arrays were read: not of a plain matrix or a single vector."""
    found = []
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        axes, certain = readings.get(path, Reading(None))
        shape = np.shape(leaf)
        plain = len(shape) < 2 or axes == MatrixAxes((0,), (1,))
        if axes is not None and not plain:
            default = "" if certain else ", by default: name the module in axes= to confirm or to change it"
            found.append(f"{jax.tree_util.keystr(path)} {shape}: {in_words(axes, shape)}{default}")
    return tuple(found)


def read_leaf(path: tuple[Any, ...], leaf: Any, axes: Axes) -> Reading:
    """Return how one leaf at a path of the tree is read."""
    shape, named = np.shape(leaf), False
    for key in map(entry_key, path):
        if isinstance(axes, Mapping):
            named = key in axes or str(key) in axes
            axes = axes.get(key, axes.get(str(key), "flax"))
    name = jax.tree_util.keystr(path)
    if isinstance(axes, Mapping):  # no name is left to look up
        axes, named = "flax", False
    if isinstance(axes, str):
        conventional, certain = _by_convention(axes, _words(name), shape)
        return Reading(conventional, certain or named)
    chosen = axes(name, leaf) if callable(axes) else axes
    if chosen is not None:
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


def entry_key(entry: Any) -> Any:
    """Return the name or number that one entry of a path stands for."""
    return getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", None)))


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
        below = [(keys[1:], out) for keys, out in paths if keys and name in (keys[0], str(keys[0]))]
        if not below:
            there = ", ".join(dict.fromkeys(repr(keys[0]) for keys, _ in paths if keys))
            raise ValueError(
                f"axes{place} has the name {name!r}, and the parameters there have "
                f"{there or 'no names, for they are one array'}: what a dictionary names must be there."
            )
        if isinstance(part, Mapping):
            _check_names_below(part, below, f"{place}[{name!r}]")


def _words(name: str) -> list[str]:
    found = ["".join(groups) for groups in _WORDS.findall(name.removesuffix(".value"))]
    return [word for part in found for word in part.split("/")]


def _by_convention(preset: str, words: list[str], shape: tuple[int, ...]) -> tuple[MatrixAxes, bool]:
    """Return the axes by the conventions of a preset, and whether name and shape leave no other way."""
    ndim = len(shape)
    if preset == "scanned" and ndim:
        one, certain = _by_convention("flax", words, shape[1:])
        inputs, outputs, window = (
            tuple(axis + 1 for axis in side) for side in (one.inputs, one.outputs, one.window)
        )
        return MatrixAxes(inputs, outputs, one.lookup, window), certain
    if ndim < 2:
        return MatrixAxes(tuple(range(ndim)), ()), True
    last, module = words[-1] if words else "", words[-2] if len(words) > 1 else ""
    if preset == "equinox":
        return _of_equinox(last, module, words, shape)
    if last in _VECTORS.get(preset, _VECTORS["flax"]):
        return MatrixAxes((ndim - 1,), ()), True
    if preset == "convolution":
        inputs = tuple(range(ndim - 1))
        return MatrixAxes(inputs, (ndim - 1,), window=inputs[:-1]), True
    if re.search("embeddings?$", last):
        return MatrixAxes((ndim - 2,), (ndim - 1,), lookup=True), True
    if ndim == 2:
        return MatrixAxes((0,), (1,)), True
    first, second, third = shape[-3:]
    if ndim == 4 and module in _PROJECTIONS and _is_scanned_behind(module, shape):
        return (MatrixAxes((0, 2), (3,)) if module == "out" else MatrixAxes((0,), (2, 3))), False
    if module in ("query", "key", "value") and second * third <= _WIDEST_PROJECTION * first:
        return MatrixAxes((ndim - 3,), (ndim - 2, ndim - 1)), True
    merged = first * second
    if module == "out" and merged <= 2 * third and third <= _WIDEST_PROJECTION * merged:
        return MatrixAxes((ndim - 3, ndim - 2), (ndim - 1,)), True
    if any(map(_STACKED.search, words)):
        return MatrixAxes((ndim - 2,), (ndim - 1,)), True
    convolution = "conv" in module.lower()
    places = 2 if ndim > 3 else int(convolution)
    inputs = tuple(range(ndim - 2 - places, ndim - 1))
    return MatrixAxes(inputs, (ndim - 1,), window=inputs[:-1]), convolution


def _is_scanned_behind(module: str, shape: tuple[int, ...]) -> bool:
    """Return whether attention's kernel fits better with the layers of a scan on axis 1 than on axis 0."""

    def unlike(inputs: int, outputs: int) -> float:
        return max(inputs, outputs) / max(min(inputs, outputs), 1)

    a, b, c, d = shape
    if module == "out":
        return unlike(a * c, d) < unlike(b * c, d) and unlike(a * c, d) <= 2
    return unlike(a, c * d) < unlike(b, c * d) and unlike(a, c * d) <= _WIDEST_PROJECTION


def _of_equinox(last: str, module: str, words: list[str], shape: tuple[int, ...]) -> tuple[MatrixAxes, bool]:
    ndim = len(shape)
    near = f"{module} {last}".lower()
    convolution = any("conv" in word.lower() for word in words)
    if last == "bias" or "norm" in near:
        first = ndim - 1
        while (convolution or ndim > 2) and shape[first] == 1 and first > 0:
            first -= 1  # the bias of a convolution is (out, 1, 1)
        return MatrixAxes(tuple(range(first, ndim)), ()), True
    if "embed" in near:
        return MatrixAxes((ndim - 2,), (ndim - 1,), lookup=True), True
    if ndim == 2 or (ndim == 3 and not convolution):
        return MatrixAxes((ndim - 1,), (ndim - 2,)), ndim == 2
    out = max(ndim - 4, 0)
    return MatrixAxes(tuple(range(out + 1, ndim)), (out,), window=tuple(range(out + 2, ndim))), convolution

"""What the shape and the name of an array tell of its axes, by the conventions of Flax, Equinox and Haiku."""

import re
from typing import Any, Literal, NamedTuple, get_args

import numpy as np


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


Preset = Literal[
    "flax", "equinox", "haiku", "scanned", "convolution", "equinox_scanned", "equinox_convolution"
]
PRESETS: tuple[str, ...] = get_args(Preset)

_WORDS = re.compile(r"""\[['"]([^'"]*)['"]\]|\.(\w+)|\[(\d+)\]""")
_VECTORS = {"flax": {"bias", "scale"}, "haiku": {"b", "scale", "offset"}}
# Such words may be parts of longer ones, but not of amoeba and expertise, nor of convex and conversation.
_STACKED = re.compile("einsum|expert(?!ise)|moe(?!ba)", re.IGNORECASE)
_CONVOLUTION = re.compile("(?i:conv)(?!er[gst]|ex(?![a-z])|en[et]|ey)")
# A projection of Flax's attention has about as many outputs as inputs; a scan over layers, or a convolution,
# that goes by the same name has axes that would be far from it.
_WIDEST_PROJECTION = 8
_PROJECTIONS = ("query", "key", "value", "out")
# In the name of a convolution: conv1d, conv2_d, Conv3DTranspose, but not conv2_down.
_DIMENSIONS = re.compile("(?i:conv_?([123])_?d(?:transpose)?)(?![a-z])")
_PARTS = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of a name: layer_norm1, RMSNorm, patch_embed
_NORM = re.compile("[a-z]*norms?|normali[sz]ation")
_TABLE = re.compile("(?!(?:un|de|patch)embed)[a-z]*embed(?:s|der|dings?)?")
_LAYER = re.compile("linear|dense|proj(?:ection|ector)?|conv(?:olution)?|head|fc|patch(?:es)?")
# Linen's own names of modules that it transforms, such as ScanCheckpointBlock_0, and Haiku's of a stack.
_LIFTED = re.compile("^(?:(?:Scan|Vmap|Remat_scan|Checkpoint|Jit|Map_variables)(?=[A-Z]))+|^__layer_stack_")
_STACKING = re.compile("Scan|Vmap|Remat_scan|layer_stack")
_OPEN_ENDED = "Remat_scan"  # it stacks as many axes as it has lengths
_WIDEST_WINDOW = 32


class Reading(NamedTuple):
    """How an array is read.

    Attributes:
      axes: None for an array that is no matrix.
      certain: whether name and shape leave no other way, or the user has said so.
      preset: whose conventions said so; empty where the user did.
    """

    axes: MatrixAxes | None
    certain: bool = True
    preset: str = ""


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
    ``(..., in, out)`` under "einsum", "expert" or "moe"          a matrix for each layer, head or expert
    ``(window, in, out)`` where the module's name has "conv"      ``(window * in, out)``
    ``(stack, in, out)``                                          a matrix for each layer of a scan
    ``(..., depth, height, width, in, out)``, see below           ``(depth * height * width * in, out)``
    ``(..., height, width, in, out)``                             ``(height * width * in, out)``
    ============================================================  ==========================================

    The first line that fits counts. The names of attention count only where the sizes fit too: at most 8
    times as many outputs as inputs, and under ``out`` at least half as many. Of five axes and more the first
    of the last five is a depth where it is no longer than height or width, or 3, 5 or 7 where these are 1;
    and no side of the window is longer than 32. Else it stacks layers. A module that is called "conv1d",
    "conv2d" or "conv3d" (or "conv3_d") is what it says.

    Linen's own names ``Scan...`` and ``Vmap...`` (and Haiku's ``__layer_stack...``) say that axes in front
    are stacks, one for each, also of several in one name, such as ``VmapScanBlock_0``. The table reads the
    axes that are left: ``(4, 3, in, out)`` under ``ScanBlock_0/Conv_0`` are four convolutions of one
    dimension. Where the last of these axes is as long as the one behind it, all steps may share one window:
    a kernel ``(3, 3, in, out)`` is read so.

    The line with a stack on axis 1 and the last three lines are defaults, but for a stack under such a name,
    and for ``(height, width, in, out)`` under "conv" where the sides of the window are equal or one of them
    is 1: neither name nor shape tells for sure what such arrays are, and :func:`describe` lists them.

    For other conventions there are further presets, a function such as this one, which returns
    :class:`MatrixAxes`, the name of a preset, or None for single weights, or a dictionary of all these by the
    names of modules: what it does not name is read as the dictionaries around it say, in the end as
    ``"flax"`` does (with ``{"*": "equinox", ...}`` as Equinox does), and a name that the parameters do not
    have is an error. ``*`` stands for any letters, and a name without it counts before those with it. A
    module that is named counts as confirmed: nothing warns of it. The presets:

    - ``"equinox"``: ``weight`` is ``(out, in)`` or ``(out, in, *window)``, with the layers of a
      ``filter_vmap`` in front, and a window of three axes as above; the weight of a module whose name has the
      word "norm", such as ``layer_norm1`` or ``RMSNorm``, is a vector, and with "embed" or "embedding" one
      whose rows are looked up, if it has two axes and is no ``patch_embed`` or ``linear_embed``. A word of a
      layer behind it counts more: ``norm_head`` and ``embed_proj`` are matrices.
    - ``"haiku"``: vectors are named ``b``, ``scale`` and ``offset``, and an embedding ``embeddings``.
    - ``"scanned"``: the first axis of every array stacks layers (or members of a population), what is left is
      read as ``"flax"`` does.
    - ``"convolution"``: of every array that is no vector the last axis is the outputs, and all others are
      inputs: a convolution whose module is not called so.
    - ``"equinox_scanned"`` and ``"equinox_convolution"``: the same of Equinox, where the outputs come first
      (behind the stack), and the inputs of a convolution before its window.

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
    return by_convention("flax", name, np.shape(leaf))[0]


def _words(name: str) -> list[str]:
    found = ["".join(groups) for groups in _WORDS.findall(name.removesuffix(".value"))]
    return [word for part in found for word in part.split("/")]


def by_convention(preset: str, name: str, shape: tuple[int, ...]) -> tuple[MatrixAxes, bool]:
    """Return the axes by the conventions of a preset, and whether name and shape leave no other way."""
    return _of_words(preset, _words(name), shape)


def _of_words(
    preset: str, words: list[str], shape: tuple[int, ...], taken: int = 0
) -> tuple[MatrixAxes, bool]:
    """Return the axes by the names on the way; ``taken`` stacks that these tell of are taken off already."""
    ndim = len(shape)
    if preset in ("scanned", "equinox_scanned") and ndim:
        of_layer = "equinox" if preset == "equinox_scanned" else "flax"
        if of_layer == "equinox" and ndim > 3:  # a layer is no stack again
            of_layer = "equinox_convolution"
        one, certain = _of_words(of_layer, words, shape[1:], taken=1)
        inputs, outputs, window = (
            tuple(axis + 1 for axis in side) for side in (one.inputs, one.outputs, one.window)
        )
        return MatrixAxes(inputs, outputs, one.lookup, window), certain
    if ndim < 2:
        return MatrixAxes(tuple(range(ndim)), ()), True
    last, module = words[-1] if words else "", words[-2] if len(words) > 1 else ""
    if preset.startswith("equinox"):
        return _of_equinox(last, module, words, shape, preset == "equinox_convolution")
    if last in _VECTORS.get(preset, _VECTORS["flax"]):
        return MatrixAxes((ndim - 1,), ()), True
    if preset == "convolution":
        inputs = tuple(range(ndim - 1))
        return MatrixAxes(inputs, (ndim - 1,), window=inputs[:-1]), True
    if re.search("embeddings?$", last, re.IGNORECASE) and _kind(last) == "table":
        return MatrixAxes((ndim - 2,), (ndim - 1,), lookup=True), True
    if ndim == 2:
        return MatrixAxes((0,), (1,)), True
    stacks, open_ended = _stacks_told(words)
    stacks = max(stacks - taken, 0)
    first, second, third = shape[-3:]
    merged = first * second
    # Dense layers may be called so too: where a stack is the first of three axes, sizes have to be exact.
    three_are_left = ndim - stacks >= 3
    if ndim == 4 and module in _PROJECTIONS and _is_scanned_behind(module, shape):
        return (MatrixAxes((0, 2), (3,)) if module == "out" else MatrixAxes((0,), (2, 3))), False
    fits = second * third <= _WIDEST_PROJECTION * first if three_are_left else second * third == first
    if module in ("query", "key", "value") and fits:
        return MatrixAxes((ndim - 3,), (ndim - 2, ndim - 1)), True
    fits = merged <= 2 * third and third <= _WIDEST_PROJECTION * merged
    if module == "out" and (fits if three_are_left else merged == third):
        return MatrixAxes((ndim - 3, ndim - 2), (ndim - 1,)), True
    if any(map(_STACKED.search, words)):
        return MatrixAxes((ndim - 2,), (ndim - 1,)), True
    places, certain = _window([module], shape[:-2], stacks, open_ended)
    inputs = tuple(range(ndim - 2 - places, ndim - 1))
    return MatrixAxes(inputs, (ndim - 1,), window=inputs[:-1]), certain


def _stacks_told(words: list[str]) -> tuple[int, bool]:
    """Return how many axes in front names of Linen and Haiku call stacks, and whether it may be more."""
    lifted = [found[0] for found in map(_LIFTED.match, words) if found]
    return sum(len(_STACKING.findall(name)) for name in lifted), any(_OPEN_ENDED in name for name in lifted)


def _window(
    called: list[str], sizes: tuple[int, ...], stacks: int = 0, open_ended: bool = False
) -> tuple[int, bool]:
    """Return how many axes are the window of a convolution, and whether that is certain.

    Args:
      called: the names of modules that tell that there is one.
      sizes: of all axes but inputs and outputs: what stacks layers, then the window.
      stacks: how many of these axes stack layers, by the names on the way to the array.
      open_ended: whether it may be more.
    """
    told = [int(found[1]) for found in map(_DIMENSIONS.search, called) if found]
    if told and told[-1] <= len(sizes):
        return told[-1], True
    convolution = any(map(_CONVOLUTION.search, called))
    stacks = min(stacks, len(sizes) - convolution)  # a convolution has a window: what is shared is no stack
    places, certain = _window_of_one(convolution, sizes[stacks:])
    if stacks and sizes[stacks - 1 : stacks] == sizes[stacks : stacks + 1] != (1,):
        return max(places, 2), False  # all steps may share one window of equal sides
    return places, certain and not (open_ended and len(sizes) > stacks)


def _window_of_one(convolution: bool, sizes: tuple[int, ...]) -> tuple[int, bool]:
    """Return the same for the axes that no name tells to be a stack."""
    if len(sizes) < 2:
        return (len(sizes), True) if convolution else (0, not sizes)
    if len(sizes) == 2:
        # In a stack of convolutions of one dimension the number of layers would be as long as the window.
        return 2, convolution and (sizes[0] == sizes[1] or 1 in sizes)
    return 3 if _is_volume(sizes[-3:]) else 2, False


def _is_volume(sizes: tuple[int, ...]) -> bool:
    """Return whether three axes are rather the window of a convolution than a stack of two-dimensional ones.

    Windows in time or depth are about as long as wide, or have one long side; a stack mostly has more layers
    than a window has places along a side.
    """
    depth, *others = sizes
    alone = set(others) == {1} and depth in (3, 5, 7)
    return max(sizes) <= _WIDEST_WINDOW and (alone or depth <= max(others))


def _is_scanned_behind(module: str, shape: tuple[int, ...]) -> bool:
    """Return whether attention's kernel fits better with the layers of a scan on axis 1 than on axis 0."""

    def unlike(inputs: int, outputs: int) -> float:
        return max(inputs, outputs) / max(min(inputs, outputs), 1)

    a, b, c, d = shape
    if module == "out":
        return unlike(a * c, d) < unlike(b * c, d) and unlike(a * c, d) <= 2
    return unlike(a, c * d) < unlike(b, c * d) and unlike(a, c * d) <= _WIDEST_PROJECTION


def _kind(name: str) -> Literal["norm", "table", "layer", ""]:
    """Return what a name says that it names, by its words: the last one that says something counts.

    An embedding of patches, or a linear one, is a layer: it looks nothing up.
    """
    kind: Literal["table", ""] = ""
    for word in reversed([part.lower() for part in _PARTS.findall(name)]):
        if _LAYER.fullmatch(word):
            return "layer"
        if _NORM.fullmatch(word):
            return "norm"
        if _TABLE.fullmatch(word):
            kind = "table"
    return kind


def name_of_table(name: str) -> bool:
    """Return whether the name of an array says that its rows are looked up."""
    return _kind(name) == "table"


def _of_equinox(
    last: str, module: str, words: list[str], shape: tuple[int, ...], said: bool
) -> tuple[MatrixAxes, bool]:
    """Return the axes by Equinox's conventions; ``said`` is whether the user calls it a convolution."""
    ndim = len(shape)
    kind = _kind(last) or _kind(module)
    convolution = said or any(map(_CONVOLUTION.search, words))
    if last == "bias" or kind == "norm":
        first = ndim - 1
        while (convolution or ndim > 2) and shape[first] == 1 and first > 0:
            first -= 1  # the bias of a convolution is (out, 1, 1)
        return MatrixAxes(tuple(range(first, ndim)), ()), True
    if said:
        return MatrixAxes(tuple(range(1, ndim)), (0,), window=tuple(range(2, ndim))), True
    # An array that is a table itself may have any stack in front; a layer's weight may be a convolution.
    if kind == "table" and (_kind(last) or ndim == 2 or (ndim == 3 and not convolution)):
        return MatrixAxes((ndim - 2,), (ndim - 1,), lookup=True), ndim == 2 or bool(_kind(last))
    if ndim == 2 or (ndim == 3 and not convolution):
        return MatrixAxes((ndim - 1,), (ndim - 2,)), ndim == 2
    places, certain = _window(words, shape[2:])
    out = ndim - 2 - places
    return MatrixAxes(tuple(range(out + 1, ndim)), (out,), window=tuple(range(out + 2, ndim))), certain

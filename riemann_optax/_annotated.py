"""annotated_axes: which axes are inputs and outputs, from the names that Flax keeps of a model's axes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from riemann_optax import _axes, _tree
from riemann_optax._conventions import MatrixAxes

_STACK, _EXPERTS, _LOOKUP, _WINDOW = "stack", "experts", "lookup", "window"

# The names of T5X, MaxText and Flax's own guides.
_MEANINGS: dict[Any, str | None] = {
    **{name: name for name in ("embed", "mlp", "norm", "hidden", "in", "out", "conv_in", "conv_out")},
    **{name: name for name in ("embed_no_exp", "embed_tensor_transpose", "mlp_no_fsdp")},
    **{name: name for name in ("q_lora", "kv_lora", "q_lora_up_proj", "kv_lora_up_proj")},
    **dict.fromkeys(("heads", "q_heads", "kv_heads", "kv", "kv_head_dim", "head_dim", "qkv"), "heads"),
    "joined_kv": "heads",
    **dict.fromkeys(("layers", "layer", "dense_layers", "moe_layers", "stack", "stage"), _STACK),
    **dict.fromkeys(("experts", "expert", "exp", "exp_with_fsdp"), _EXPERTS),
    **dict.fromkeys(("vocab", "position", "length", "abspos_buckets", "relpos_buckets"), _LOOKUP),
    **dict.fromkeys(("height", "width", "window", "conv_height", "conv_width"), _WINDOW),
    None: None,
}


def annotated_axes(params: Any, names: Mapping[Any, str | None] | None = None) -> Any:
    """Return what ``axes=`` takes, from the names of axes in the metadata of a Flax model.

    Partitioned models name the axes of their arrays: Linen in the boxes of ``nn.with_logical_partitioning``
    and ``nn.with_partitioning``, NNX in a Variable's ``out_sharding`` (in Flax 0.12.1 ``sharding_names``).
    The names say what a shape cannot: ``("embed", "heads", "kv")`` is a projection onto heads, ``("layers",
    "embed", "mlp")`` a stack of matrices. Each name has one meaning, a word:

    ============  =========================================================================================
    word          usual names with this meaning
    ============  =========================================================================================
    ``stack``     ``layers``, ``stage``, ``dense_layers``, ``moe_layers``: no side of a matrix
    ``experts``   ``experts``, ``expert``, ``exp``: a stack, or the outputs of a router where they are last
    ``lookup``    ``vocab``, ``position``, ``relpos_buckets``: rows that are looked up, where they come first
    ``window``    ``height``, ``width``, ``window``, ``conv_height``: part of the inputs
    ``heads``     ``heads``, ``q_heads``, ``kv_heads``, ``kv``, ``head_dim``, ``qkv``: together one side
    another       a side of that name: ``embed``, ``mlp``, ``norm``, ``in``, ``out``, ``hidden``, ``q_lora``
    None          says nothing, as None in the metadata does
    ============  =========================================================================================

    Neighbours with the same word and different names are one side. The first side is the inputs and the
    second the outputs, as in Flax; a side alone is a vector. An axis that says nothing is a side of its own;
    where this makes more than two, and in a bias or scale, the array is left out of the result. Arrays that
    are left out, and arrays without names, are then read by name and shape, as by :func:`kernel_axes`.

    Args:
      params: the parameters with their metadata, arrays or shapes: what a Linen ``init`` returns, before
        ``nn.meta.unbox``, or ``nnx.state(model, nnx.Param)``; with the structure that the optimiser gets.
      names: the meaning of further names, or other meanings; those of the table stay.

    Returns:
      A dictionary by the names of modules, of :class:`MatrixAxes`; for one array its axes.

    Raises:
      ValueError: for a name without a meaning; for other than two sides, or one; for names that are not one
        per axis; for an attention kernel whose names contradict its own name and shape (one ``kernel_init``
        for all projections names that of the output wrongly); where nothing has names.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> from flax import linen as nn
      >>> init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "heads", "kv"))
      >>> model = nn.DenseGeneral((4, 8), kernel_init=init)
      >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 32]))["params"]
      >>> axes = ro.annotated_axes(params)
      >>> axes
      {'kernel': MatrixAxes(inputs=(0,), outputs=(1, 2), lookup=False, window=())}
      >>> tx = ro.riemannian_eigenbasis(0.003, axes=axes)
    """
    meanings = _MEANINGS | dict(names or {})
    found: dict[Any, Any] = {}
    boxes = [
        (path, box, _names_of(box))
        for path, box in jax.tree_util.tree_leaves_with_path(
            params, is_leaf=lambda x: _names_of(x) is not None
        )
    ]
    if all(own is None for _, _, own in boxes):
        raise ValueError(
            "annotated_axes: no array of params has names of its axes: give what a Linen init returns, "
            "before nn.meta.unbox, or nnx.state(model, nnx.Param), of a model made with "
            "nn.with_logical_partitioning or nnx.with_partitioning."
        )
    for path, box, own in boxes:
        axes = None if own is None else _read(path, _shape_of(box), own, meanings)
        if axes is None:
            continue
        if not path:
            return axes
        below = found
        *modules, last = map(_axes.entry_key, path)
        for name in modules:
            below = below.setdefault(name, {})
        below[last] = axes
    return found


def _names_of(node: Any) -> tuple[Any, ...] | None:
    """Return the names in a box of Linen or a Variable of NNX, None where there are none."""
    if callable(getattr(node, "unbox", None)):
        names = getattr(node, "names", None)
    elif callable(getattr(node, "get_metadata", None)):
        metadata = node.get_metadata()
        names = metadata.get("out_sharding", metadata.get("sharding_names"))
    else:
        return None
    names = getattr(names, "spec", names)  # of a NamedSharding
    return None if names is None else tuple(names)


def _shape_of(box: Any) -> tuple[int, ...]:
    return tuple((box.value if callable(getattr(box, "unbox", None)) else box).shape)


def _read(
    path: tuple[Any, ...], shape: tuple[int, ...], names: tuple[Any, ...], meanings: Mapping[Any, str | None]
) -> MatrixAxes | None:
    """Return the axes of one array, None where its names do not tell them."""
    called = f"annotated_axes: {_tree.leaf_name(path)}, whose axes are named {names},"
    if len(names) != len(shape):
        raise ValueError(
            f"{called} has shape {shape}: give a name, or None, for each axis. nnx.vmap adds one for its own "
            'axis with transform_metadata={nnx.PARTITION_NAME: "layers"}, and nn.scan and nn.vmap with '
            'metadata_params={nn.PARTITION_NAME: "layers"}.'
        )
    for name in names:
        if name not in meanings:
            raise ValueError(
                f"{called} has the name {name!r}, whose meaning is not known: give names={{{name!r}: ...}}, "
                'with "stack", "experts", "lookup", "window" or the word of a side, such as "embed" or '
                '"heads"; or with None if it says nothing of the meaning, as the name of an axis of a mesh.'
            )
    words = [meanings[name] for name in names]
    window, sides = _window_and_sides(names, words)
    if None in words and (len(sides) > 2 or (path and _axes.entry_key(path[-1]) in ("bias", "scale"))):
        return None
    if window:  # of a convolution of each channel by itself, the window is all of the inputs
        sides = (
            [window, *sides] if len(sides) == 1 else [window + sides[0], *sides[1:]] if sides else [window]
        )
    if len(sides) > 2:
        raise ValueError(
            f"{called} has {len(sides)} sides, and a matrix has two: give neighbours the same word in "
            'names=, or an axis of a stack the word "stack".'
        )
    inputs, outputs = (tuple(side) for side in [*sides, [], []][:2])
    lookup = bool(outputs) and not window and words[inputs[0]] == _LOOKUP
    found = MatrixAxes(inputs, outputs, lookup, tuple(window))
    _check_attention(called, path, shape, found)
    return found


def _window_and_sides(names: tuple[Any, ...], words: list[str | None]) -> tuple[list[int], list[list[int]]]:
    """Return the axes of a window, and those of each side: neighbours of one word under different names."""
    window: list[int] = []
    sides: list[list[int]] = []
    last = None
    for axis, (name, word) in enumerate(zip(names, words, strict=True)):
        if word == _STACK or (word == _EXPERTS and axis < len(names) - 1):
            continue
        if word == _WINDOW:
            window.append(axis)
            continue
        joins = (
            last is not None and word not in (None, _LOOKUP) and words[last] == word and names[last] != name
        )
        if joins:
            sides[-1].append(axis)
        else:
            sides.append([axis])
        last = axis
    return window, sides


def _check_attention(called: str, path: tuple[Any, ...], shape: tuple[int, ...], found: MatrixAxes) -> None:
    """Raise ``ValueError`` where a kernel's own name and shape say for sure that its sides are others."""
    by_shape, certain, _ = _axes.read_leaf(path, jax.ShapeDtypeStruct(shape, np.float32), "flax")
    if by_shape is None or not certain or not (found.outputs and by_shape.outputs):
        return
    same = set(found.inputs + found.outputs) == set(by_shape.inputs + by_shape.outputs)
    if same and found.inputs != by_shape.inputs:
        raise ValueError(
            f"{called} would have {_axes.in_words(found, shape)}, and its own name and shape {shape} say "
            f"{_axes.in_words(by_shape, shape)}: give the output projection of attention names of its own "
            "(out_kernel_init=)."
        )

"""Hidden layers in a tree of parameters: which arrays hold the weights of each unit, and along which axes."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from riemann_optax import _axes, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes

Outgoing = Mapping[str, str | Sequence[str]]
# A kernel and its bias may share a name: w1 and b1, kernel_out and bias_out, out_w and out_b.
_KERNEL, _BIAS = (
    re.compile(rf"(?:{word})(?:_?(\d+)|_(.+))?|(.+)[_./](?:{word})", re.IGNORECASE)
    for word in ("w|weights?|kernels?", "b|bias|biases")
)


class Side(NamedTuple):
    """Where the units of a hidden layer are in one array.

    Attributes:
      leaf: the number of the array among the leaves.
      axis: the axis of the units.
      repeats: how many positions of the axis belong to each unit; more than 1 if the outputs of a
        convolution were flattened. The units are then the fastest index.
    """

    leaf: int
    axis: int
    repeats: int = 1


class HiddenLayer(NamedTuple):
    """The arrays that hold the weights of one layer's units.

    Attributes:
      kernel: the incoming weights.
      bias: the biases, or None.
      outgoing: the kernels that read the units.
      units: the number of units.
    """

    kernel: Side
    bias: Side | None
    outgoing: tuple[Side, ...]
    units: int


class _Arrays:
    """The leaves of a tree with their paths, names and axes."""

    def __init__(self, params: Any, axes: Axes) -> None:
        self.leaves = jax.tree.leaves(params)
        self.paths = _axes.leaf_paths(params)
        self.reads = _axes.read(params, axes)
        self.names = [tuple(map(_key, path)) for path in self.paths]

    def kernels(self) -> list[int]:
        return list(filter(self.is_kernel, range(len(self.reads))))

    def is_kernel(self, index: int) -> bool:
        return _axes.sides(self.reads[index]) is not None

    def called(self, index: int) -> str:
        return _tree.leaf_name(self.paths[index])

    def of_matrix(self, index: int) -> MatrixAxes:
        read = self.reads[index]
        assert read is not None
        return read


def hidden_layers(params: Any, outgoing: Outgoing | None, axes: Axes) -> tuple[HiddenLayer, ...]:
    """Return the hidden layers in topological order: each after the layers whose units it reads.

    Args:
      params: a tree without boxes.
      outgoing: a dictionary from the path of a layer to the paths of the layers that read its units; None to
        read the tree as one chain.
      axes: which axes are inputs and outputs.

    Raises:
      ValueError: if a layer cannot be used; the message names the array and the remedy.
    """
    arrays = _Arrays(params, axes)
    pairs = _chain(arrays) if outgoing is None else _named(arrays, outgoing)
    return tuple(_hidden_layer(arrays, kernel, readers) for kernel, readers in pairs)


def _hidden_layer(arrays: _Arrays, kernel: int, readers: list[int]) -> HiddenLayer:
    read, shape = arrays.of_matrix(kernel), np.shape(arrays.leaves[kernel])
    if len(read.outputs) != 1 or len(read.inputs) + 1 != len(shape):
        raise ValueError(
            f"reset_units: {arrays.called(kernel)} of shape {shape} is {_axes.in_words(read, shape)}, but "
            "hidden units need one matrix with one axis of outputs: leave this layer out of outgoing, or "
            "set axes= to say how to read it."
        )
    units = shape[read.outputs[0]]
    return HiddenLayer(
        Side(kernel, read.outputs[0]),
        _bias(arrays, kernel, units),
        tuple(_reader(arrays, kernel, reader, units) for reader in readers),
        units,
    )


def _bias(arrays: _Arrays, kernel: int, units: int) -> Side | None:
    """Return the array beside a kernel whose name, or place in a sequence, says that it is its bias."""
    module = arrays.names[kernel][:-1]
    beside = [index for index, name in enumerate(arrays.names) if name and name[:-1] == module]
    if not beside:
        return None
    if isinstance(arrays.paths[kernel][-1], jax.tree_util.SequenceKey):
        # Kernels and biases in turn; a vector between two kernels could be a norm's scale.
        turns = [int(arrays.is_kernel(index)) for index in beside]
        called = [kernel + 1] if turns == [1, 0] * (len(turns) // 2) else []
    else:
        own = _KERNEL.fullmatch(arrays.names[kernel][-1])
        found = {index: _BIAS.fullmatch(arrays.names[index][-1]) for index in beside}
        called = [i for i, its in found.items() if own and its and own.groups() == its.groups()]
        if not called and sum(map(arrays.is_kernel, beside)) == 1:
            called = [index for index in beside if arrays.names[index][-1] in ("bias", "b")]
    for index in called:
        shape = np.shape(arrays.leaves[index])
        if math.prod(shape) == units and shape:
            return Side(index, shape.index(units))
    return None


def _reader(arrays: _Arrays, kernel: int, reader: int, units: int) -> Side:
    convolution = len(arrays.of_matrix(kernel).inputs) > 1
    side = _input_axis(arrays, reader, units)
    if side is None or (side.repeats > 1 and not convolution):
        read, shape = arrays.of_matrix(reader), np.shape(arrays.leaves[reader])
        raise ValueError(
            f"reset_units: {arrays.called(reader)} is {_axes.in_words(read, shape)}, and cannot read the "
            f"{units} units of {arrays.called(kernel)}: name the layer that reads them in outgoing, or "
            f"leave out {_module(arrays, kernel)!r}."
        )
    return side


def _input_axis(arrays: _Arrays, reader: int, units: int) -> Side | None:
    """Return where a kernel reads this many units; None if it cannot."""
    read, shape = arrays.of_matrix(reader), np.shape(arrays.leaves[reader])
    if len(read.inputs) + len(read.outputs) != len(shape) or not units:
        return None
    # A convolution has window and channel axes: channels come last before the outputs, or first after them.
    axis = min(read.inputs) if min(read.outputs) < min(read.inputs) else max(read.inputs)
    if shape[axis] == units:
        return Side(reader, axis)
    # Only channels-last flattening is known; with (out, in) kernels images are channels-first.
    channels_last = len(read.inputs) == 1 and axis < min(read.outputs)
    if channels_last and shape[axis] % units == 0 and shape[axis]:
        return Side(reader, axis, shape[axis] // units)
    return None


def _named(arrays: _Arrays, outgoing: Outgoing) -> list[tuple[int, list[int]]]:
    pairs: dict[int, list[int]] = {}
    for layer, readers in outgoing.items():
        named = [readers] if isinstance(readers, str) else readers
        names = list(named) if isinstance(named, Sequence) else []
        if not names or not all(isinstance(name, str) for name in (layer, *names)):
            raise TypeError(
                "reset_units: outgoing must have paths of layers for each layer, one or more, and has "
                f'{readers!r} for {layer!r}: write {{"hidden": "head"}}, and leave out what nothing reads.'
            )
        kernel = _find(arrays, layer)
        pairs[kernel] = list(dict.fromkeys(_find(arrays, name) for name in names))
        shared = [(a, b) for a in pairs if a != kernel for b in pairs[kernel] if b in pairs[a]]
        for other, reader in shared:
            raise ValueError(
                f"reset_units: outgoing says that {arrays.called(reader)} reads both {arrays.called(other)} "
                f"and {arrays.called(kernel)}: one row then belongs to a unit of each (a sum, or a gate), "
                "and no unit can be drawn anew alone. Leave out both."
            )
    return _sorted(arrays, pairs)


def _sorted(arrays: _Arrays, pairs: dict[int, list[int]]) -> list[tuple[int, list[int]]]:
    """Sort the layers so that each comes after the layers it reads."""
    rest, found = dict(pairs), []
    while rest:
        read = {reader for readers in rest.values() for reader in readers}
        first = next((kernel for kernel in rest if kernel not in read), None)
        if first is None:
            names = ", ".join(map(arrays.called, rest))
            raise ValueError(f"reset_units: outgoing leads from {names} back to itself: name no layer twice.")
        found.append((first, rest.pop(first)))
    return found


def _find(arrays: _Arrays, name: str) -> int:
    """Return the kernel at the path of a module or of the kernel itself."""
    there = ["/".join(arrays.names[index]) for index in arrays.kernels()]
    found = [
        index
        for index, path in zip(arrays.kernels(), there, strict=True)
        if name in (path, "/".join(arrays.names[index][:-1]))
    ]
    if len(found) != 1:
        raise ValueError(
            f"reset_units: outgoing has the name {name!r}, which {len(found)} kernels have; the parameters "
            f"have {', '.join(map(repr, there)) or 'no kernels'}. Use the path of a kernel, or of a module "
            "with one kernel, with / between its parts."
        )
    return found[0]


def _chain(arrays: _Arrays) -> list[tuple[int, list[int]]]:
    """Return the layers if all kernels form one chain."""
    kernels = arrays.kernels()
    readers = {k: [other for other in kernels if other != k and _fits(arrays, k, other)] for k in kernels}
    found = _by_numbers(arrays, kernels, readers)
    if found is not None:
        return found
    for kernel in kernels:
        flattened = [other for other in kernels if other != kernel and _may_flatten(arrays, kernel, other)]
        if flattened and not readers[kernel]:
            raise ValueError(_unclear(arrays, kernel, flattened))
        if len(readers[kernel]) > 1:
            raise ValueError(_unclear(arrays, kernel, readers[kernel]))
        before = [other for other in kernels if kernel in readers[other]]
        if len(before) > 1:
            raise ValueError(_unclear(arrays, kernel, before, read=False))
    ends = [kernel for kernel in kernels if not readers[kernel]]
    if len(ends) != 1 or len(kernels) < 2:
        listed = ", ".join(map(arrays.called, ends or kernels)) or "any kernel"
        why = "nothing reads the units of" if ends or not kernels else "sizes fit in a circle from"
        raise ValueError(
            f"reset_units: the kernels are not one chain of layers, because {why} {listed}: say which layer "
            f"reads which, {_example(arrays, *(kernels if len(kernels) > 1 else []))}."
        )
    found = _sorted(arrays, {kernel: readers[kernel] for kernel in kernels if readers[kernel]})
    if len(found) > 1:  # what reads a concatenation fits nowhere, and the chain may start behind it
        proposed = {_module(arrays, kernel): _module(arrays, reader) for kernel, (reader,) in found}
        raise ValueError(
            "reset_units: it is not clear from sizes alone whether the layers are one chain. If each reads "
            f"what the one before sends on, and nothing else, say so: outgoing={proposed}."
        )
    return found


def _by_numbers(
    arrays: _Arrays, kernels: list[int], readers: dict[int, list[int]]
) -> list[tuple[int, list[int]]] | None:
    """Return the chain of layers whose names differ only in a number; None if the order is not clear.

    Sizes must fit in one direction only, up or down the numbers: Linen numbers the layers of one nested
    expression from the last to the first.
    """
    names = ["/".join(arrays.names[kernel]) for kernel in kernels]
    numbers = [tuple(map(int, re.findall(r"\d+", name))) for name in names]
    if len({re.sub(r"\d+", "#", name) for name in names}) != 1 or len(set(numbers)) != len(kernels):
        return None
    up = [kernel for _, kernel in sorted(zip(numbers, kernels, strict=True))]
    fitting = [
        order
        for order in (up, up[::-1])
        if len(up) > 1 and all(reader in readers[kernel] for kernel, reader in itertools.pairwise(order))
    ]
    if len(fitting) != 1 or any(_may_flatten(arrays, fitting[0][-1], other) for other in kernels):
        return None
    return [(kernel, [reader]) for kernel, reader in itertools.pairwise(fitting[0])]


def _may_flatten(arrays: _Arrays, kernel: int, reader: int) -> bool:
    """Return whether a kernel may read the flattened images of a convolution, in any order of their axes."""
    read, other = arrays.of_matrix(kernel), arrays.of_matrix(reader)
    if len(read.inputs) < 2 or len(read.outputs) != 1 or len(other.inputs) != 1 or other.lookup:
        return False
    units = np.shape(arrays.leaves[kernel])[read.outputs[0]]
    inputs = np.shape(arrays.leaves[reader])[other.inputs[0]]
    return bool(units) and inputs > units and inputs % units == 0


def _fits(arrays: _Arrays, kernel: int, reader: int) -> bool:
    """Return whether a kernel has as many inputs as another has outputs."""
    outputs, shape = arrays.of_matrix(kernel).outputs, np.shape(arrays.leaves[kernel])
    if len(outputs) != 1 or arrays.of_matrix(reader).lookup:
        return False
    side = _input_axis(arrays, reader, shape[outputs[0]])
    return side is not None and side.repeats == 1


def _unclear(arrays: _Arrays, kernel: int, others: list[int], read: bool = True) -> str:
    """Return what is said of a kernel whose units several others may read, or the reverse."""
    listed = ", ".join(map(arrays.called, others))
    if read:
        fit = "all fit" if len(others) > 1 else "may, by its size alone"
        doubt = f"which layer reads the units of {arrays.called(kernel)}, because {listed} {fit}"
        example = _example(arrays, kernel, others[0])
    else:
        doubt = f"whose units {arrays.called(kernel)} reads, because {listed} may all come before it"
        example = _example(arrays, others[0], kernel)
    return (
        f"reset_units: it is not clear {doubt}: say of each layer which one reads it, such as {example}; "
        "leave out layers whose outputs are added to others, or multiply them."
    )


def _example(arrays: _Arrays, *kernels: int) -> str:
    """Return how ``outgoing`` says that the second layer reads the first."""
    modules = [_module(arrays, kernel) for kernel in kernels[:2]]
    layer, reader = modules if len(modules) == 2 else ("hidden", "head")
    return f'outgoing={{"{layer}": "{reader}"}} where "{reader}" reads "{layer}"'


def _module(arrays: _Arrays, kernel: int) -> str:
    return _axes.module_of(arrays.paths[kernel])


def _key(entry: Any) -> str:
    return str(_axes.entry_key(entry))

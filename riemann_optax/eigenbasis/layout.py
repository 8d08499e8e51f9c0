"""How an array is read as a matrix: which axes are inputs and outputs, and which sides get a basis."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes, Reading

Side = Literal["both", "smaller", "input", "output", "none", "vector"]
SIDES: tuple[str, ...] = get_args(Side)

# Operations for a side of size n: in an update, times n per weight; in a refresh, times n**3.
TURNING = 6  # three products: its correlations, into the basis, and back
REFRESHING = 14  # the products and solves of Cholesky QR
# A vector of more weights is a flattened model, and one of fewer a function to try things on.
_FLATTENED = 1000
ChooseSide = Callable[[str, Any], Side]


class Layout(NamedTuple):
    """How one leaf is read.

    Attributes:
      permutation: brings its axes into the order stack, inputs, outputs.
      num_inputs: how many axes are inputs.
      stack: sizes of the stacking axes.
      rows: (number of blocks, size of a block) of the input side.
      columns: the same of the output side.
      left: whether the rows are turned.
      right: whether the columns are turned.
    """

    permutation: tuple[int, ...]
    num_inputs: int
    stack: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]
    left: bool
    right: bool

    def matrices(self, x: jax.Array) -> jax.Array:
        """Return the array as ``[*stack, row blocks, rows, column blocks, columns]``."""
        return jnp.transpose(x, self.permutation).reshape(*self.stack, *self.rows, *self.columns)

    def array(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Return the array of this shape that :meth:`matrices` was made from."""
        permuted = matrices.reshape([shape[axis] for axis in self.permutation])
        return jnp.transpose(permuted, [self.permutation.index(axis) for axis in range(len(shape))])

    def axes(
        self, side: Literal["left", "right"]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return the axes of the stack, those of a side, and those of the other side."""
        first = len(self.stack)
        stack, inputs = self.permutation[:first], self.permutation[first : first + self.num_inputs]
        outputs = self.permutation[first + self.num_inputs :]
        return (stack, inputs, outputs) if side == "left" else (stack, outputs, inputs)

    def square(self, side: Literal["left", "right"]) -> tuple[int, ...]:
        """Return the shape of the bases of a side, ``[*stack, blocks, size, size]``."""
        blocks, size = self.rows if side == "left" else self.columns
        return (*self.stack, blocks, size, size)


class LayoutRules(NamedTuple):
    """How all leaves are read: the arguments of :func:`in_eigenbasis` for this.

    Attributes:
      sides: one choice for all leaves, or a function of name and leaf.
      axes: how arrays are read; see :func:`riemann_optax._axes.read`.
      max_size: the largest side with one basis, or None.
      block_size: the size of blocks of a side that is too large, None to leave it alone.
      max_state: the most values of factor and basis that a side may keep per weight of its matrix.
      max_operations: the most operations that a side may cost per weight and update.
      update_every: steps between two refreshes.
      whitened: whether gradients are whitened by it for the correlations of the other side.
    """

    sides: Side | ChooseSide
    axes: Axes
    max_size: int | None = None
    block_size: int | None = None
    max_state: float = 16.0
    max_operations: float = 1e5
    update_every: int = 10
    whitened: bool = False

    def turning(self, block: int, other: int) -> float:
        """Return the operations per weight and update of a side in blocks of this size."""
        return TURNING * block + self.whitened * (2 * block + 2 * block**2 / other)

    def layouts(self, params: Any) -> list[Layout | None]:
        """Return the layout of each leaf, None where nothing is turned."""
        rows = zip(
            _axes.leaf_paths(params), jax.tree.leaves(params), _axes.read(params, self.axes), strict=True
        )
        return [self._layout(*row) for row in rows]

    def layouts_with_warning(self, params: Any) -> list[Layout | None]:
        """Return the layouts; warn of turned arrays with doubtful axes, and of one vector of all weights."""
        with _axes.listen() as readings:
            layouts = self.layouts(params)
        # By what is said of them, for blocks repeat themselves.
        doubtful: dict[str, list[tuple[Any, ...]]] = {}
        paths, leaves = _axes.leaf_paths(params), jax.tree.leaves(params)
        for path, leaf, layout in zip(paths, leaves, layouts, strict=True):
            reading = readings[path]
            if layout is not None and not reading.certain:
                said = _axes.in_words(reading.axes, leaf.shape)
                doubtful.setdefault(f"{leaf.shape} as {said}", []).append(path)
        if doubtful:
            shown = "; ".join(
                f"{_axes.called(first)}{f' and {len(others)} more, each' if others else ''} {said}"
                for said, (first, *others) in doubtful.items()
            )
            if () in paths:  # no module could be named
                remedy = (
                    f"give axes=ro.{readings[()].axes!r}; if not, say what it is: "
                    'axes="scanned" for stacked layers, axes="convolution" for a convolution.'
                )
            else:
                remedy = self._remedy(
                    {path: readings[path] for of_one in doubtful.values() for path in of_one}
                )
            _check.warn(
                f"in_eigenbasis reads {shown}, by default: neither name nor shape tells what these axes are. "
                f"If that is right, {remedy}"
            )
        if (
            layouts == [None]
            and leaves[0] is params
            and params.ndim == 1
            and params.size > _FLATTENED
            and self.sides != "vector"
        ):
            _check.warn(
                "in_eigenbasis turns nothing: all weights are one vector. Leave out optax.flatten, or give "
                'sides="vector".'
            )
        return layouts

    def _remedy(self, doubtful: Mapping[tuple[Any, ...], Reading]) -> str:
        """Return how a user confirms, or puts right, how arrays were read."""
        if callable(self.axes):
            said = "; ".join(f"ro.{one.axes!r} of {_axes.called(path)}" for path, one in doubtful.items())
            return f"let the function of axes= return it, {said}; if not, what it is."
        known: Any = {"*": self.axes} if isinstance(self.axes, str) and self.axes != "flax" else {}
        named = _written(_naming(doubtful, self.axes if isinstance(self.axes, Mapping) else known))
        preset = next(iter(doubtful.values())).preset
        prefix = "equinox_" if preset == "equinox" else ""
        return (
            f"name the module with its preset, such as axes={named}; if not, "
            f'say what it is: "{prefix}scanned" in the place of "{preset}" for stacked layers, '
            f'"{prefix}convolution" for a convolution, or ro.MatrixAxes(inputs, outputs), where layers are '
            "stacked along another axis than the first."
        )

    def sides_of(self, path: tuple[Any, ...], leaf: Any, axes: MatrixAxes | None) -> list["ReadSide"]:
        """Return how the input and output sides of a leaf are treated; an empty list if it has none."""
        shape = leaf.shape
        chosen = self.sides(jax.tree_util.keystr(path), leaf) if callable(self.sides) else self.sides
        _check.check_choice(f"sides of {_tree.leaf_name(path)}", chosen, SIDES)
        if not shape or 0 in shape or axes is None or (not axes.outputs and chosen != "vector"):
            return []
        rows, columns = (math.prod(shape[axis] for axis in side) for side in (axes.inputs, axes.outputs))
        wanted = {
            "left": chosen in ("both", "input", "vector") or (chosen == "smaller" and rows <= columns),
            "right": chosen in ("both", "output", "vector") or (chosen == "smaller" and rows > columns),
        }
        # A vector is turned only on request, so no limit per weight applies.
        bounded = bool(axes.outputs)
        return [
            self._side(rows, columns, wanted["left"], chosen, bounded),
            self._side(columns, rows, wanted["right"], chosen, bounded),
        ]

    def _layout(self, path: tuple[Any, ...], leaf: Any, axes: MatrixAxes | None) -> Layout | None:
        found = self.sides_of(path, leaf, axes)
        if axes is None or not any(side.blocks for side in found):
            return None
        if jnp.issubdtype(_tree.dtype_of(leaf), jnp.complexfloating):
            raise TypeError(
                f"in_eigenbasis: eigenbases need real matrices, and {_tree.leaf_name(path)} is complex: put "
                "optax.contrib.split_real_and_imaginary around the optimiser, or give this leaf one of its "
                "own by optax.partition."
            )
        left, right = found
        chosen = (*axes.inputs, *axes.outputs)
        stacking = tuple(axis for axis in range(len(leaf.shape)) if axis not in chosen)
        return Layout(
            permutation=(*stacking, *axes.inputs, *axes.outputs),
            num_inputs=len(axes.inputs),
            stack=tuple(leaf.shape[axis] for axis in stacking),
            rows=left.blocks or (1, left.size),
            columns=right.blocks or (1, right.size),
            left=left.blocks is not None,
            right=right.blocks is not None,
        )

    def _side(self, size: int, other: int, wanted: bool, chosen: str, bounded: bool) -> "ReadSide":
        if not wanted:
            return ReadSide(size, None, f'sides is "{chosen}"')
        if size == 1:
            return ReadSide(size, None, "of size 1")
        reason = self._too_large(size, other, bounded)
        if not reason:
            return ReadSide(size, (1, size))
        if self.block_size is not None:
            for blocks in range(-(-size // self.block_size), 2 * size // self.block_size + 1):
                if size % blocks == 0 and not self._too_large(size // blocks, other, bounded):
                    return ReadSide(size, (blocks, size // blocks), reason)
        return ReadSide(size, None, reason)

    def _too_large(self, block: int, other: int, bounded: bool) -> str:
        """Return why blocks of this size are too large; empty if they are not."""
        if self.max_size is not None and block > self.max_size:
            return f"longer than max_size, {self.max_size}"
        state = 2 * block / other
        if bounded and state > self.max_state:
            return f"{state:.3g} values of state per weight, and max_state is {self.max_state:g}"
        operations = self.turning(block, other) + REFRESHING * block**2 / (other * self.update_every)
        if bounded and operations > self.max_operations:
            return f"{operations:.3g} operations per weight, and max_operations is {self.max_operations:g}"
        return ""


class ReadSide(NamedTuple):
    """One side of a leaf.

    Attributes:
      size: its length.
      blocks: number and size of its bases, None where it is left alone.
      reason: why it is left alone, or turned in blocks.
    """

    size: int
    blocks: tuple[int, int] | None
    reason: str = ""


def _naming(doubtful: Mapping[tuple[Any, ...], Reading], known: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a dictionary of axes and, in it, how the modules were read that arrays in doubt are in.

    Modules that differ in their numbers alone share a name with ``*`` in the place of these.
    """
    alike: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for path, reading in doubtful.items():
        keys = tuple(map(_axes.entry_key, path))
        module = keys[:-1] or keys
        pattern = tuple(re.sub(r"\d+", "*", str(key)) for key in module)
        alike.setdefault((reading.preset, *pattern), []).append(module)
    tree = _copied(known)
    for (preset, *patterns), modules in alike.items():
        *outer, last = (
            of_all[0] if len(set(of_all)) == 1 else pattern
            for pattern, of_all in zip(patterns, zip(*modules, strict=True), strict=True)
        )
        node: Any = tree
        for name in outer:
            node = node.setdefault(name, {}) if isinstance(node, dict) else node
        if isinstance(node, dict):  # or a module around it is named already
            node[last] = preset
    return tree


def _copied(node: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: _copied(below) if isinstance(below, Mapping) else below for name, below in node.items()}


def _written(node: Any) -> str:
    """Return a dictionary of axes as code, with double quotes."""
    if isinstance(node, dict):
        return f"{{{', '.join(f'{_written(name)}: {_written(below)}' for name, below in node.items())}}}"
    if isinstance(node, MatrixAxes):
        return f"ro.{node!r}"
    return json.dumps(node) if isinstance(node, str) else getattr(node, "__qualname__", repr(node))

"""How an array is read as a matrix: which axes are its inputs and outputs, and which sides get a basis."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes, MatrixAxes

Side = Literal["both", "smaller", "input", "output", "none", "vector"]
SIDES: tuple[str, ...] = get_args(Side)
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
        """Return what :meth:`matrices` was made of, an array of this shape."""
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
    """How all leaves are read: the arguments of :func:`in_eigenbasis` that say so.

    Attributes:
      sides: one choice for all leaves, or a function of name and leaf.
      axes: how arrays are read; see :func:`riemann_optax._axes.read`.
      max_size: the largest side with one basis.
      block_size: the size of blocks of a larger side, None to leave it alone.
    """

    sides: Side | ChooseSide
    axes: Axes
    max_size: int
    block_size: int | None

    def layouts(self, params: Any) -> list[Layout | None]:
        """Return the layout of each leaf, None where nothing is turned."""
        rows = zip(
            _axes.leaf_paths(params), jax.tree.leaves(params), _axes.read(params, self.axes), strict=True
        )
        return [self._layout(*row) for row in rows]

    def _layout(self, path: tuple[Any, ...], leaf: Any, axes: MatrixAxes | None) -> Layout | None:
        shape = leaf.shape
        side = self.sides(jax.tree_util.keystr(path), leaf) if callable(self.sides) else self.sides
        _check.check_choice(f"sides of {_tree.leaf_name(path)}", side, SIDES)
        if side == "none" or not shape or axes is None or (not axes.outputs and side != "vector"):
            return None
        chosen = (*axes.inputs, *axes.outputs)
        stacking = tuple(axis for axis in range(len(shape)) if axis not in chosen)
        fan_in = math.prod(shape[axis] for axis in axes.inputs)
        fan_out = math.prod(shape[axis] for axis in axes.outputs)
        left = side in ("both", "input", "vector") or (side == "smaller" and fan_in <= fan_out)
        right = side in ("both", "output", "vector") or (side == "smaller" and fan_in > fan_out)
        rows, columns = self._blocks(fan_in), self._blocks(fan_out)
        left, right = left and rows is not None, right and columns is not None
        if 0 in shape or not (left or right):  # without entries there is nothing to turn
            return None
        return Layout(
            permutation=(*stacking, *axes.inputs, *axes.outputs),
            num_inputs=len(axes.inputs),
            stack=tuple(shape[axis] for axis in stacking),
            rows=rows if left and rows else (1, fan_in),
            columns=columns if right and columns else (1, fan_out),
            left=left,
            right=right,
        )

    def _blocks(self, size: int) -> tuple[int, int] | None:
        """Return number and size of the blocks of a side, None where it is left alone."""
        if size == 1:
            return None
        if size <= self.max_size:
            return 1, size
        if self.block_size is None:
            return None
        for blocks in range(-(-size // self.block_size), 2 * size // self.block_size + 1):
            if size % blocks == 0:
                return blocks, size // blocks
        return None

"""Which sides are turned, which are not and why, and what it costs: the lines that describe prints."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from riemann_optax import _axes, _tree
from riemann_optax.eigenbasis.layout import REFRESHING, LayoutRules, ReadSide

# Reasons of sides that the user has not asked for: nothing is said of these.
_CHOSEN = ('sides is "input"', 'sides is "output"')


def account(params: Any, rules: LayoutRules, state_dtype: Any, period: int) -> list[str]:
    """Return one line per leaf with sides: which are turned, why others are not, and the cost.

    ``period`` is the number of steps between two refreshes of a side; a budget can make it longer.
    """
    lines = []
    rows = zip(_axes.leaf_paths(params), jax.tree.leaves(params), _axes.read(params, rules.axes), strict=True)
    for path, leaf, axes in rows:
        sides = rules.sides_of(path, leaf, axes)
        if not sides:
            continue
        both = math.prod(side.size for side in sides)
        stack = math.prod(leaf.shape) // both
        itemsize = jnp.dtype(state_dtype or _tree.working_dtype(leaf)).itemsize
        parts = [
            f"{name} {_side(side, stack, both, itemsize, rules, period)}"
            for name, side in zip(_names(axes, sides), sides, strict=True)
            if side.size > 1 and side.reason not in _CHOSEN
        ]
        lines.append(f"{_axes.called(path)} {leaf.shape}: {'; '.join(parts) or 'no side to turn'}")
    return lines


def _names(axes: Any, sides: list[ReadSide]) -> list[str]:
    """Return what the two sides are called: by its number, an axis that is turned by itself."""
    alone = any(side.reason in _CHOSEN for side in sides) and len(axes.inputs) + len(axes.outputs) > 2
    return [
        f"axis {own[0]}:" if alone and len(own) == 1 else name
        for name, own in (("inputs", axes.inputs), ("outputs", axes.outputs))
    ]


def _side(side: ReadSide, stack: int, both: int, itemsize: int, rules: LayoutRules, period: int) -> str:
    if side.blocks is None:
        return f"{side.size} left alone ({side.reason})"
    blocks, size = side.blocks
    state = 2 * stack * blocks * size**2 * itemsize
    turning = rules.turning(size, both // side.size) * both * stack
    refreshing = REFRESHING * stack * blocks * size**3
    how = f"turned in {blocks} blocks of {size} ({side.reason})" if blocks > 1 else "turned"
    return (
        f"{side.size} {how}: {short(state)}B of state, {short(turning)}FLOP an update, "
        f"{short(refreshing)}FLOP every {period}"
    )


def short(number: float) -> str:
    """Return a number of bytes or operations in front of its unit, such as ``1.02 k``."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {letter}"
    return f"{number:g} "

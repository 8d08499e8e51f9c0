"""Whether the entries of a weight stand in a value where they stood: what moves them, and what does not."""

import math
from typing import Any

from riemann_optax.supply.inlining import PASSING_EACH
from riemann_optax.supply.marks import OF_ONE_VALUE

# What leaves a value as it is, but for its rounding: a name, where it is kept, what the compiler is told.
STAYING = PASSING_EACH | {
    *("copy", "copy_p", "layout_constraint", "name", "pvary", "reduce_precision", "reshard"),
    "sharding_constraint",
}
# What takes entries of one value, in any order.
TAKING = STAYING | {
    *("reshape", "squeeze", "slice", "dynamic_slice", "gather", "split", "rev", "transpose"),
}
# What puts other entries into a value, its first operand.
WRITING = {*("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "dynamic_update_slice")}
# What has entries of what it is given, at other places or beside others.
_HOLDING = OF_ONE_VALUE | TAKING | WRITING | {*("concatenate", "stack", "pad", "sort")}


def holds_entries(kind: str) -> bool:
    """Return whether the results of this primitive have entries of what it is given, each alone."""
    return kind in _HOLDING


def place_kept(equation: Any, operand: int, result: int, repeated: int) -> int | None:
    """Return along how many first axes a result repeats the entries of a weight, in their order.

    Args:
      equation: of the program.
      operand: the number of the value that holds the entries in their order, among what the equation is
        given.
      result: likewise.
      repeated: along how many first axes that value repeats them, as ``vmap`` makes one for each example.

    Returns:
      The number; None where they stand in another order, or are not all there.
    """
    before = tuple(equation.invars[operand].aval.shape)
    after = tuple(equation.outvars[result].aval.shape)
    kind, parameters = equation.primitive.name, equation.params
    if kind == "broadcast_in_dim":
        return _broadcast(before, after, tuple(parameters["broadcast_dimensions"]), repeated)
    if kind in OF_ONE_VALUE:
        return _stretched(before, after, repeated)
    if kind == "squeeze" or (kind == "reshape" and parameters["dimensions"] is None):
        return _reshaped(before, after, repeated)
    if kind == "transpose":
        return repeated if _in_order(parameters["permutation"], before, repeated) else None
    if kind in ("slice", "dynamic_slice", *WRITING):
        # Of as many entries as there are, none is left out.
        return repeated if operand == 0 and after[repeated:] == before[repeated:] else None
    if kind == "rev":
        moved = [axis for axis in parameters["dimensions"] if axis >= repeated and before[axis] != 1]
        return None if moved else repeated
    if kind == "concatenate":
        return repeated if before == after or parameters["dimension"] < repeated else None
    if kind == "pad":
        return repeated if set(map(tuple, parameters["padding_config"])) == {(0, 0, 0)} else None
    return repeated if kind in STAYING else None


def _stretched(before: tuple[int, ...], after: tuple[int, ...], repeated: int) -> int | None:
    """Return it for what only repeats a value along axes of length one."""
    if len(before) != len(after):
        return None
    different = [axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    first = different[-1] + 1 if different else 0
    return max(first, repeated) if math.prod(before[repeated:first]) == 1 else None


def _broadcast(
    before: tuple[int, ...], after: tuple[int, ...], axes: tuple[int, ...], repeated: int
) -> int | None:
    own = len(before) - repeated
    if repeated and axes[repeated:] != tuple(range(len(after) - own, len(after))):
        return None
    shape = [1] * len(after)
    for axis, size in zip(axes, before, strict=True):
        shape[axis] = size
    return _stretched(tuple(shape), after, len(after) - own if repeated else 0)


def _reshaped(before: tuple[int, ...], after: tuple[int, ...], repeated: int) -> int | None:
    size = math.prod(before[repeated:])
    if not repeated:
        return 0
    places = (axis for axis in range(len(after) + 1) if math.prod(after[axis:]) == size)
    return next(places, None)


def _in_order(permutation: Any, shape: tuple[int, ...], repeated: int) -> bool:
    """Return whether a transposition leaves the entries behind the first axes in their order."""
    if set(permutation[:repeated]) != set(range(repeated)):
        return False
    own = [axis for axis in permutation[repeated:] if shape[axis] != 1]
    return own == sorted(own)

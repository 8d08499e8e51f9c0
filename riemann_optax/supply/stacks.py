"""Whether an equation of a program leaves a stack of layers whole, and in its order."""

from typing import Any

from riemann_optax.supply.marks import OF_ONE_VALUE
from riemann_optax.supply.places import STAYING, WRITING

# What leaves the order of the first axis, if that is as long as before.
_IN_ORDER = OF_ONE_VALUE | STAYING | {"reshape", "slice", "dynamic_slice"}


def keeps_stack(equation: Any, operand: int, result: int) -> bool:
    """Return whether the first axis of a result is that of an operand, whole and in its order.

    Of what is not known here it is not: a branch or a loop may bring layers into another order.

    Args:
      equation: of the program.
      operand: its number among what the equation is given.
      result: likewise.
    """
    given, made = equation.invars[operand].aval.shape, equation.outvars[result].aval.shape
    if given[:1] != made[:1] or not given:
        return False
    kind, parameters = equation.primitive.name, equation.params
    if kind == "transpose":
        return bool(parameters["permutation"][0] == 0)
    if kind == "broadcast_in_dim":
        return bool(parameters["broadcast_dimensions"][0] == 0)
    if kind in ("rev", "squeeze"):
        return 0 not in parameters["dimensions"]
    if kind in ("concatenate", "sort"):
        return bool(parameters["dimension"] != 0)
    if kind == "pad":
        return tuple(parameters["padding_config"][0]) == (0, 0, 0)
    if kind == "gather":
        numbers = parameters["dimension_numbers"]
        taken = operand == 0 and parameters["slice_sizes"][0] == given[0] and 0 in numbers.offset_dims
        return taken or (operand == 0 and 0 in numbers.operand_batching_dims)
    if kind == "dot_general":
        _, batches = parameters["dimension_numbers"]
        return bool(batches[operand][:1] == (0,))
    if kind == "stack":
        return bool(parameters["axis"] != 0)
    if "axes" in parameters:  # of a sum
        return 0 not in parameters["axes"]
    if "axis" in parameters:  # of a cumulative sum, a split
        return bool(parameters["axis"] != 0)
    return kind in _IN_ORDER or (kind in WRITING and operand == 0)

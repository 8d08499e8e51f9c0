"""What a layer's neurons send on: the nonlinearity that follows a value in a jaxpr."""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax.supply.inlining import before_copies, is_variable
from riemann_optax.supply.marks import (
    BORDER,
    CALLS,
    OF_ONE_VALUE,
    OUTPUTS,
    SEEN,
    inner,
    mark_name,
    number_stacked,
    opened,
)
from riemann_optax.supply.places import STAYING

_LINEAR = STAYING | {*("add", "sub", "mul", "div", "neg", "convert_element_type", "broadcast_in_dim")}
# What a loss has of errors, rather than a neuron of what it receives.
_MEASURING = {*("abs", "integer_pow", "log", "log1p", "pow", "sqrt", "square")}
_PLAIN = OF_ONE_VALUE | STAYING
_UNCHANGED = STAYING | {"convert_element_type"}
# What may stand between a layer and its nonlinearity: pooling, a residual sum, a mask, a flattening, others
# beside it, another order of axes, and what leaves a value as it is.
_POOLING = re.compile("^reduce_window(_(max|min|sum))?$")
_WITH_OTHERS = {"add", "sub", "add_any", "mul", "div", "select_n"}


class Units(NamedTuple):
    """The units of a layer in a variable that carries them on.

    Attributes:
      shape: that of their value.
      back: what makes it of the variable's, one after the other.
    """

    shape: tuple[int, ...]
    back: tuple[Callable[[Any], Any], ...] = ()

    def taken(self, value: Any) -> Any:
        """Return the units' value, of the variable's."""
        for step in self.back:
            value = step(value)
        return value

    def behind(self, step: Callable[[Any], Any]) -> "Units":
        """Return the same units in another variable, of which a step makes this one."""
        return Units(self.shape, (step, *self.back))


class Piece(NamedTuple):
    """A part of what a layer's neurons send on; all parts together stand side by side along the last axis.

    Attributes:
      variable: of the jaxpr, which holds it.
      units: how the value of the units is taken from the variable's.
      start, stop: which of the last axis of the units.
    """

    variable: Any
    units: Units
    start: int = 0
    stop: int | None = None


class Reading:
    """A jaxpr, read for what becomes of its values.

    Args:
      jaxpr: the program.
      copies: by their results, the equations that only marks read.
      results: those of its results that are wanted. What leads to none, as what a loss returns to be logged,
        says nothing of what is sent on.
      reaching: those of its variables from which is computed what a layer is given.
      going_on: these, and those on the way to the model's outputs.
    """

    def __init__(
        self, jaxpr: Any, copies: dict[Any, Any], results: set[Any], reaching: set[Any], going_on: set[Any]
    ) -> None:
        every = [one for one in jaxpr.taken_apart if not _is_observation(one, copies)]
        self.results, self.going_on = results, going_on
        self.equations = _leading_to(results, every)
        # Arrays of one number, such as zeros, and those of one number for each unit, such as learned slopes.
        self.numbers, self.vectors = _numbers_and_vectors(jaxpr, every)
        self.given_on = _marked(jaxpr, copies, OUTPUTS, BORDER)
        seen = _marked(jaxpr, copies, SEEN)
        # The result of one module may be on its way to another, past a nonlinearity between the two.
        self.between = (seen & reaching) - self.given_on
        self.given_on |= seen - self.between

    def sent_on(self, variable: Any) -> list[Piece]:
        """Return what is sent on: the variable after the nonlinearity that follows; itself where none does.

        The nonlinearity may follow at once, or behind what carries the units on. What is given to the next
        layer, or is the model's output, is not carried on. Where the units are split, each part may have a
        nonlinearity of its own, as the gates of a recurrent cell have.
        """
        whole = Piece(variable, Units(variable.aval.shape))
        for closed in (self.given_on | self.between, self.given_on) if self.between else (self.given_on,):
            carried = self._carried(variable, closed)
            found = self._after(carried, closed)
            if found is not None:
                return [found]
            parts = self._of_parts(whole, carried, closed)
            if parts:
                return parts
        return [whole]

    def converted(self, variable: Any) -> Iterator[Any]:
        """Yield a variable, and what only conversions and reshapes make of it that everything else reads."""
        one: Any = variable
        while one is not None:
            yield one
            readers = [equation for equation in self.equations if one in equation.read]
            alone = len(readers) == 1 and one not in self.results
            one = readers[0].outvars[0] if alone and _converts(readers[0]) else None

    def _after(self, carried: dict[Any, Units], closed: set[Any]) -> Piece | None:
        first = next(iter(carried))
        for one, units in carried.items():
            end = self._after_nonlinearity(one, closed)
            if end is not one and self._all_pass(first, one):
                return Piece(end, units)
        return None

    def _all_pass(self, variable: Any, gate: Any) -> bool:
        """Return whether all that is computed from a variable is computed from another, the gate."""
        derived = {variable} - {gate}
        for equation in self.equations:
            if not derived.isdisjoint(equation.read):
                derived.update(one for one in equation.outvars if one is not gate)
        return derived.isdisjoint(self.results)

    def _of_parts(self, whole: Piece, carried: dict[Any, Units], closed: set[Any]) -> list[Piece] | None:
        for one, units in carried.items():
            parts = self._parts(one) if units == whole.units else None
            if parts is None or not self._all_pass(whole.variable, one):
                continue
            found, bent, place = [], False, 0
            for start, part in parts:
                after = self._after(self._carried(part, closed), closed)
                stop = start + part.aval.shape[-1]
                bent = bent or after is not None
                raw = whole._replace(start=start, stop=stop)
                found += [whole._replace(start=place, stop=start)] if place < start else []
                found.append(raw if after is None or after.units.shape != part.aval.shape else after)
                place = stop
            found += [whole._replace(start=place)] if place < whole.units.shape[-1] else []
            return found if bent else None
        return None

    def _parts(self, variable: Any) -> list[tuple[int, Any]] | None:
        """Return where parts of the last axis begin, and the parts; None where all of it is read."""
        parts: list[tuple[int, Any]] = []
        for equation in self.equations:
            if all(one is not variable for one in equation.invars):
                continue
            found = _split(equation)
            if found is None:
                return None
            parts += found
        parts.sort(key=lambda pair: pair[0])
        ends = [start + part.aval.shape[-1] for start, part in parts]
        apart = all(end <= start for end, (start, _) in zip(ends, parts[1:], strict=False))
        return parts if parts and apart and variable not in self.results else None

    def _carried(self, variable: Any, closed: set[Any]) -> dict[Any, Units]:
        """Return the variables with the units of this one."""
        carried, derived = {variable: Units(variable.aval.shape)}, {variable}
        for equation in self.equations:
            read = equation.read
            if derived.isdisjoint(read):
                continue
            mine = [one for one in read if one in carried and one not in closed]
            if len(mine) == 1 and len(equation.outvars) == 1:
                units = _carried_on(equation, mine[0], carried[mine[0]], derived)
                if units is not None:
                    carried[equation.outvars[0]] = units
            derived.update(equation.outvars)
        return carried

    def _after_nonlinearity(self, variable: Any, closed: set[Any]) -> Any:
        """Return the variable after the functions of this one alone that follow, element by element.

        Of all that is computed from this one alone, it is the last through which everything else gets it: a
        gate that multiplies by ``z`` and by ``1 - z`` sends on ``z``. A scaling alone, such as that of an
        attention's queries, is no nonlinearity; nor is a measure of errors that leads to the loss alone.
        """
        through, bent = {variable: {variable}}, {variable: False}
        of_loss: set[Any] = set()  # what measures errors, and what is only scaled behind a nonlinearity
        measured: set[Any] = set()
        # An array without other axes than the units has none that tell a vector of weights from it.
        given = self.numbers | self.vectors if variable.aval.ndim > 1 else self.numbers
        used = set(self.results)
        for equation in self.equations:
            read = equation.read
            mine = {one for one in read if one in through}
            if not mine:
                continue
            if mine.isdisjoint(closed) and _is_elementwise(equation, variable, through.keys() | given):
                (result,) = equation.outvars
                through[result] = set.intersection(*(through[one] for one in mine)) | {result}
                linear = _is_linear(equation) and len(mine) == 1
                bent[result] = any(bent[one] for one in mine) or not linear
                if _measures(equation) or not measured.isdisjoint(mine):
                    measured.add(result)
                if result not in self.going_on and (linear or result in measured):
                    of_loss.add(result)
            else:
                used.update(read)
        ends = [paths for one, paths in through.items() if one in used or one in closed]
        common = set.intersection(*ends) if ends else set()
        return next((one for one in reversed(through) if one in common - of_loss and bent[one]), variable)


def _leading_to(results: set[Any], equations: list[Any]) -> list[Any]:
    """Return the equations whose results lead to some of these."""
    wanted, found = set(results), []
    for equation in reversed(equations):
        if not wanted.isdisjoint(equation.outvars):
            wanted.update(equation.read)
            found.append(equation)
    return found[::-1]


def _numbers_and_vectors(jaxpr: Any, equations: list[Any]) -> tuple[set[Any], set[Any]]:
    """Return the variables that hold one number, and those that hold one for each entry of the last axis."""
    numbers: set[Any] = set()
    vectors = {one for one in [*jaxpr.invars, *jaxpr.constvars] if len(one.aval.shape) == 1}
    for equation in equations:
        read = set(equation.read)
        if not read <= numbers | vectors or len(equation.outvars) != 1:
            continue
        (result,) = equation.outvars
        if read <= numbers:
            numbers.update({result} if _plain(equation) else ())
        elif _keeps_last_axis(equation, next(iter(read - numbers)), result):
            vectors.add(result)
    return numbers, vectors


def _keeps_last_axis(equation: Any, vector: Any, result: Any) -> bool:
    """Return whether a result is a vector as this one is, or one for each entry of further axes."""
    shape, kind = result.aval.shape, equation.primitive.name
    if not shape or shape[-1] != vector.aval.shape[-1]:
        return False
    if kind == "reshape":
        return set(shape[:-1]) <= {1}
    if kind == "broadcast_in_dim":
        return bool(equation.params["broadcast_dimensions"][-1] == len(shape) - 1)
    return _plain(equation)


def _marked(jaxpr: Any, copies: dict[Any, Any], *names: str) -> set[Any]:
    """Return the variables that have one of these marks."""
    marked = [
        before_copies(equation.invars[0], copies)
        for equation in jaxpr.eqns
        if (name := mark_name(equation)) is not None and number_stacked(name)[0] in names
    ]
    return set(filter(is_variable, marked))  # a model may return a number as well


def _split(equation: Any) -> list[tuple[int, Any]] | None:
    """Return where the parts begin that an equation takes of the last axis, and the parts."""
    kind, parameters = equation.primitive.name, equation.params
    shape = equation.invars[0].aval.shape
    last = len(shape) - 1
    if kind == "split" and parameters["axis"] == last:
        starts = [sum(parameters["sizes"][:index]) for index in range(len(equation.outvars))]
        return list(zip(starts, equation.outvars, strict=True))
    if kind == "slice":
        whole = all(
            (start, limit) == (0, size)
            for start, limit, size in zip(
                parameters["start_indices"][:-1], parameters["limit_indices"][:-1], shape[:-1], strict=True
            )
        )
        if whole and set(parameters["strides"] or (1,)) == {1}:
            return [(parameters["start_indices"][-1], equation.outvars[0])]
    return None


def _carried_on(equation: Any, variable: Any, units: Units, derived: set[Any]) -> Units | None:
    """Return how a result of an equation has the units of a variable; None where it has not.

    What is added or multiplied, or stands beside them, may not itself depend on the layer.
    """
    others = [one for one in equation.invars if one is not variable]
    if any(is_variable(one) and one in derived for one in others):
        return None
    kind, parameters = equation.primitive.name, equation.params
    before, after = variable.aval.shape, equation.outvars[0].aval.shape
    if _POOLING.match(kind):
        return None if units.back else Units(after)
    if _reshapes(equation):
        return units.behind(functools.partial(jnp.reshape, shape=before))
    if kind == "transpose":
        inverse = tuple(parameters["permutation"].index(axis) for axis in range(len(before)))
        return units.behind(functools.partial(jnp.transpose, axes=inverse))
    if kind in ("concatenate", "stack") and len(others) == len(equation.invars) - 1:
        return units.behind(_own_part(equation, equation.invars.index(variable)))
    return units if after == before and (kind in _UNCHANGED or _joins_others(equation)) else None


def _reshapes(equation: Any) -> bool:
    """Return whether an equation only gives a value another shape, its entries in their order."""
    kind = equation.primitive.name
    if kind == "broadcast_in_dim":
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return bool(math.prod(before) == math.prod(after))
    return bool(kind == "squeeze" or (kind == "reshape" and equation.params["dimensions"] is None))


def _converts(equation: Any) -> bool:
    return equation.primitive.name in _UNCHANGED or _reshapes(equation)


def _own_part(equation: Any, place: int) -> Callable[[Any], Any]:
    """Return what takes the value of this place from one that an equation has joined of several."""
    if equation.primitive.name == "stack":
        axis = equation.params["axis"]
        return functools.partial(jax.lax.index_in_dim, index=place, axis=axis, keepdims=False)
    axis = equation.params["dimension"]
    sizes = [one.aval.shape[axis] for one in equation.invars[: place + 1]]
    start, stop = sum(sizes[:-1]), sum(sizes)
    return functools.partial(jax.lax.slice_in_dim, start_index=start, limit_index=stop, axis=axis)


def _joins_others(equation: Any) -> bool:
    """Return whether an equation adds to a value, scales or masks it; ``jnp.where`` does so in a call."""
    inside = inner(equation)
    if inside and CALLS.match(equation.primitive.name):
        return all(_joins_others(one) or _is_linear(one) for one in opened(inside[0]).eqns)
    return equation.primitive.name in _WITH_OTHERS


def _is_observation(equation: Any, copies: dict[Any, Any]) -> bool:
    """Return whether an equation belongs to a mark, and not to the model, which may have names of its own."""
    return mark_name(equation) is not None or any(one in copies for one in equation.outvars)


def _is_elementwise(equation: Any, variable: Any, own: Any) -> bool:
    """Return whether an equation makes of one value another, element by element, by it and numbers alone."""
    if len(equation.outvars) != 1 or equation.outvars[0].aval.shape != variable.aval.shape:
        return False
    for other in equation.invars:
        if other.aval.shape and (not is_variable(other) or other not in own):
            return False
    return _plain(equation)


def _is_linear(equation: Any) -> bool:
    inside = inner(equation)
    return all(map(_is_linear, opened(inside[0]).eqns)) if inside else equation.primitive.name in _LINEAR


def _measures(equation: Any) -> bool:
    inside = inner(equation)
    return any(map(_measures, opened(inside[0]).eqns)) if inside else equation.primitive.name in _MEASURING


def _plain(equation: Any) -> bool:
    inside = inner(equation)
    if inside and CALLS.match(equation.primitive.name):
        return all(map(_plain, opened(inside[0]).eqns))
    return equation.primitive.name in _PLAIN

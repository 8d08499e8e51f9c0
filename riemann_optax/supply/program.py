"""Reading values out of the middle of a computation: marks in a function, found again in its jaxpr."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from riemann_optax.supply.marks import (
    BORDER,
    CALLS,
    OUTPUTS,
    SEEN,
    has_marks,
    inner,
    mark_name,
    number_stacked,
    opened,
)
from riemann_optax.supply.nonlinearity import Piece, Reading


class Sources(NamedTuple):
    """From which arguments of a function a value is computed, by their numbers.

    Attributes:
      differentiated: those through which a gradient flows.
      read: these, and those behind ``stop_gradient``.
    """

    differentiated: frozenset[int] = frozenset()
    read: frozenset[int] = frozenset()


class Marked(NamedTuple):
    """What a mark has found.

    Attributes:
      value: the marked value.
      sent_on: the value after the functions of it alone that follow, element by element: a nonlinearity.
        Pooling, a residual sum, a mask, a flattening or a split may stand before it. It is the value itself
        where none follows.
      sources: of the weights that the mark was given.
      learns: whether a gradient flows from the result back through this call of the layer.
    """

    value: jax.Array
    sent_on: jax.Array
    sources: Sources
    learns: bool


def marked_values(function: Callable[..., Any], *arguments: Any) -> dict[str, Marked]:
    """Return what is found at the marks in a function, by their names.

    A value that is marked as ``OUTPUTS``, ``SEEN`` or ``BORDER`` is not returned: a nonlinearity ends there.
    A mark in the body of a ``scan`` gives the values of all rounds, along a new first axis.

    Raises:
      ValueError: for a mark in the body of another loop or of a branch.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    leaves = jax.tree.leaves(arguments)
    sources = [Sources(frozenset({index}), frozenset({index})) for index in range(len(leaves))]
    found: dict[str, Marked] = {}
    wanted = [True] * len(closed.jaxpr.outvars)
    _evaluate(closed.jaxpr, closed.consts, leaves, sources, wanted, found)
    return found


def _evaluate(
    jaxpr: Any,
    consts: Any,
    arguments: Any,
    sources: list[Sources],
    wanted: list[bool],
    found: dict[str, Any],
) -> tuple[list[Any], list[Sources]]:
    """Evaluate a jaxpr, and collect what is marked in it; return the results and their sources.

    ``wanted`` says which of the results are differentiated.
    """
    differentiated = _differentiated(jaxpr, wanted)
    values: dict[Any, Any] = {}
    origins: dict[Any, Sources] = dict(zip(jaxpr.invars, sources, strict=True))

    def read(variable: Any) -> Any:
        return values[variable] if _is_variable(variable) else variable.val

    def origin(variable: Any) -> Sources:
        return origins.get(variable, Sources()) if _is_variable(variable) else Sources()

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    marks: list[tuple[str, Any, Any, Any]] = []
    for equation in jaxpr.eqns:
        incoming = [read(variable) for variable in equation.invars]
        given = [origin(variable) for variable in equation.invars]
        name = mark_name(equation)
        if name is not None:
            if number_stacked(name)[0] not in (OUTPUTS, SEEN, BORDER):
                marks.append((name, *equation.invars))
            values.update(zip(equation.outvars, incoming[:1], strict=True))
            continue
        own = [variable in differentiated for variable in equation.outvars]
        results, made_of = _results(equation, incoming, given, own, found)
        values.update(zip(equation.outvars, results, strict=True))
        origins.update(zip(equation.outvars, made_of, strict=True))
    copies = _copies_for_marks(jaxpr)
    reading = Reading(jaxpr, copies)
    for name, variable, weights, sent in marks:
        sent_on = _sent_on(variable, copies, reading, read)
        layer = _before_copies(sent, copies)
        learns = not _is_variable(layer) or layer in differentiated
        found[name] = Marked(read(variable), sent_on, origin(_before_copies(weights, copies)), learns)
    return [read(variable) for variable in jaxpr.outvars], [origin(variable) for variable in jaxpr.outvars]


def _is_variable(one: Any) -> bool:
    return not isinstance(one, jax.extend.core.Literal)


def _before_copies(one: Any, copies: dict[Any, Any]) -> Any:
    while _is_variable(one) and one in copies:
        one = copies[one].invars[0]
    return one


def _differentiated(jaxpr: Any, wanted: list[bool]) -> set[Any]:
    """Return the variables through which a gradient flows from the wanted results."""
    found = {one for one, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted and _is_real(one)}
    for equation in reversed(jaxpr.eqns):
        stopped = equation.primitive.name == "stop_gradient" or mark_name(equation) is not None
        if not stopped and not found.isdisjoint(equation.outvars):
            found.update(filter(_is_real, equation.invars))
    return found


def _is_real(one: Any) -> bool:
    """Return whether this is a variable that has gradients: an index or a condition has none."""
    return _is_variable(one) and jnp.issubdtype(one.aval.dtype, jnp.inexact)


def _sent_on(variable: Any, copies: dict[Any, Any], reading: Reading, read: Callable[[Any], Any]) -> Any:
    """Return what is sent on of a marked variable, its axes in the order of the mark."""
    first, permutations = variable, []
    while _is_variable(first) and first in copies:
        permutations.append(copies[first].params.get("permutation"))
        first = copies[first].invars[0]
    if not _is_variable(first):
        return read(variable)
    value = _joined(reading.sent_on(first), read)
    for permutation in filter(None, reversed(permutations)):
        value = jnp.transpose(value, permutation)
    given = read(variable)
    # A window over the units themselves has mixed them.
    return value if value.shape[-1:] == given.shape[-1:] else given


def _joined(pieces: list[Piece], read: Callable[[Any], Any]) -> Any:
    """Return the pieces of what a layer sends on, side by side."""
    parts = [read(piece.variable).reshape(piece.shape) for piece in pieces]
    if len(parts) == 1:
        return parts[0]
    parts = [part[..., piece.start : piece.stop] for part, piece in zip(parts, pieces, strict=True)]
    return jnp.concatenate(parts, axis=-1)


def _results(
    equation: Any, incoming: list[Any], sources: list[Sources], wanted: list[bool], found: dict[str, Any]
) -> tuple[list[Any], list[Sources]]:
    kind, inside = equation.primitive.name, inner(equation)
    if not any(map(has_marks, inside)):
        bound = equation.primitive.get_bind_params(equation.params)
        functions, parameters = ((), bound) if isinstance(bound, dict) else bound  # the pair until JAX 0.9
        with equation.ctx.manager:
            results = equation.primitive.bind(*functions, *incoming, **parameters)
        results = list(results) if equation.primitive.multiple_results else [results]
        return results, [_of_all(sources, stopped=kind == "stop_gradient")] * len(results)
    if CALLS.match(kind):
        (jaxpr,) = inside[:1]
        return _evaluate(opened(jaxpr), getattr(jaxpr, "consts", ()), incoming, sources, wanted, found)
    if kind == "scan":
        return _scan(equation.params, incoming, sources, wanted, found)
    raise ValueError(
        f"a layer inside of {kind} cannot be observed: its values differ from call to call; "
        "use jax.lax.scan or a Python loop there, or keep its parameters out of this phi (optax.partition)."
    )


def _of_all(sources: list[Sources], stopped: bool = False) -> Sources:
    """Return the sources of what is computed from values with these."""
    read = frozenset().union(*(one.read for one in sources))
    return Sources(frozenset() if stopped else frozenset().union(*(s.differentiated for s in sources)), read)


def _scan(
    parameters: dict[str, Any],
    incoming: list[Any],
    sources: list[Sources],
    wanted: list[bool],
    found: dict[str, Any],
) -> tuple[list[Any], list[Sources]]:
    jaxpr, consts, carried = (parameters[name] for name in ("jaxpr", "num_consts", "num_carry"))
    fixed, start, rows = incoming[:consts], incoming[consts : consts + carried], incoming[consts + carried :]

    wanted = [any(wanted)] * carried + wanted[carried:]  # a later round may want all that is carried

    def body(carry: Any, row: Any) -> Any:
        inside: dict[str, Any] = {}
        results, _ = _evaluate(jaxpr.jaxpr, jaxpr.consts, [*fixed, *carry, *row], sources, wanted, inside)
        for name, marked in inside.items():
            fixed_parts[name] = marked.sources, marked.learns
        arrays = {name: (marked.value, marked.sent_on) for name, marked in inside.items()}
        return results[:carried], (results[carried:], arrays)

    fixed_parts: dict[str, tuple[Sources, bool]] = {}
    length, reverse = parameters["length"], parameters["reverse"]
    carry, (stacked, arrays) = jax.lax.scan(body, start, rows, length=length, reverse=reverse)
    for name, (value, sent_on) in arrays.items():
        found[name] = Marked(value, sent_on, *fixed_parts[name])
    return [*carry, *stacked], [_of_all(sources)] * (len(carry) + len(stacked))


def _copies_for_marks(jaxpr: Any) -> dict[Any, Any]:
    """Return, by their results, the equations that only marks read: they bring axes into order."""
    readers: dict[Any, list[Any]] = {}
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if _is_variable(variable):
                readers.setdefault(variable, []).append(equation)
    copies: dict[Any, Any] = {}
    for equation in reversed(jaxpr.eqns):
        result = equation.outvars[0] if equation.outvars else None
        if equation.primitive.name in ("transpose", "stop_gradient") and all(
            mark_name(reader) is not None or reader.outvars[0] in copies for reader in readers.get(result, [])
        ):
            copies[result] = equation
    return copies

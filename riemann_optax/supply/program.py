"""Reading values out of the middle of a computation: marks in a function, found again in its jaxpr.

A mark is the identity, so it may stand inside of ``vmap``, ``jit``, ``remat`` and ``scan``, where a value
that is put into a list would be a leaked tracer.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Marks at which a nonlinearity ends: what the model, or a module, is given.
OUTPUTS, BORDER = "outputs", "border"
_PREFIX = "riemann_optax/"
# What a program calls without changing how often it runs: its inside is read as if it stood there.
_CALLS = re.compile(
    "^(p?jit|remat2?|checkpoint|closed_call|core_call|custom_[jv]{1,2}[jv]?p?_call(_jaxpr)?)$"
)
_OF_ONE_VALUE = {
    *(
        "abs",
        "acos",
        "asin",
        "asinh",
        "atan",
        "ceil",
        "convert_element_type",
        "copy",
        "cos",
        "erf",
        "erf_inv",
    ),
    *("erfc", "exp", "exp2", "expm1", "floor", "log", "log1p", "logistic", "neg", "not", "round", "rsqrt"),
    *("sign", "sin", "sqrt", "stop_gradient", "tan", "tanh", "cosh", "sinh", "is_finite", "square", "cbrt"),
    *("add", "sub", "mul", "div", "max", "min", "pow", "integer_pow", "select_n", "clamp", "add_any"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "broadcast_in_dim", "copy_p"),
}
_LINEAR = {*("add", "sub", "mul", "div", "neg", "convert_element_type", "copy", "broadcast_in_dim", "name")}
# What may stand between a layer and its nonlinearity: pooling, a residual sum, a mask, a flattening.
_POOLING = re.compile("^reduce_window(_(max|min|sum))?$")
_WITH_OTHERS = {"add", "sub", "add_any", "mul", "div", "select_n"}


def mark(name: str, value: Any, features: int = 0, weights: Any = None) -> None:
    """Mark a value, to be found again by :func:`marked_values`.

    Inside of ``vmap`` the axis of the examples comes first in what is found, wherever it lies there; and that
    of weights which are stacked comes before the last ``features`` axes, also of a value that is the same
    for all of them. The name then ends with ``+`` and the number of such axes.
    """
    # A function with a rule for vmap has none for gradients, and none are wanted of a mark.
    value, weights = jax.lax.stop_gradient(
        (jnp.asarray(value), jnp.asarray(0 if weights is None else weights))
    )
    _marking(name, features, 0)(value, weights)


@functools.cache
def _marking(name: str, features: int, stacked: int) -> Callable[[Any, Any], Any]:
    @jax.custom_batching.custom_vmap
    def marked(value: Any, weights: Any) -> Any:
        del weights
        return checkpoint_name(value, f"{_PREFIX}{name}+{stacked}")

    @marked.def_vmap
    def of_many(size: int, batched: list[bool], value: Any, weights: Any) -> Any:
        of_examples, of_weights = batched
        if not of_weights:
            return _marking(name, features, stacked)(value, weights), True
        if not of_examples:
            value = jnp.broadcast_to(value, (size, *value.shape))
        place = value.ndim - features - stacked - 1
        order = (*range(1, place + 1), 0, *range(place + 1, value.ndim))
        value = jax.lax.transpose(value, order) if place else value  # jnp.moveaxis would hide it in a jit
        return _marking(name, features, stacked + 1)(value, weights), True

    return marked


def number_stacked(name: str) -> tuple[str, int]:
    """Return the name that was given to a mark, and how many axes of stacked weights its value has."""
    given, _, stacked = name.rpartition("+")
    return given, int(stacked)


def marked_values(function: Callable[..., Any], *arguments: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return, by the names of the marks in a function, the values and what becomes of them.

    The second is the value after the functions of it alone that follow, element by element: a nonlinearity.
    Pooling, a residual sum, a mask or a flattening may stand before it. It is the value itself where none
    follows; a value that is marked as :data:`OUTPUTS` or :data:`BORDER` is the last of them. A mark in the
    body of a ``scan`` gives the values of all rounds, along a new first axis.

    Raises:
      ValueError: for a mark in the body of another loop or of a branch.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    found: dict[str, tuple[jax.Array, jax.Array]] = {}
    _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), found)
    return found


def _evaluate(jaxpr: Any, consts: Any, arguments: Any, found: dict[str, Any]) -> list[Any]:
    """Evaluate a jaxpr, and collect what is marked in it."""
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, jax.extend.core.Literal) else values[variable]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    marks: list[tuple[str, Any]] = []
    for equation in jaxpr.eqns:
        incoming = [read(variable) for variable in equation.invars]
        name = _mark_name(equation)
        if name is not None:
            marks.append((name, equation.invars[0]))
            values.update(zip(equation.outvars, incoming[:1], strict=True))
            continue
        results = _results(equation, incoming, found)
        values.update(zip(equation.outvars, results, strict=True))
    copies = _copies_for_marks(jaxpr)
    for name, variable in marks:
        origin, permutations = variable, []
        while origin in copies:
            permutations.append(copies[origin].params.get("permutation"))
            origin = copies[origin].invars[0]
        end, shape = _sent_on(origin, jaxpr, copies)
        value = read(end).reshape(shape)
        for permutation in filter(None, reversed(permutations)):
            value = jnp.transpose(value, permutation)
        given = read(variable)
        # A window over the units themselves has mixed them.
        found[name] = given, value if value.shape[-1:] == given.shape[-1:] else given
    return [read(variable) for variable in jaxpr.outvars]


def _results(equation: Any, incoming: list[Any], found: dict[str, Any]) -> list[Any]:
    kind, inside = equation.primitive.name, _inner(equation)
    if not any(map(_has_marks, inside)):
        bound = equation.primitive.get_bind_params(equation.params)
        functions, parameters = ((), bound) if isinstance(bound, dict) else bound  # the pair until JAX 0.9
        with equation.ctx.manager:
            results = equation.primitive.bind(*functions, *incoming, **parameters)
        return list(results) if equation.primitive.multiple_results else [results]
    if _CALLS.match(kind):
        (jaxpr,) = inside[:1]
        return _evaluate(_opened(jaxpr), getattr(jaxpr, "consts", ()), incoming, found)
    if kind == "scan":
        return _scan(equation.params, incoming, found)
    raise ValueError(
        f"a layer inside of {kind} cannot be observed: its values differ from call to call; "
        "use jax.lax.scan or a Python loop there, or keep its parameters out of this phi (optax.partition)."
    )


def _scan(parameters: dict[str, Any], incoming: list[Any], found: dict[str, Any]) -> list[Any]:
    jaxpr, consts, carried = (parameters[name] for name in ("jaxpr", "num_consts", "num_carry"))
    fixed, start, rows = incoming[:consts], incoming[consts : consts + carried], incoming[consts + carried :]

    def body(carry: Any, row: Any) -> Any:
        inner: dict[str, Any] = {}
        results = _evaluate(jaxpr.jaxpr, jaxpr.consts, [*fixed, *carry, *row], inner)
        return results[:carried], (results[carried:], inner)

    length, reverse = parameters["length"], parameters["reverse"]
    carry, (stacked, inner) = jax.lax.scan(body, start, rows, length=length, reverse=reverse)
    found.update(inner)
    return [*carry, *stacked]


def _mark_name(equation: Any) -> str | None:
    """Return the name of a mark, which stands in a call of its own."""
    if equation.primitive.name != "custom_vmap_call":
        return None
    inside = _opened(equation.params["call"]).eqns
    name = inside[0].params.get("name") if len(inside) == 1 and inside[0].primitive.name == "name" else None
    return name.removeprefix(_PREFIX) if isinstance(name, str) and name.startswith(_PREFIX) else None


def _copies_for_marks(jaxpr: Any) -> dict[Any, Any]:
    """Return, by their results, the equations that only marks read: they bring axes into order."""
    readers: dict[Any, list[Any]] = {}
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if not isinstance(variable, jax.extend.core.Literal):
                readers.setdefault(variable, []).append(equation)
    copies: dict[Any, Any] = {}
    for equation in reversed(jaxpr.eqns):
        result = equation.outvars[0] if equation.outvars else None
        if equation.primitive.name in ("transpose", "stop_gradient") and all(
            _mark_name(reader) is not None or reader.outvars[0] in copies
            for reader in readers.get(result, [])
        ):
            copies[result] = equation
    return copies


def _opened(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _inner(equation: Any) -> list[Any]:
    """Return the jaxprs among the parameters of an equation."""
    inside = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda node: hasattr(node, "eqns"))
    return [node for node in inside if hasattr(node, "eqns")]


def _has_marks(jaxpr: Any) -> bool:
    return any(
        _mark_name(equation) is not None or any(map(_has_marks, _inner(equation)))
        for equation in _opened(jaxpr).eqns
    )


def _sent_on(variable: Any, jaxpr: Any, copies: dict[Any, Any]) -> tuple[Any, tuple[int, ...]]:
    """Return the variable after the nonlinearity that follows this one, and its shape before it is flattened.

    The nonlinearity may follow at once, or behind what carries the units on. What is given to the next layer,
    or is the model's output, is not carried on.
    """
    closed = _closed(jaxpr, copies)
    carried, derived = {variable: variable.aval.shape}, {variable}
    for equation in jaxpr.eqns:
        read = [one for one in equation.invars if not isinstance(one, jax.extend.core.Literal)]
        if _is_observation(equation, copies) or derived.isdisjoint(read):
            continue
        mine = [one for one in read if one in carried and one not in closed]
        if len(mine) == 1 and len(equation.outvars) == 1:
            shape = _carried_shape(equation, mine[0], carried[mine[0]], derived)
            if shape is not None:
                carried[equation.outvars[0]] = shape
        derived.update(equation.outvars)
    for one, shape in carried.items():
        end = _after_nonlinearity(one, jaxpr, copies)
        if end is not one:
            return end, shape
    return variable, variable.aval.shape


def _carried_shape(
    equation: Any, variable: Any, shape: tuple[int, ...], derived: set[Any]
) -> tuple[int, ...] | None:
    """Return the shape, before it is flattened, of a result that has the units of a variable; None without.

    What is added or multiplied may not itself depend on the layer.
    """
    others = [one for one in equation.invars if one is not variable]
    if any(not isinstance(one, jax.extend.core.Literal) and one in derived for one in others):
        return None
    kind, before, after = equation.primitive.name, variable.aval.shape, equation.outvars[0].aval.shape
    if _POOLING.match(kind):
        return after if before == shape else None
    if kind == "reshape":
        return shape
    return shape if after == before and _joins_others(equation) else None


def _joins_others(equation: Any) -> bool:
    """Return whether an equation adds to a value, scales or masks it; ``jnp.where`` does so in a call."""
    inside = _inner(equation)
    if inside and _CALLS.match(equation.primitive.name):
        return all(_joins_others(one) or _is_linear(one) for one in _opened(inside[0]).eqns)
    return equation.primitive.name in _WITH_OTHERS


def _is_observation(equation: Any, copies: dict[Any, Any]) -> bool:
    """Return whether an equation belongs to a mark, and not to the model."""
    is_mark = equation.primitive.name == "name" or _mark_name(equation) is not None
    return is_mark or any(one in copies for one in equation.outvars)


def _closed(jaxpr: Any, copies: dict[Any, Any]) -> set[Any]:
    """Return the variables that a layer is given, or that are the model's output."""
    closed = set()
    for equation in jaxpr.eqns:
        name = _mark_name(equation)
        if name is not None and number_stacked(name)[0] in (OUTPUTS, BORDER):
            last = equation.invars[0]
            while last in copies:
                last = copies[last].invars[0]
            closed.add(last)
    return closed


def _after_nonlinearity(variable: Any, jaxpr: Any, copies: dict[Any, Any]) -> Any:
    """Return the variable after the functions of this one alone that follow, element by element.

    Of all that is computed from this one alone there must be one variable that everything else uses; and a
    scaling alone, such as that of an attention's queries, is no nonlinearity.
    """
    own, used = {variable}, {out for out in jaxpr.outvars if not isinstance(out, jax.extend.core.Literal)}
    closed = _closed(jaxpr, copies)
    bent = False
    for equation in jaxpr.eqns:
        read = [one for one in equation.invars if not isinstance(one, jax.extend.core.Literal)]
        if _is_observation(equation, copies) or own.isdisjoint(read):
            continue
        if own.isdisjoint(closed.intersection(read)) and _is_elementwise(equation, variable, own):
            own.update(equation.outvars)
            bent = bent or not _is_linear(equation) or len(own.intersection(read)) > 1
        else:
            used.update(read)
    ends = [one for one in own if one in used or one in closed]
    return ends[0] if bent and len(ends) == 1 else variable


def _is_elementwise(equation: Any, variable: Any, own: set[Any]) -> bool:
    """Return whether an equation makes of one value another, element by element, by it and numbers alone."""
    if len(equation.outvars) != 1 or equation.outvars[0].aval.shape != variable.aval.shape:
        return False
    for other in equation.invars:
        if other.aval.shape and (isinstance(other, jax.extend.core.Literal) or other not in own):
            return False
    return _plain(equation)


def _is_linear(equation: Any) -> bool:
    inside = _inner(equation)
    return all(map(_is_linear, _opened(inside[0]).eqns)) if inside else equation.primitive.name in _LINEAR


def _plain(equation: Any) -> bool:
    inside = _inner(equation)
    if inside and _CALLS.match(equation.primitive.name):
        return all(map(_plain, _opened(inside[0]).eqns))
    return equation.primitive.name in _OF_ONE_VALUE

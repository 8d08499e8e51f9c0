"""A jaxpr with its calls written out: what ``jit`` or ``remat`` calls is read where it is called."""

import re
from typing import Any, NamedTuple

import jax.extend.core

from riemann_optax.supply.marks import CALLS, has_marks, inner, mark_name, opened

_MADE = re.compile(r"\b(jvp|transpose)\(")  # in the name stack of what differentiation makes
# What passes several values on, each as it is: what becomes of one says nothing of the others.
PASSING_EACH = {"device_put", "optimization_barrier", "shard_alike"}
_RULED = re.compile("^custom_")  # functions with derivatives of their own, such as a relu


class Variable:
    """A value of a :class:`Program`."""

    def __init__(self, aval: Any) -> None:
        self.aval = aval


class Equation(NamedTuple):
    """An equation of a jaxpr, with variables of the program.

    ``derived`` is whether JAX has made it by differentiating others, and ``read`` which variables it reads.
    """

    primitive: Any
    invars: list[Any]
    outvars: list[Any]
    params: dict[str, Any]
    ctx: Any
    derived: bool
    read: list[Any]


class Program(NamedTuple):
    """A jaxpr, in its terms, without the calls.

    A function that is traced once and called twice stands here twice. ``taken_apart`` has, in place of an
    equation that passes several values on, one for each.
    """

    invars: list[Any]
    constvars: list[Any]
    consts: list[Any]
    eqns: list[Equation]
    taken_apart: list[Equation]
    outvars: list[Any]


def is_variable(one: Any) -> bool:
    """Return whether this is no number that is written into an equation."""
    return not isinstance(one, jax.extend.core.Literal)


def inlined(jaxpr: Any, consts: Any, derived: bool = False) -> Program:
    """Return a jaxpr, which JAX may have made by differentiating another, with its calls written out."""
    program = Program([Variable(one.aval) for one in jaxpr.invars], [], [], [], [], [])
    program.outvars.extend(_write_out(jaxpr, consts, program.invars, program, derived))
    return program


def _write_out(jaxpr: Any, consts: Any, arguments: list[Any], program: Program, derived: bool) -> list[Any]:
    """Add the equations of a jaxpr to the program; return the variables of its results."""
    own = [Variable(one.aval) for one in jaxpr.constvars]
    program.constvars.extend(own)
    program.consts.extend(consts)
    names = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*own, *arguments], strict=True))

    def read(one: Any) -> Any:
        return names[one] if is_variable(one) else one

    for equation in jaxpr.eqns:
        given, inside, kind = [read(one) for one in equation.invars], inner(equation), equation.primitive.name
        made = derived or bool(_MADE.search(str(equation.source_info.name_stack)))
        if inside and CALLS.match(kind) and (not _RULED.match(kind) or has_marks(inside[0])):
            called = inside[0]
            results = _write_out(opened(called), getattr(called, "consts", ()), given, program, made)
        else:
            results = [Variable(one.aval) for one in equation.outvars]
            whole = Equation(
                equation.primitive, given, results, equation.params, equation.ctx, made, _variables(given)
            )
            program.eqns.append(whole)
            program.taken_apart.extend(_apart(whole))
        names.update(zip(equation.outvars, results, strict=True))
    return [read(one) for one in jaxpr.outvars]


def _variables(given: list[Any]) -> list[Any]:
    return [one for one in given if is_variable(one)]


def _apart(equation: Equation) -> list[Equation]:
    """Return, for what passes several values on, an equation of each; else the one equation."""
    if equation.primitive.name not in PASSING_EACH or len(equation.invars) != len(equation.outvars):
        return [equation]
    return [
        equation._replace(invars=[given], outvars=[result], read=_variables([given]))
        for given, result in zip(equation.invars, equation.outvars, strict=True)
    ]


def copies_for_marks(program: Any) -> dict[Any, Any]:
    """Return, by their results, the equations that only marks read: they bring axes into order.

    What a program returns is no such copy, even if no equation reads it.
    """
    readers: dict[Any, list[Any]] = {}
    for equation in program.eqns:
        for variable in equation.read:
            readers.setdefault(variable, []).append(equation)
    copies: dict[Any, Any] = {}
    returned = set(_variables(program.outvars))
    for equation in reversed(program.eqns):
        result = equation.outvars[0] if equation.outvars else None
        own = equation.primitive.name in ("transpose", "stop_gradient") and result not in returned
        if own and all(
            mark_name(reader) is not None or reader.outvars[0] in copies for reader in readers.get(result, [])
        ):
            copies[result] = equation
    return copies


def before_copies(one: Any, copies: dict[Any, Any]) -> Any:
    """Return what the model has, of which this is a copy that only marks read."""
    while is_variable(one) and one in copies:
        one = copies[one].invars[0]
    return one

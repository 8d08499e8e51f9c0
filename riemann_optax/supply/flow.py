"""Where the values of a program lead, and whether a gradient flows back through them."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from riemann_optax.supply.inlining import Program, copies_for_marks, inlined, is_variable
from riemann_optax.supply.marks import BORDER, has_marks, inner, mark_name, number_stacked
from riemann_optax.supply.sources import Sources


class Flow(NamedTuple):
    """Where the variables of a program lead.

    Attributes:
      learned: those from which a way leads to a wanted result.
      stopped: those from which one leads to a ``stop_gradient``, or to an index.
      read_on: those from which is computed what a layer is given.
    """

    learned: set[Any]
    stopped: set[Any]
    read_on: set[Any]

    def learns(self, sent: Any) -> bool:
        """Return whether a gradient may flow back through the call of a layer that gives ``sent``.

        Where its result leads nowhere, the call is there for its derivatives: of a penalty on a gradient.
        """
        return not is_variable(sent) or sent in self.learned or sent not in self.stopped


class Lead(NamedTuple):
    """Where one result leads: to what is differentiated, to a ``stop_gradient`` or an index, to a layer."""

    learned: bool = True
    stopped: bool = False
    read_on: bool = False


def flow(program: Program, leads: list[Lead]) -> Flow:
    """Return where all variables lead, of those results that lead there."""
    copies = copies_for_marks(program)
    ends = [pair for pair in zip(program.outvars, leads, strict=True) if is_variable(pair[0])]
    learned, stopped = ({one for one, lead in ends if lead[place]} for place in (0, 1))
    found = Flow(learned, stopped, _reaching_a_layer(program, _read_on(program, leads)))
    for equation in reversed(program.eqns):
        if mark_name(equation) is not None or any(one in copies for one in equation.outvars):
            continue
        given = equation.read
        kind, results = equation.primitive.name, equation.outvars
        if kind == "stop_gradient" or all(map(_is_index, results)):
            found.stopped.update(given)
            continue
        if kind == "scan":
            _through_scan(equation, found)
            continue
        if not found.learned.isdisjoint(results):
            found.learned.update(given)
        if not found.stopped.isdisjoint(results):
            found.stopped.update(given)
    return found


def _reaching_a_layer(program: Program, read_on: set[Any]) -> set[Any]:
    """Return the variables from which is computed what a layer is given, in the program or behind it.

    Args:
      program: its equations.
      read_on: those of its results from which such is computed behind it.
    """
    reaching = set(read_on)
    for equation in reversed(program.eqns):
        name = mark_name(equation)
        if name is None:
            to_a_layer = any(has_marks(one, (BORDER,)) for one in inner(equation))
            reaches = to_a_layer or not reaching.isdisjoint(equation.outvars)
        else:
            reaches = number_stacked(name)[0] == BORDER
        reaching.update(equation.read if reaches else ())
    return reaching


def _read_on(program: Program, leads: list[Lead]) -> set[Any]:
    """Return those results from which is computed, behind the program, what a layer is given."""
    pairs = zip(program.outvars, leads, strict=True)
    return {one for one, lead in pairs if is_variable(one) and lead.read_on}


def wanted(program: Program, leads: list[Lead]) -> set[Any]:
    """Return the results of a program that lead anywhere."""
    pairs = zip(program.outvars, leads, strict=True)
    return {one for one, lead in pairs if is_variable(one) and (lead.learned or lead.stopped)}


# What combines entries of weights with something else, as a layer does.
_COMBINING = {"dot_general", "conv_general_dilated", "gather"}


def uses_beside(
    program: Program, results: set[Any], made: dict[int, set[Any]], origin: Callable[[Any], Sources]
) -> set[int]:
    """Return the arguments whose entries are used, on a way to a result, by what is no layer that shows it.

    Args:
      program: the program.
      results: those of its results that are wanted.
      made: by argument, what layers make of it.
      origin: the sources of a variable.
    """
    uses: dict[int, list[tuple[Any, Any]]] = {}
    for equation in program.eqns:
        if equation.primitive.name in _COMBINING and not equation.derived:
            given = [(one, origin(one)) for one in equation.invars]
            of = [source.entries for _, source in given if source.entries is not None]
            for leaf in set(of) & made.keys():
                weights = [one for one, source in given if source.entries == leaf]
                if len(weights) == 1 and any(leaf in source.differentiated for _, source in given):
                    uses.setdefault(leaf, []).append((equation, weights[0]))
    past, behind = _past(program, results, made) if uses else ({}, {})
    return {
        leaf
        for leaf, found in uses.items()
        for equation, weights in found
        if any(past.get(one, 0) >> leaf & 1 for one in equation.outvars)
        and not behind.get(weights, 0) >> leaf & 1
    }


def _past(
    program: Program, results: set[Any], made: dict[int, set[Any]]
) -> tuple[dict[Any, int], dict[Any, int]]:
    """Return for which arguments a variable leads to a result past what layers make, or lies behind that.

    Sets of arguments are the bits of integers: two walks through the program do for all of them.
    """
    own: dict[Any, int] = {}
    for leaf, variables in made.items():
        for one in variables:
            own[one] = own.get(one, 0) | 1 << leaf
    every = sum(1 << leaf for leaf in made)
    past = {one: every & ~own.get(one, 0) for one in results}
    for equation in reversed(program.eqns):
        if mark_name(equation) is None and equation.primitive.name != "stop_gradient":
            some = functools.reduce(operator.or_, (past.get(one, 0) for one in equation.outvars), 0)
            for one in equation.read if some else ():
                past[one] = past.get(one, 0) | some & ~own.get(one, 0)
    behind = dict(own)
    for equation in program.eqns:
        some = functools.reduce(operator.or_, (behind.get(one, 0) for one in equation.read), 0)
        for one in equation.outvars if some else ():
            behind[one] = behind.get(one, 0) | some
    return past, behind


def leads_in_scan(parameters: dict[str, Any], leads: list[Lead]) -> list[Lead]:
    """Return where the results of the body lead, where these are of the scan."""
    carried = parameters["num_carry"]
    # A later round may use all that is carried for any result.
    some = Lead(any(one.learned for one in leads), any(one.stopped for one in leads))
    return [some._replace(read_on=one.read_on) for one in leads[:carried]] + leads[carried:]


def read_on_in_scan(parameters: dict[str, Any], leads: list[Lead]) -> list[Lead]:
    """Return the same leads of a scan's results, with what its body gives to layers in a later round."""
    body = inlined(parameters["jaxpr"].jaxpr, parameters["jaxpr"].consts)
    consts, carried = parameters["num_consts"], parameters["num_carry"]
    before: list[Lead] = []
    while leads != before:
        before = leads
        reaching = _reaching_a_layer(body, _read_on(body, leads))
        starts = [one in reaching for one in body.invars[consts : consts + carried]]
        again = [lead._replace(read_on=lead.read_on or one) for lead, one in zip(leads, starts, strict=False)]
        leads = again + leads[carried:]
    return leads


def leads_of(results: list[Any], found: Flow) -> list[Lead]:
    """Return where the results of an equation lead."""
    return [Lead(*(one in way for way in found)) for one in results]


def _through_scan(equation: Any, found: Flow) -> None:
    body = equation.params["jaxpr"]
    program = inlined(body.jaxpr, body.consts)
    inside = flow(program, leads_in_scan(equation.params, leads_of(equation.outvars, found)))
    for outer, one in zip(equation.invars, program.invars, strict=True):
        if is_variable(outer) and one in inside.learned:
            found.learned.add(outer)
        if is_variable(outer) and one in inside.stopped:
            found.stopped.add(outer)


def _is_index(one: Any) -> bool:
    """Return whether a result has no gradients, and is no condition either."""
    dtype = one.aval.dtype
    return not (jnp.issubdtype(dtype, jnp.inexact) or jnp.issubdtype(dtype, jnp.bool_))

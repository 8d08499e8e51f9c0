"""Where the values of a program lead, and whether a gradient flows back through them."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from riemann_optax.supply.inlining import Program, copies_for_marks, inlined, is_variable
from riemann_optax.supply.marks import BORDER, OUTPUTS, SEEN, has_marks, inner, mark_name, number_stacked
from riemann_optax.supply.sources import Sources


class Flow(NamedTuple):
    """Where the variables of a program lead.

    Attributes:
      learned: those from which a way leads to a wanted result.
      stopped: those from which one leads to a ``stop_gradient``, or to an index.
      read_on: those from which is computed what a layer is given.
      goes_on: these, and those from which is computed what is called the outputs of a model, or what a
        product with weights is given that no layer shows.
    """

    learned: set[Any]
    stopped: set[Any]
    read_on: set[Any]
    goes_on: set[Any]

    def learns(self, sent: Any) -> bool:
        """Return whether a gradient may flow back through the call of a layer that gives ``sent``.

        Where its result leads nowhere, the call is there for its derivatives: of a penalty on a gradient.
        """
        return not is_variable(sent) or sent in self.learned or sent not in self.stopped


class Lead(NamedTuple):
    """Where one result leads, as :class:`Flow` has it of variables."""

    learned: bool = True
    stopped: bool = False
    read_on: bool = False
    goes_on: bool = False


# To which marks and primitives the two ways of a flow lead.
_ENDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "read_on": ((BORDER,), ()),
    "goes_on": ((BORDER, OUTPUTS, SEEN), ("dot_general", "conv_general_dilated")),
}


def flow(program: Program, leads: list[Lead]) -> Flow:
    """Return where all variables lead, of those results that lead there."""
    copies = copies_for_marks(program)
    ends = [pair for pair in zip(program.outvars, leads, strict=True) if is_variable(pair[0])]
    learned, stopped = ({one for one, lead in ends if lead[place]} for place in (0, 1))
    found = Flow(learned, stopped, *(_reaching(program, way, leads) for way in _ENDS))
    for equation in reversed(program.taken_apart):
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


def _reaching(program: Program, way: str, leads: list[Lead]) -> set[Any]:
    """Return the variables from which a way leads to its end, in the program or behind it.

    Args:
      program: its equations.
      way: ``"read_on"`` or ``"goes_on"``.
      leads: of its results.
    """
    names, kinds = _ENDS[way]
    pairs = zip(program.outvars, leads, strict=True)
    reaching = {one for one, lead in pairs if is_variable(one) and getattr(lead, way)}
    for equation in reversed(program.taken_apart):
        name = mark_name(equation)
        if name is None:
            by_hand = equation.primitive.name in kinds and not equation.derived
            ends = by_hand or any(has_marks(one, names) for one in inner(equation))
            reaches = ends or not reaching.isdisjoint(equation.outvars)
        else:
            reaches = number_stacked(name)[0] in names
        reaching.update(equation.read if reaches else ())
    return reaching


def wanted(program: Program, leads: list[Lead]) -> set[Any]:
    """Return the results of a program that lead anywhere."""
    pairs = zip(program.outvars, leads, strict=True)
    return {one for one, lead in pairs if is_variable(one) and (lead.learned or lead.stopped)}


# What combines entries of weights with something else, as a layer does.
COMBINING = {"dot_general", "conv_general_dilated", "gather"}


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
        if equation.primitive.name in COMBINING and not equation.derived:
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
    for equation in reversed(program.taken_apart):
        if mark_name(equation) is None and equation.primitive.name != "stop_gradient":
            some = functools.reduce(operator.or_, (past.get(one, 0) for one in equation.outvars), 0)
            for one in equation.read if some else ():
                past[one] = past.get(one, 0) | some & ~own.get(one, 0)
    behind = dict(own)
    for equation in program.taken_apart:
        some = functools.reduce(operator.or_, (behind.get(one, 0) for one in equation.read), 0)
        for one in equation.outvars if some else ():
            behind[one] = behind.get(one, 0) | some
    return past, behind


def leads_in_scan(parameters: dict[str, Any], leads: list[Lead]) -> list[Lead]:
    """Return where the results of the body lead, where these are of the scan."""
    carried = parameters["num_carry"]
    # A later round may use all that is carried for any result.
    some = Lead(any(one.learned for one in leads), any(one.stopped for one in leads))
    own = [some._replace(read_on=one.read_on, goes_on=one.goes_on) for one in leads[:carried]]
    return own + leads[carried:]


def read_on_in_scan(parameters: dict[str, Any], leads: list[Lead]) -> list[Lead]:
    """Return the same leads of a scan's results, with what its body gives to layers in a later round."""
    body = inlined(parameters["jaxpr"].jaxpr, parameters["jaxpr"].consts)
    consts, carried = parameters["num_consts"], parameters["num_carry"]
    before: list[Lead] = []
    while leads != before:
        before = leads
        for way in _ENDS:
            reaching = _reaching(body, way, leads)
            starts = [one in reaching for one in body.invars[consts : consts + carried]]
            again = [
                lead._replace(**{way: getattr(lead, way) or one})
                for lead, one in zip(leads, starts, strict=False)
            ]
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

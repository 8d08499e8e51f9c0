"""Whether a layer's units go only where an optimiser that resets them takes them to go."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from riemann_optax import _axes, _check, _tree
from riemann_optax._declare import unit_links_of
from riemann_optax.supply.flow import COMBINING
from riemann_optax.supply.inlining import Program, is_variable
from riemann_optax.supply.marks import mark_name
from riemann_optax.supply.program import Examination
from riemann_optax.supply.sources import Sources

# What puts another value beside, or in the place of, one that carries units.
_ADDING = {
    *("add", "add_any", "sub", "concatenate", "stack", "select_n", "max", "min"),
    *("scatter", "scatter-add", "dynamic_update_slice"),
}


class Loose(NamedTuple):
    """What is wrong with the links of a program, by the number of a layer's leaf.

    Attributes:
      past: layers whose units lead to a result past the weights that are said to read them.
      beside: layers whose units reach these weights in a sum with something else.
    """

    past: set[int]
    beside: set[int]


def loose_links(
    program: Program,
    results: set[Any],
    links: Mapping[int, frozenset[int]],
    made: Mapping[int, set[Any]],
    origin: Callable[[Any], Sources],
) -> Loose:
    """Return the layers whose units go elsewhere too, or share a reader with something else.

    What stands in a loop is not looked into: a link of which a part is there is taken to hold.

    Args:
      program: the program.
      results: those of its results that are wanted.
      links: by the leaf of a layer, the leaves of those that read its units.
      made: by leaf, what layers make of it.
      origin: the sources of a variable.
    """
    found = Loose(set(), set())
    own: dict[int, list[tuple[Any, list[Any]]]] = {}  # by leaf, the equations that combine it with something
    for equation in program.eqns:
        if mark_name(equation) is None:
            for leaf, given in _combined(equation, origin):
                own.setdefault(leaf, []).append((equation, given))
    kernels = {leaf for leaf, equations in own.items() if any(given for _, given in equations)}
    # A batch of NumPy arrays is a constant of its own at each use; one value for each unit is like a bias.
    data = {one for one in program.constvars if _is_real(one) and math.prod(one.aval.shape[:-1]) > 1}
    for layer, readers in links.items():
        units = made.get(layer, set())
        if not units or not readers & own.keys():
            continue
        ends = {id(equation) for reader in readers for equation, _ in own.get(reader, ())}
        carrying = _behind(program, units, ends)
        if carrying & results:
            found.past.add(layer)
        elsewhere = data | {one for other in kernels - {layer} for one in made.get(other, ())}
        elsewhere.update(one for _, given in own.get(layer, ()) for one in given)
        others = _behind(program, elsewhere, set())
        received = {one for reader in readers for _, given in own.get(reader, ()) for one in given}
        if _joined(program, received & carrying, units, carrying, others):
            found.beside.add(layer)
    return found


def examination(transformations: Iterable[Any], params: Any) -> Examination | None:
    """Return what warns of the links in a program that do not hold; None where nothing reports links."""
    with _check.quiet():
        told = [link for tx in transformations for link in unit_links_of(tx, params)]
    if not told:
        return None
    places = {path: leaf for leaf, path in enumerate(_axes.leaf_paths(_tree.bare(params)))}
    links = {
        places[layer]: frozenset(places[reader] for reader in readers if reader in places)
        for layer, readers in told
        if layer in places
    }
    modules = {leaf: _axes.module_of(path) for path, leaf in places.items()}

    def examine(
        program: Program, results: set[Any], made: dict[int, set[Any]], origin: Callable[[Any], Sources]
    ) -> None:
        loose = loose_links(program, results, links, made, origin)
        if loose.past:
            pairs = ", ".join(f"{modules[layer]!r} (to {_listed(layer)})" for layer in sorted(loose.past))
            _check.warn(
                "reset_units: the units of these layers go elsewhere too than to the one in brackets, and "
                f"what this loss makes of them there changes with a reset: {pairs}. That is well for a "
                "penalty on activities. Otherwise name all layers that read them in outgoing, or leave them "
                "out there."
            )
        if loose.beside:
            pairs = ", ".join(f"{modules[layer]!r} (in {_listed(layer)})" for layer in sorted(loose.beside))
            rest = {modules[one]: _readers(one) for one in links if one not in loose.past | loose.beside}
            remedy = f"Leave these layers out: outgoing={rest}." if rest else "Reset none of these layers."
            _check.warn(
                "reset_units: the units of these layers are read, by the one in brackets, in a sum with "
                f"something else, such as x + relu(layer(x)): {pairs}. A reset sets to 0 the weights by "
                f"which both are read. {remedy}"
            )

    def _readers(layer: int) -> str | tuple[str, ...]:
        named = tuple(modules[reader] for reader in sorted(links[layer]))
        return named[0] if len(named) == 1 else named

    def _listed(layer: int) -> str:
        return ", ".join(repr(modules[reader]) for reader in sorted(links[layer]))

    return examine


def _combined(equation: Any, origin: Callable[[Any], Sources]) -> Iterable[tuple[int, list[Any]]]:
    """Yield the leaves that an equation combines with something, and the variables with which it does."""
    sources = [(one, origin(one)) for one in equation.read]
    if equation.primitive.name in COMBINING:
        for one, source in sources:
            if source.entries is not None:
                yield source.entries, [other for other, _ in sources if other is not one]
    elif equation.primitive.name in ("scan", "while", "cond"):
        for leaf in {leaf for _, source in sources for leaf in source.differentiated}:
            yield leaf, []


def _behind(program: Program, starts: set[Any], ends: set[int]) -> set[Any]:
    """Return the variables that are computed from these, but for what such equations make of them."""
    behind = set(starts)
    for equation in program.taken_apart:
        # Derivatives of what a silent unit sends on are silent too.
        passes = mark_name(equation) is None and equation.primitive.name != "stop_gradient"
        passes = passes and not equation.derived
        passes = passes and id(equation) not in ends and any(map(_is_real, equation.outvars))
        if passes and not behind.isdisjoint(equation.read):
            behind.update(equation.outvars)
    return behind


def _joined(
    program: Program, received: set[Any], units: set[Any], carrying: set[Any], others: set[Any]
) -> bool:
    """Return whether, on the way from units to what is received, something else is added to them."""
    reaching = set(received)
    for equation in reversed(program.taken_apart):
        if reaching.isdisjoint(equation.outvars) or not units.isdisjoint(equation.outvars):
            continue
        for one in equation.read:
            if one in carrying:
                reaching.add(one)
            elif equation.primitive.name in _ADDING and one in others and _is_real(one):
                return True
    return False


def _is_real(one: Any) -> bool:
    return is_variable(one) and jnp.issubdtype(one.aval.dtype, jnp.inexact)

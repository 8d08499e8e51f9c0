"""Where the values of a program come from: from which arguments, and what of them is still in its place."""

import functools
import re
from typing import Any, NamedTuple

from riemann_optax.supply.inlining import Program, before_copies, copies_for_marks, inlined, is_variable
from riemann_optax.supply.marks import OF_ONE_VALUE, OWN, inner, mark_name, opened
from riemann_optax.supply.places import STAYING, TAKING, holds_entries, place_kept
from riemann_optax.supply.stacks import keeps_stack

_NOTHING = frozenset[int]()


class Sources(NamedTuple):
    """From which arguments of a function a value is computed, by their numbers.

    Attributes:
      differentiated: those through which a gradient flows.
      read: these, and those behind ``stop_gradient``.
      direct: those that it is computed from without a layer between.
      same: which argument the value is, converted or a row of it in a scan; None where it is another.
      entries: of which argument each of its entries has an entry, be it scaled, rounded or masked, and no
        other entries; None where it mixes them.
      places: those whose entries stand in it in their own order, or those of a row; and along how many first
        axes these are repeated.
      moved: those of which entries stand in it at another place.
      turned: those arguments that were transposed on the way.
      whole: those whose first axis is that of the value, whole and in its order.
      rows: of those of which a scan takes a row in each round, the number, and that of the scan by its depth.
    """

    differentiated: frozenset[int] = _NOTHING
    read: frozenset[int] = _NOTHING
    direct: frozenset[int] = _NOTHING
    same: int | None = None
    entries: int | None = None
    places: frozenset[tuple[int, int]] = frozenset()
    moved: frozenset[int] = _NOTHING
    turned: frozenset[int] = _NOTHING
    whole: frozenset[int] = _NOTHING
    rows: frozenset[tuple[int, int]] = frozenset()

    @property
    def placed(self) -> frozenset[int]:
        """Those whose entries stand in it in their own order."""
        return frozenset(one for one, _ in self.places)

    def row(self, depth: int) -> "Sources":
        """Return the sources of a row of this value, in a scan that stands in so many others."""
        places = frozenset(
            (one, max(repeated - 1, 0)) for one, repeated in self.places if repeated or one in self.whole
        )
        return self._replace(
            places=places,
            moved=self.moved | self.placed - {one for one, _ in places},
            whole=_NOTHING,
            rows=self.rows | {(one, depth) for one in self.whole},
        )

    def stacked(self, depth: int) -> "Sources":
        """Return the sources of what the rounds of a scan give together, each of them this."""
        own = {one for one, at in self.rows if at == depth}
        again = {(one, 0) for one, repeated in self.places if one in own and not repeated}
        places = again | {(one, repeated + 1) for one, repeated in self.places if one not in own}
        return self._replace(
            entries=self.entries if self.entries in {one for one, _ in places} else None,
            same=self.same if self.same in {one for one, _ in again} else None,
            places=frozenset(places),
            moved=self.moved | self.placed - {one for one, _ in places},
            whole=frozenset(one for one, _ in again),
            rows=frozenset(pair for pair in self.rows if pair[1] != depth),
        )

    def later(self, depth: int) -> "Sources":
        """Return the sources of what a round of a scan gives, in a later one or behind them all."""
        gone = {one for one, at in self.rows if at == depth}  # the row is that of another layer there
        return self._replace(
            same=None if self.same in gone else self.same,
            entries=None if self.entries in gone else self.entries,
            places=frozenset(pair for pair in self.places if pair[0] not in gone),
            moved=self.moved | self.placed & gone,
            rows=frozenset(pair for pair in self.rows if pair[1] != depth),
        )


def of_argument(number: int) -> Sources:
    """Return the sources of an argument itself."""
    own = frozenset({number})
    return Sources(own, own, own, number, number, frozenset({(number, 0)}), whole=own)


def origins_of(program: Program, sources: list[Sources], depth: int = 0) -> dict[Any, Sources]:
    """Return the sources of all variables of a program, which stands in so many scans, by its arguments'."""
    origins: dict[Any, Sources] = dict(zip(program.invars, sources, strict=True))
    copies = copies_for_marks(program)
    for equation in program.taken_apart:
        name = mark_name(equation)
        if name is None:
            given = [
                origins.get(one, Sources()) if is_variable(one) else Sources() for one in equation.invars
            ]
            origins.update(zip(equation.outvars, of_results(given, equation, depth), strict=True))
        elif name.startswith(OWN):
            sent = before_copies(equation.invars[2], copies)
            if is_variable(sent) and sent in origins:
                origins[sent] = origins[sent]._replace(direct=_NOTHING)
    return origins


# What leaves a value as it is, but for its dtype.
_SAME = STAYING | {"convert_element_type", "stop_gradient"}
_CALLING = re.compile("^custom_([jv]{1,2}[jv]?p|vmap)_call(_jaxpr)?$")


def of_results(sources: list[Sources], equation: Any, depth: int = 0) -> list[Sources]:
    """Return the sources of each result of an equation that is given values with these."""
    kind = equation.primitive.name
    if kind == "scan":
        return _of_scan(sources, equation.params, depth)
    if kind == "while":
        return _of_while(sources, equation.params, depth)
    if kind == "cond":
        branches = [_through(one, sources[1:], depth) for one in inner(equation)]
        chosen = [functools.reduce(_joined, several) for several in zip(*branches, strict=True)]
        return [one._replace(read=one.read | sources[0].read) for one in chosen]
    if _CALLING.match(kind) and inner(equation):
        return _through(inner(equation)[0], sources, depth)
    if kind == "gather" and equation.invars[1].aval.ndim > 1:  # many rows, and not one of a stack
        kind = ""
    made_of, chooses = _of_all(sources, kind), kind == "select_n" and _differ(sources[1:])
    found = []
    for result in range(len(equation.outvars)):
        places, moved = _places(sources, equation, result)
        if chooses:
            places, moved = frozenset(), moved | {one for one, _ in places}
        whole = _whole(sources, equation, result)
        entries = None if chooses else made_of.entries
        found.append(made_of._replace(entries=entries, places=places, moved=moved, whole=whole))
    return found


def _through(jaxpr: Any, sources: list[Sources], depth: int) -> list[Sources]:
    """Return the sources of the results of a jaxpr that is given values with these."""
    program = inlined(opened(jaxpr), getattr(jaxpr, "consts", ()))
    origins = origins_of(program, sources, depth)
    return [origins.get(one, Sources()) if is_variable(one) else Sources() for one in program.outvars]


def _of_all(sources: list[Sources], kind: str) -> Sources:
    """Return the sources of what an equation of this kind computes, but for their places and stacks."""
    read, direct, turned = (
        _NOTHING.union(*(getattr(one, name) for one in sources)) for name in ("read", "direct", "turned")
    )
    differentiated = _NOTHING.union(*(one.differentiated for one in sources))
    return Sources(
        differentiated=_NOTHING if kind == "stop_gradient" else differentiated,
        read=read,
        direct=direct,
        same=sources[0].same if kind in _SAME else None,
        entries=_entries(sources, kind),
        turned=turned | read if kind == "transpose" else turned,
        rows=frozenset[tuple[int, int]]().union(*(one.rows for one in sources)),
    )


def _entries(sources: list[Sources], kind: str) -> int | None:
    """Return of which argument the result has entries: of none where it is computed from it otherwise too."""
    if kind not in _SAME | TAKING | OF_ONE_VALUE:
        return None
    for one in sources:
        if one.entries is not None and sum(one.entries in other.read for other in sources) == 1:
            return one.entries
    return None


def _places(
    sources: list[Sources], equation: Any, result: int
) -> tuple[frozenset[tuple[int, int]], frozenset[int]]:
    """Return the arguments whose entries stand in a result as they did, and those with entries elsewhere."""
    kept, held = set(), set()
    moved = _NOTHING.union(  # a single number moves nothing
        *(one.moved for one, other in zip(sources, equation.invars, strict=True) if other.aval.shape)
    )
    for operand, one in enumerate(sources):
        for number, repeated in one.places:
            held.add(number)
            place = place_kept(equation, operand, result, repeated)
            if place is not None and number not in moved:
                kept.add((number, place))
    if not holds_entries(equation.primitive.name) or not equation.outvars[result].aval.shape:
        return frozenset(kept), _NOTHING
    return frozenset(kept), moved | held - {number for number, _ in kept}


def _whole(sources: list[Sources], equation: Any, result: int) -> frozenset[int]:
    """Return the arguments whose first axis a result has: of all that is computed from them."""
    kept = [
        one.whole if one.whole and keeps_stack(equation, operand, result) else _NOTHING
        for operand, one in enumerate(sources)
    ]
    lost = [  # a single number, as the norm of all, brings nothing out of its order
        one.read - own
        for one, own, variable in zip(sources, kept, equation.invars, strict=True)
        if variable.aval.shape
    ]
    return _NOTHING.union(*kept).difference(*lost)


def _differ(several: list[Sources]) -> bool:
    """Return whether these hold the entries of different arguments, of which one is chosen."""
    return len({one.placed for one in several if one.placed}) > 1


def _joined(one: Sources, other: Sources) -> Sources:
    """Return the sources of a value that is either of two, by a branch or in different rounds."""

    def in_each(first: frozenset[int], second: frozenset[int]) -> frozenset[int]:
        return (first | second) - (one.read - first) - (other.read - second)

    placed = _NOTHING if _differ([one, other]) else in_each(one.placed, other.placed)
    places = frozenset(pair for pair in one.places | other.places if pair[0] in placed)
    return Sources(
        differentiated=one.differentiated | other.differentiated,
        read=one.read | other.read,
        direct=one.direct | other.direct,
        same=one.same if one.same == other.same else None,
        entries=one.entries if one.entries == other.entries else None,
        places=places,
        moved=(one.moved | other.moved | one.placed | other.placed) - placed,
        turned=one.turned | other.turned,
        whole=in_each(one.whole, other.whole),
        rows=one.rows | other.rows,
    )


def in_body(parameters: dict[str, Any], sources: list[Sources], depth: int) -> list[Sources]:
    """Return the sources of what the body of a scan is given: of what it carries, in any round."""
    return _scanned(parameters, sources, depth)[0]


def _of_scan(sources: list[Sources], parameters: dict[str, Any], depth: int) -> list[Sources]:
    carried = parameters["num_carry"]
    given, results = _scanned(parameters, sources, depth)
    first = parameters["num_consts"]
    return [*given[first : first + carried], *(one.stacked(depth) for one in results[carried:])]


def _scanned(
    parameters: dict[str, Any], sources: list[Sources], depth: int
) -> tuple[list[Sources], list[Sources]]:
    consts, carried = parameters["num_consts"], parameters["num_carry"]
    rows = [one.row(depth) for one in sources[consts + carried :]]
    return _in_any_round(parameters["jaxpr"], sources[: consts + carried] + rows, consts, carried, depth)


def _of_while(sources: list[Sources], parameters: dict[str, Any], depth: int) -> list[Sources]:
    first, consts = parameters["cond_nconsts"], parameters["body_nconsts"]
    given = sources[first:]
    carried = len(given) - consts
    return _in_any_round(parameters["body_jaxpr"], given, consts, carried, depth)[0][consts:]


def _in_any_round(
    body: Any, given: list[Sources], consts: int, carried: int, depth: int
) -> tuple[list[Sources], list[Sources]]:
    """Return what a body is given in any of its rounds, and what it gives."""
    before: list[Sources] = []
    results: list[Sources] = []
    while given != before:
        before = given
        results = _through(body, given, depth + 1)
        carry = [
            _joined(one, result.later(depth))
            for one, result in zip(given[consts : consts + carried], results[:carried], strict=True)
        ]
        given = [*given[:consts], *carry, *given[consts + carried :]]
    return given, results

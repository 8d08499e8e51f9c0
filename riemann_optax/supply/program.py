"""Reading values out of the middle of a computation: marks in a function, found again in its jaxpr."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax.supply.flow import (
    Lead,
    flow,
    leads_in_scan,
    leads_of,
    read_on_in_scan,
    uses_beside,
    wanted,
)
from riemann_optax.supply.inlining import Program, before_copies, copies_for_marks, inlined, is_variable
from riemann_optax.supply.marks import (
    BORDER,
    NORMALISED,
    OUTPUTS,
    OWN,
    SEEN,
    UNSEEN,
    inner,
    mark_name,
    mark_names,
    number_stacked,
)
from riemann_optax.supply.nonlinearity import Piece, Reading
from riemann_optax.supply.sources import Sources, in_body, of_argument, origins_of


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


# JAX keeps what it has traced under a key of which this is a part. With a value of its own an evaluation
# traces everything anew: what is kept of an earlier one has no marks, or those of another.
_EVALUATION = jax.make_user_context(None)

# By the names of marks; several, where what JAX has traced once is called several times.
Found = dict[str, list[Marked]]
# Is given a program, the results wanted of it, what layers make of each argument, and sources of variables.
Examination = Callable[[Program, set[Any], dict[int, set[Any]], Callable[[Any], Sources]], None]


def marked_values(function: Callable[..., Any], *arguments: Any, examine: Examination | None = None) -> Found:
    """Return what is found at the marks in a function, by their names; ``examine`` is shown its program.

    A value that is marked as ``OUTPUTS``, ``SEEN`` or ``BORDER`` is not returned: a nonlinearity ends there.
    A mark in the body of a ``scan`` gives the values of all rounds, along a new first axis.

    Raises:
      ValueError: for a mark in the body of another loop or of a branch.
    """
    with _EVALUATION(object()):
        closed = jax.make_jaxpr(function)(*arguments)
    leaves = jax.tree.leaves(arguments)
    sources = [of_argument(number) for number in range(len(leaves))]
    found: Found = {}
    leads = [Lead()] * len(closed.jaxpr.outvars)
    _evaluate(closed.jaxpr, closed.consts, leaves, sources, leads, found, examine=examine)
    return found


def _evaluate(
    jaxpr: Any,
    consts: Any,
    arguments: Any,
    sources: list[Sources],
    leads: list[Lead],
    found: Found,
    derived: bool = False,
    depth: int = 0,
    examine: Examination | None = None,
) -> list[Any]:
    """Evaluate a jaxpr, collect what is marked in it, and return the results.

    ``leads`` says where the results lead, ``derived`` whether differentiation has made the jaxpr, and
    ``depth`` in how many scans it stands.
    """
    program = inlined(jaxpr, consts, derived)
    ways = flow(program, leads)
    values: dict[Any, Any] = dict(zip(program.constvars, program.consts, strict=True))
    values.update(zip(program.invars, arguments, strict=True))
    origins = origins_of(program, sources, depth)

    def read(one: Any) -> Any:
        return values[one] if is_variable(one) else one.val

    def origin(one: Any) -> Sources:
        return origins.get(one, Sources()) if is_variable(one) else Sources()

    marks: list[tuple[str, Any, Any, Any]] = []
    norms: dict[str, Any] = {}
    made_of_leaves: dict[int, set[Any]] = {}
    made_of_one: dict[int, set[Any]] = {}  # of what is computed from no other, as one that a step has changed
    copies = copies_for_marks(program)
    for equation in program.eqns:
        incoming = [read(one) for one in equation.invars]
        given = [origin(one) for one in equation.invars]
        name = mark_name(equation)
        if name is not None:
            if name.startswith(OWN):
                for leaf in given[1].read:
                    made_of_leaves.setdefault(leaf, set()).add(before_copies(equation.invars[2], copies))
                    if len(given[1].read) == 1:
                        made_of_one.setdefault(leaf, set()).add(before_copies(equation.invars[2], copies))
            elif name.startswith(NORMALISED):
                norms[number_stacked(name)[0]] = equation.invars[0]
            elif number_stacked(name)[0] not in (OUTPUTS, SEEN, BORDER):
                marks.append((name, *equation.invars))
            values.update(zip(equation.outvars, incoming[:1], strict=True))
            continue
        own = leads_of(equation.outvars, ways)
        results = _results(equation, incoming, given, own, found, depth)
        values.update(zip(equation.outvars, results, strict=True))
    for leaf in uses_beside(program, wanted(program, leads), made_of_leaves, origin):
        found.setdefault(f"{UNSEEN}/{leaf}+0", []).append(
            Marked(jnp.zeros([]), jnp.zeros([]), Sources(), True)
        )
    if examine is not None:
        for name, variable, weights, _ in marks:  # also of a layer that the user tells of
            signal, number = name.split("/")[:2]
            own_leaf = origin(before_copies(weights, copies)).read
            if signal == "activities" and number.isdigit() and own_leaf == {int(number)}:
                made_of_one.setdefault(int(number), set()).add(before_copies(variable, copies))
        examine(program, wanted(program, leads), made_of_one, origin)
    reading = Reading(program, copies, wanted(program, leads), ways.read_on, ways.goes_on)
    normalised = {
        before_copies(one, copies): norms[f"{name}-sent"]
        for name, one in norms.items()
        if f"{name}-sent" in norms
    }
    for name, variable, weights, sent in marks:
        marked = Marked(
            read(variable),
            _sent_on(variable, copies, reading, read, {} if number_stacked(name)[1] else normalised),
            _of_weights(origin(before_copies(weights, copies)), origin(weights)),
            ways.learns(before_copies(sent, copies)),
        )
        found.setdefault(name, []).append(marked)
    return [read(one) for one in program.outvars]


def _of_weights(weights: Sources, marked: Sources) -> Sources:
    """Return the sources of weights, whose stack a mark has the first axis of."""
    places = weights.places | marked.places  # the mark brings the axis of the examples to the front
    return weights._replace(whole=marked.whole, turned=marked.turned, places=places)


def _sent_on(
    variable: Any, copies: dict[Any, Any], reading: Reading, read: Callable[[Any], Any], norms: dict[Any, Any]
) -> Any:
    """Return what is sent on of a marked variable, its axes in the order of the mark.

    A layer and the normalisation behind it are one: ``norms`` has, by what they are given, what they send.
    """
    first = before_copies(variable, copies)
    if not is_variable(first):
        return read(variable)
    given = read(variable)
    norm = next((norms[one] for one in reading.converted(first) if one in norms), None)
    if norm is not None and norm.aval.shape[-1:] == given.shape[-1:]:
        return _sent_on(norm, copies, reading, read, {})
    permutations, one = [], variable
    while one is not first:
        permutations.append(copies[one].params.get("permutation"))
        one = copies[one].invars[0]
    value = _joined(reading.sent_on(first), read)
    for permutation in filter(None, reversed(permutations)):
        value = jnp.transpose(value, permutation)
    # A window over the units themselves has mixed them.
    return value if value.shape[-1:] == given.shape[-1:] else given


def _joined(pieces: list[Piece], read: Callable[[Any], Any]) -> Any:
    """Return the pieces of what a layer sends on, side by side."""
    parts = [piece.units.taken(read(piece.variable)) for piece in pieces]
    if len(parts) == 1:
        return parts[0]
    parts = [part[..., piece.start : piece.stop] for part, piece in zip(parts, pieces, strict=True)]
    return jnp.concatenate(parts, axis=-1)


def _results(
    equation: Any,
    incoming: list[Any],
    sources: list[Sources],
    leads: list[Lead],
    found: Found,
    depth: int,
) -> list[Any]:
    kind = equation.primitive.name
    marked = [name for inside in inner(equation) for name in mark_names(inside)]
    if kind == "scan" and marked:
        return _scan(equation, incoming, sources, leads, found, depth)
    read = frozenset[int]().union(*(one.read for one in sources))
    if any(_may_be_of(name, read) for name in marked):
        raise ValueError(
            f"a layer inside of {kind} cannot be observed: its values differ from call to call; "
            "use jax.lax.scan or a Python loop there, or keep its parameters out of this phi "
            "(optax.partition)."
        )
    bound = equation.primitive.get_bind_params(equation.params)
    functions, parameters = ((), bound) if isinstance(bound, dict) else bound  # the pair until JAX 0.9
    with equation.ctx.manager:
        results = equation.primitive.bind(*functions, *incoming, **parameters)
    return list(results) if equation.primitive.multiple_results else [results]


def _may_be_of(name: str, leaves: frozenset[int]) -> bool:
    """Return whether a mark, ``SIGNAL/LEAF/NUMBER``, may be of one of these leaves."""
    _, *leaf = number_stacked(name)[0].split("/")[:2]
    return bool(leaf) and (bool(leaves) if leaf[0] == "None" else int(leaf[0]) in leaves)


def _scan(
    equation: Any,
    incoming: list[Any],
    sources: list[Sources],
    leads: list[Lead],
    found: Found,
    depth: int,
) -> list[Any]:
    parameters = equation.params
    jaxpr, consts, carried = (parameters[name] for name in ("jaxpr", "num_consts", "num_carry"))
    fixed, start, rows = incoming[:consts], incoming[consts : consts + carried], incoming[consts + carried :]
    ways = read_on_in_scan(parameters, leads_in_scan(parameters, leads))
    origins = in_body(parameters, sources, depth)
    known: dict[str, list[tuple[Sources, bool]]] = {}

    def body(carry: Any, row: Any) -> Any:
        inside: Found = {}
        given = [*fixed, *carry, *row]
        results = _evaluate(
            jaxpr.jaxpr, jaxpr.consts, given, origins, ways, inside, equation.derived, depth + 1
        )
        known.update({name: [(one.sources, one.learns) for one in marked] for name, marked in inside.items()})
        arrays = {name: [(one.value, one.sent_on) for one in marked] for name, marked in inside.items()}
        return results[:carried], (results[carried:], arrays)

    length, reverse = parameters["length"], parameters["reverse"]
    carry, (stacked, arrays) = jax.lax.scan(body, start, rows, length=length, reverse=reverse)
    for name, pairs in arrays.items():
        for (value, sent_on), about in zip(pairs, known[name], strict=True):
            found.setdefault(name, []).append(Marked(value, sent_on, *about))
    return [*carry, *stacked]

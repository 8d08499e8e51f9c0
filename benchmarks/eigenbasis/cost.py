"""What an eigenbasis costs, counted and not timed.

Memory is that of the state ``tx.init`` would allocate for a square matrix. Operations are those of the
products in the traced update (a multiplication and an addition are two), of each QR decomposition 8/3 n^3
(4/3 for R, 4/3 for Q), on the matrices of a Transformer's layer; a training step is six operations per weight
and token.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.table import Table

import riemann_optax as ro
from benchmarks.eigenbasis.methods import NARROW, metric_with_momentum
from benchmarks.shared import terminal

SIZE = 1024
TOKENS = (8192, 524_288)
WIDTHS = (768, 2048)
EVERY = (10, 50)


def metric(**options: Any) -> optax.GradientTransformation:
    """Build the metric with Nesterov momentum in the eigenbasis, refreshed by Householder QR."""
    return ro.in_eigenbasis(metric_with_momentum(), orthonormalisation="householder", **options)


# Each with the bytes per weight that its state may have at most.
OPTIMISERS: dict[str, tuple[Callable[[], optax.GradientTransformation], float | None]] = {
    "Adam": (lambda: optax.adam(1.0), None),
    "Muon": (lambda: optax.contrib.muon(1.0), None),
    "Adam in the eigenbasis": (lambda: ro.in_eigenbasis(optax.scale_by_adam()), None),
    "metric in the eigenbasis": (metric, 24),
    "the same, factors and bases bf16": (lambda: metric(state_dtype=NARROW), 16),
    "the same, one-sided": (lambda: metric(state_dtype=NARROW, sides="smaller"), 12),
}


def state_bytes(tx: optax.GradientTransformation) -> float:
    """Return the bytes of state per weight of a square matrix, counters left out."""
    state = jax.eval_shape(tx.init, {"w": jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)})
    total = sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(state) if s.shape)
    return total / SIZE**2


def operations(jaxpr: Any) -> Iterator[tuple[str, float, bool]]:
    """Yield kind, operations, and whether it is in a branch, of each product and decomposition."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            output = math.prod(equation.outvars[0].aval.shape)
            yield "product", 2.0 * output * math.prod(shape[axis] for axis in contracted), False
        elif name in ("qr", "householder_product", "geqrf", "eigh"):
            shape = equation.invars[0].aval.shape
            share = {"qr": 8 / 3, "eigh": math.nan}.get(name, 4 / 3)
            yield name, share * math.prod(shape) * shape[-1], False
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found = list(operations(inner))
                    if name == "cond" and any(kind == "eigh" for kind, _, _ in found):
                        continue  # once in a run
                    yield from ((kind, cost, name == "cond" or branch) for kind, cost, branch in found)


def share_of_a_step(width: int, update_every: int, tokens: int) -> tuple[float, float]:
    """Return the operations of turning, and of refreshing, over those of a training step."""
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width)}
    shapes |= {"down": (4 * width, width)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    # All at one step: work that is spread over steps is compiled once for all sides of one size.
    tx = metric(update_every=update_every, refresh_together=None)
    traced = jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params)).jaxpr
    step = 6.0 * sum(math.prod(shape) for shape in shapes.values()) * tokens
    costs = list(operations(traced))
    turning = sum(cost for _, cost, branch in costs if not branch)
    refreshing = sum(cost for _, cost, branch in costs if branch) / update_every
    return turning / step, refreshing / step


class Counts(NamedTuple):
    """What was counted.

    Attributes:
      state: bytes per weight, by optimiser.
      shares: rows of width, steps between refreshes, tokens in a batch, and what turning and refreshing add
        to the operations of a training step.
    """

    state: dict[str, float]
    shares: list[tuple[int, int, int, float, float]]


def count() -> Counts:
    """Count the state of all optimisers, and the operations at all widths."""
    shares = [
        (width, every, tokens, *share_of_a_step(width, every, tokens))
        for width in WIDTHS
        for every in EVERY
        for tokens in TOKENS
    ]
    return Counts({name: state_bytes(make()) for name, (make, _) in OPTIMISERS.items()}, shares)


def tables(found: Counts) -> list[Table]:
    """Lay out what was counted."""
    state = [
        [name, f"{size:.1f}", "" if OPTIMISERS[name][1] is None else f"{OPTIMISERS[name][1]:g}"]
        for name, size in found.state.items()
    ]
    shares = [
        [str(width), str(every), str(tokens), f"{turning:.2%}", f"{refreshing:.2%}"]
        for width, every, tokens, turning, refreshing in found.shares
    ]
    memory = terminal.table("State of a square matrix", ["optimiser", "bytes per weight", "at most"], state)
    memory.caption = "SOAP's public JAX code keeps 43."
    headings = ["width", "refresh every", "tokens in a batch", "turning", "refreshing"]
    operations = terminal.table("Operations, share of a training step", headings, shares, left=())
    return [memory, operations]


def content(found: Counts) -> dict[str, Any]:
    """Return what was counted, for the record."""
    return {
        "state_bytes_per_weight": found.state,
        "columns": ["width", "update_every", "tokens", "turning", "refreshing"],
        "share_of_a_training_step": found.shares,
    }

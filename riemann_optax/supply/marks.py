"""Marks in a function: identities that are found again in its jaxpr.

A mark may stand inside of ``vmap``, ``jit``, ``remat`` and ``scan``, where a value that is put into a list
would be a leaked tracer.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Marks at which a nonlinearity ends: what the user calls the model's outputs, what a library gives as those
# of an outermost module, and what a layer is given.
OUTPUTS, SEEN, BORDER = "outputs", "seen", "border"
OWN = "own"  # with a leaf's number and one of the call: what a layer makes of its weight
UNSEEN = "unseen"  # not a mark: with a leaf's number, a use of its entries that no layer shows
NORMALISED = "normalised"  # with a number, what a normalisation is given; with -sent, what it makes of it
_PREFIX = "riemann_optax/"
# What a program calls without changing how often it runs: its inside is read as if it stood there.
CALLS = re.compile("^(p?jit|remat2?|checkpoint|closed_call|core_call|custom_[jv]{1,2}[jv]?p?_call(_jaxpr)?)$")

# What computes each entry of its result from the same entries of what it is given.
OF_ONE_VALUE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh"),
    *("bessel_i0e", "bessel_i1e", "broadcast_in_dim", "cbrt", "ceil", "clamp", "convert_element_type"),
    *("copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp"),
    *("exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log"),
    *("log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "rem", "round"),
    *("rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub"),
    *("tan", "tanh"),
}


def mark(name: str, value: Any, features: int = 0, weights: Any = None, sent: Any = None) -> None:
    """Mark a value, to be found again by :func:`riemann_optax.supply.program.marked_values`.

    Inside of ``vmap`` the axis of the examples comes first in what is found, wherever it lies there; and that
    of weights which are stacked comes before the last ``features`` axes, also of a value that is the same
    for all of them. The name then ends with ``+`` and the number of such axes. ``sent`` is what the layer
    gives, by which is told whether a gradient flows through its call; None tells it by the weights alone.
    """
    weights = jnp.asarray(0 if weights is None else weights)
    sent = weights if sent is None else jnp.asarray(sent)
    # A function with a rule for vmap has none for gradients, and none are wanted of a mark.
    _marking(name, features, 0)(*jax.lax.stop_gradient((jnp.asarray(value), weights, sent)))


@functools.cache
def _marking(name: str, features: int, stacked: int) -> Callable[[Any, Any, Any], Any]:
    @jax.custom_batching.custom_vmap
    def marked(value: Any, weights: Any, sent: Any) -> Any:
        del weights, sent
        return checkpoint_name(value, f"{_PREFIX}{name}+{stacked}")

    @marked.def_vmap
    def of_many(size: int, batched: list[bool], value: Any, weights: Any, sent: Any) -> Any:
        of_examples, of_weights, _ = batched
        if not of_weights:
            return _marking(name, features, stacked)(value, weights, sent), True
        if not of_examples:
            value = jnp.broadcast_to(value, (size, *value.shape))
        place = value.ndim - features - stacked - 1
        order = (*range(1, place + 1), 0, *range(place + 1, value.ndim))
        value = jax.lax.transpose(value, order) if place else value  # jnp.moveaxis would hide it in a jit
        return _marking(name, features, stacked + 1)(value, weights, sent), True

    return marked


def number_stacked(name: str) -> tuple[str, int]:
    """Return the name that was given to a mark, and how many axes of stacked weights its value has."""
    given, _, stacked = name.rpartition("+")
    return given, int(stacked)


def mark_name(equation: Any) -> str | None:
    """Return the name of a mark, which stands in a call of its own."""
    if equation.primitive.name != "custom_vmap_call":
        return None
    inside = opened(equation.params["call"]).eqns
    name = inside[0].params.get("name") if len(inside) == 1 and inside[0].primitive.name == "name" else None
    return name.removeprefix(_PREFIX) if isinstance(name, str) and name.startswith(_PREFIX) else None


def mark_names(jaxpr: Any) -> Iterator[str]:
    """Yield the names of the marks in a jaxpr, and in what it calls."""
    for equation in opened(jaxpr).eqns:
        name = mark_name(equation)
        if name is not None:
            yield name
        else:
            for one in inner(equation):
                yield from mark_names(one)


def has_marks(jaxpr: Any, names: tuple[str, ...] = ()) -> bool:
    """Return whether there is a mark in a jaxpr, or in what it calls: one of these names, or any."""
    return any(not names or number_stacked(name)[0] in names for name in mark_names(jaxpr))


def opened(jaxpr: Any) -> Any:
    """Return the jaxpr without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def inner(equation: Any) -> list[Any]:
    """Return the jaxprs among the parameters of an equation."""
    inside = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda node: hasattr(node, "eqns"))
    return [node for node in inside if hasattr(node, "eqns")]

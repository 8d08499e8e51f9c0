"""A traced function evaluated once, by NumPy: XLA would take seconds to compile what runs in milliseconds."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

# Narrower floats are JAX's: NumPy would sum them in their own precision.
_DTYPES = {np.dtype(t) for t in (bool, np.int32, np.uint32, np.float32, np.float64)}
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}


def _select(which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(which, cases)


def _broadcast(x: Any, *, shape: tuple[int, ...], broadcast_dimensions: tuple[int, ...]) -> Any:
    own = dict(zip(broadcast_dimensions, np.shape(x), strict=True))
    return np.broadcast_to(np.reshape(x, [own.get(axis, 1) for axis in range(len(shape))]), shape)


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    return x[tuple(map(slice, start_indices, limit_indices, strides or [1] * np.ndim(x)))]


def _cumsum(x: Any, *, axis: int, reverse: bool) -> Any:
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)


def _stack(*arrays: Any, axis: int) -> Any:
    return np.stack(arrays, axis)


def _concatenate(*arrays: Any, dimension: int) -> Any:
    return np.concatenate(arrays, dimension)


def _dynamic_slice(x: Any, *starts: Any, slice_sizes: tuple[int, ...]) -> Any:
    rows = zip(np.shape(x), starts, slice_sizes, strict=True)
    begins = [(max(0, min(int(start), length - size)), size) for length, start, size in rows]
    return x[tuple(slice(begin, begin + size) for begin, size in begins)]


# From the name of a primitive to a NumPy function and the parameters that it takes.
_Function = tuple[Callable[..., Any], tuple[str, ...]]
_FUNCTIONS: dict[str, _Function] = {
    **{name: (getattr(np, name), ()) for name in ("abs", "sign", "sqrt", "exp", "log", "log1p", "expm1")},
    **{name: (getattr(np, name), ()) for name in ("square", "tanh", "floor", "ceil")},
    "neg": (np.negative, ()),
    "rsqrt": (lambda x: 1 / np.sqrt(x), ()),
    "is_finite": (np.isfinite, ()),
    "integer_pow": (lambda x, y: np.power(x, y), ("y",)),
    "add": (np.add, ()),
    "sub": (np.subtract, ()),
    "mul": (np.multiply, ()),
    "max": (np.maximum, ()),
    "min": (np.minimum, ()),
    "pow": (np.power, ()),
    "eq": (np.equal, ()),
    "ne": (np.not_equal, ()),
    "lt": (np.less, ()),
    "le": (np.less_equal, ()),
    "gt": (np.greater, ()),
    "ge": (np.greater_equal, ()),
    "select_n": (_select, ()),
    "convert_element_type": (lambda x: x, ()),  # every result is cast to the dtype that JAX has for it
    "broadcast_in_dim": (_broadcast, ("shape", "broadcast_dimensions")),
    "squeeze": (lambda x, dimensions: np.squeeze(x, axis=dimensions), ("dimensions",)),
    "copy": (np.copy, ()),
    "transpose": (lambda x, permutation: np.transpose(x, permutation), ("permutation",)),
    "reduce_sum": (lambda x, axes: np.sum(x, axis=axes), ("axes",)),
    "reduce_max": (lambda x, axes: np.max(x, axis=axes), ("axes",)),
    "reduce_min": (lambda x, axes: np.min(x, axis=axes), ("axes",)),
    "cumsum": (_cumsum, ("axis", "reverse")),
    "stack": (_stack, ("axis",)),
    # Older JAX makes a stack and an element of these.
    "concatenate": (_concatenate, ("dimension",)),
    "dynamic_slice": (_dynamic_slice, ("slice_sizes",)),
    "slice": (_slice, ("start_indices", "limit_indices", "strides")),
}
_OF_FLOATS: dict[str, _Function] = {"div": (np.divide, ())}  # NumPy rounds quotients of integers otherwise


def evaluate(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Return the results of a traced function, with JAX's own evaluation of what is not listed above.

    Args:
      closed: the function, from ``jax.make_jaxpr``.
      *arguments: its flat arguments, arrays.
    """
    with np.errstate(all="ignore"):
        return _run(closed.jaxpr, closed.consts, arguments)


def _run(jaxpr: Jaxpr, consts: Any, arguments: Any) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in _needed(jaxpr):
        results = _apply(jaxpr, equation, [value(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """Return the equations that the results depend on: of an update, those before its last stages."""
    wanted = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not wanted.isdisjoint(equation.outvars):
            kept.append(equation)
            wanted.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return kept[::-1]


def _apply(jaxpr: Jaxpr, equation: Any, arguments: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        inner = params[_CALLS[name]]
        return _run(inner.jaxpr, inner.consts, arguments)
    dtypes = [atom.aval.dtype for atom in (*equation.invars, *equation.outvars)]
    floats = all(np.issubdtype(dtype, np.floating) for dtype in dtypes if isinstance(dtype, np.dtype))
    function = _FUNCTIONS.get(name) or (_OF_FLOATS.get(name) if floats else None)
    if function is None or not _DTYPES.issuperset(dtypes):
        given = [
            (a, x) for a, x in zip(equation.invars, arguments, strict=True) if not isinstance(a, Literal)
        ]
        parts = {"invars": [a for a, _ in given], "outvars": equation.outvars, "eqns": [equation]}
        # Made from the whole, whose information for debuggers JAX demands of a new one.
        alone = jaxpr.replace(constvars=[], effects=equation.effects, **parts)
        return list(jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(x for _, x in given)))
    compute, wanted = function
    result = compute(*map(np.asarray, arguments), **{key: params[key] for key in wanted})
    return [np.asarray(result, equation.outvars[0].aval.dtype)]


def is_small(tree: Any, most: int = 2**24) -> bool:
    """Return whether a tree has so few numbers, each on one device, that NumPy is the quicker."""
    arrays = jax.tree.leaves(tree)
    alone = all(len(leaf.sharding.device_set) == 1 for leaf in arrays if isinstance(leaf, jax.Array))
    return alone and sum(np.size(leaf) for leaf in arrays) <= most

"""What the phis share: running means, copies of the parameters and random probes."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _tree

T = TypeVar("T")


def running_mean(new: Any, mean: Any, decay: Any) -> Any:
    """Return ``decay * mean + (1 - decay) * new`` per leaf, in the working dtype of ``new``."""
    return jax.tree.map(averaging(decay), new, mean)


def averaging(decay: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the function of a new value and a running mean that :func:`running_mean` maps over leaves."""

    @functools.cache  # scalars once per dtype, not per leaf, because each takes time to compile
    def shares(dtype: Any) -> tuple[jax.Array, jax.Array]:
        rate = jnp.asarray(decay).astype(dtype)
        return rate, 1 - rate

    def average(x: jax.Array, m: jax.Array) -> jax.Array:
        old, new = shares(x.dtype)
        return old * m.astype(x.dtype) + new * x

    return average


def debias(mean: Any, decay: Any, count: jax.Array) -> Any:
    """Divide a running mean by ``1 - decay**count``, the total weight of its ``count`` terms."""

    @functools.cache
    def inverse_weight(dtype: Any) -> jax.Array:
        rate = jnp.asarray(decay).astype(dtype)
        inverse: jax.Array = 1 / (1 - rate ** count.astype(dtype))
        return inverse

    # Multiply: XLA would store a quotient per weight in new memory if it is used twice.
    return jax.tree.map(lambda m: m * inverse_weight(m.dtype), mean)


def newest_weight(decay: Any, count: jax.Array) -> jax.Array:
    """Return the weight of the newest of ``count`` terms in a bias-corrected running mean.

    ``mean += weight * (new - mean)`` gives exactly that mean; a decay of 1 makes it the plain mean.
    """
    rate = wide_scalar(1.0 - decay)
    number = count.astype(rate.dtype)
    # 1 - decay**count without its cancellation for a decay near 1, where the limit is 1 / count; at 0, where
    # the logarithm has no derivative, that of the newest alone.
    newest = rate >= 1
    total = -jnp.expm1(number * jnp.log1p(-jnp.where(newest, 0.5, rate)))
    total = jnp.where(newest, jnp.where(number == 1, rate, 1.0), total)
    plain = rate == 0
    return jnp.where(plain, 1 / number, rate / jnp.where(plain, 1.0, total))


def cast_like(tree: Any, reference: Any) -> Any:
    """Cast each leaf to the dtype of the reference leaf: state keeps its dtype from ``init`` on."""
    return jax.tree.map(lambda x, r: narrowed(x, r.dtype), tree, reference)


def real(leaf: Any) -> jax.Array:
    """Return the leaf in the working dtype; if it is complex, its magnitude."""
    return _tree.magnitude(leaf) if jnp.iscomplexobj(leaf) else _tree.to_working_dtype(leaf)


def narrowed(array: jax.Array, dtype: Any) -> jax.Array:
    """Cast, at most to the largest number of the dtype: an infinite mean would freeze its weight for good."""
    if np.dtype(dtype).itemsize >= array.dtype.itemsize or jnp.iscomplexobj(array):
        return array.astype(dtype)
    largest = float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return jnp.clip(array, -largest, largest).astype(dtype)


def applied_change(params: Any, previous: Any, count: jax.Array) -> Any:
    """Return ``params - previous`` in the working dtype; 0 at the first update, without a previous value."""

    def change(p: jax.Array, q: jax.Array) -> jax.Array:
        dtype = _tree.wide_dtype(p)
        difference = p.astype(dtype) - q.astype(dtype)
        return jnp.where(count == 0, jnp.zeros_like(difference), difference)

    return jax.tree.map(change, params, previous)


def add(total: Any, increment: Any) -> Any:
    """Add in the dtype of the increment; the sum keeps its own."""
    return jax.tree.map(lambda t, x: narrowed(t.astype(x.dtype) + x, t.dtype), total, increment)


def first_or(new: Any, old: Any, count: jax.Array) -> Any:
    """Return ``new`` at the first update and ``old`` from then on."""
    return jax.tree.map(lambda n, o: jnp.where(count == 0, narrowed(n, o.dtype), o), new, old)


def in_working_dtype(values: Any, reference: Any) -> Any:
    """Cast values to the working dtype of the reference."""
    return jax.tree.map(lambda r, v: v.astype(_tree.working_dtype(r)), reference, values)


def zeros_of(params: optax.Params) -> Any:
    """Return zeros in the shapes and dtypes of the parameters, also of a weakly typed scalar: strong ones.

    A copy of the parameters takes their place, and a state must not change its type.
    """
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=jnp.result_type(leaf)), params)


def copy_like(params: Any, reference: Any) -> Any:
    """Copy ``params`` into state; an alias of a donated buffer would be a deleted array."""
    return jax.tree.map(lambda p, r: jnp.array(p, dtype=r.dtype, copy=True), params, reference)


def wide_scalar(value: Any) -> jax.Array:
    """Return a number as a scalar for state: float32, or float64 where 64-bit types are enabled.

    It is a copy: a caller's array may lie in the state of ``optax.inject_hyperparams`` and be donated.
    """
    return jnp.array(value, jnp.result_type(float), copy=True)


def extreme(reduction: Callable[..., jax.Array], tree: Any, empty: float) -> jax.Array:
    """Return ``jnp.min`` or ``jnp.max`` of a whole tree in its widest dtype; ``empty`` without leaves."""
    dtype = _tree.widest_dtype(tree)
    each = [reduction(leaf, initial=empty).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return reduction(jnp.stack(each)) if each else jnp.asarray(empty, dtype)


def scaled_to_unit(tree: Any) -> Any:
    """Return the tree with its smallest value moved to 0 and its largest to 1; 0 where all are equal."""
    low, high = extreme(jnp.min, tree, jnp.inf), extreme(jnp.max, tree, -jnp.inf)
    equal = high <= low
    width = jnp.where(equal, jnp.ones_like(high), high - low)

    def scale(value: jax.Array) -> jax.Array:
        share = (value.astype(low.dtype) - low) / width
        return jnp.where(equal, jnp.zeros_like(share), share).astype(value.dtype)

    return jax.tree.map(scale, tree)


def as_key(key: jax.Array | int) -> jax.Array:
    """Return a copy of a random key, or the key of an integer seed."""
    return jax.random.key(int(key)) if isinstance(key, int | np.integer) else jnp.array(key, copy=True)


def random_signs(key: jax.Array, params: Any) -> Any:
    """Return +1 or -1 for every weight, in the dtype and with the sharding of the weights."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    signs = [
        jnp.ones_like(leaf)
        * jax.random.rademacher(k, jnp.shape(leaf), dtype=jnp.int8).astype(_tree.dtype_of(leaf))
        for k, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, signs)


def probed_diagonal(
    state: Any, params: Any, product: Callable[[Any], Any], decay: Any
) -> tuple[optax.Updates, Any]:
    """Return the running mean of ``z * A z`` for random signs ``z``, an estimate of a diagonal.

    Args:
      state: with fields ``count``, ``key`` and ``diagonal``.
      params: the parameters.
      product: from a vector ``z`` to ``A z``.
      decay: of the running mean, which is bias-corrected.

    Returns:
      The estimate, and the next state.
    """
    count = optax.safe_increment(state.count)
    new_key, probe_key = jax.random.split(state.key)
    probes = random_signs(probe_key, params)
    estimates = jax.tree.map(_tree.inner, probes, product(probes))
    mean = running_mean(estimates, state.diagonal, decay)
    next_state = state._replace(count=count, key=new_key, diagonal=cast_like(mean, state.diagonal))
    return debias(mean, decay, count), next_state


@contextmanager
def forward_mode(name: str) -> Iterator[None]:
    """Say what to do where a function has a derivative in reverse mode alone."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            f"{name} differentiates forward, and something in the loss has only a jax.custom_vjp: give it a "
            "rule of both modes (of diffrax, adjoint=diffrax.DirectAdjoint()), or take a phi that needs "
            "gradients alone, such as secant_curvature."
        ) from error


def probed_state(kind: Callable[..., T], params: Any, key: jax.Array | int, state_dtype: Any) -> T:
    """Return the first state for :func:`probed_diagonal`."""
    return kind(
        count=jnp.zeros([], jnp.int32), key=as_key(key), diagonal=_tree.zeros_like(params, state_dtype)
    )


def check_coordinates(reader: str, state: optax.OptState, kind: type[Any]) -> None:
    """Raise ``ValueError`` where a state of this kind is inside of ``in_eigenbasis``, known by its bases."""

    def is_turned(node: Any) -> bool:
        return "left_bases" in getattr(type(node), "_fields", ())

    nodes = jax.tree.leaves(state, is_leaf=is_turned)
    if any(is_turned(node) and _tree.find_states(node, kind) for node in nodes):
        raise ValueError(
            f"{reader}: the phi that reads it works in the coordinates of in_eigenbasis, where its weights "
            "are not those of the model: keep it outside of in_eigenbasis."
        )

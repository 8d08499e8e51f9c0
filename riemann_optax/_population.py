"""Choices at run time that the members of a population under ``jax.vmap`` share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from riemann_optax._varying import varying_like


@jax.custom_batching.custom_vmap
def for_any(predicate: jax.Array) -> jax.Array:
    """Return whether a condition holds for any member: one value for all of them, and not one for each."""
    return predicate


@for_any.def_vmap
def _over_members(size: int, batched: list[bool], predicate: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched
    return for_any(jnp.any(predicate, axis=0)), False


@jax.custom_batching.custom_vmap
def own(predicate: jax.Array) -> jax.Array:
    """Return which members want what is computed because one of them does: alone, the one that there is.

    A constant, which XLA removes together with the choice.
    """
    return jnp.ones_like(predicate)


@own.def_vmap
def _of_each_member(size: int, batched: list[bool], predicate: jax.Array) -> tuple[jax.Array, bool]:
    del size
    return predicate, batched[0]


def when(
    predicate: jax.Array, function: Callable[..., Any], otherwise: Callable[..., Any], *operands: Any
) -> Any:
    """Return ``jax.lax.cond(predicate, function, otherwise, *operands)``, also under ``jax.vmap``.

    There ``jax.lax.cond`` would compute both for every member at every step, an eigendecomposition of each
    matrix too. Here ``function`` is computed when any member wants it, and each takes its own result.
    ``predicate`` is one boolean; both functions return trees of the same shapes and dtypes.
    """

    def for_those_who_want_it(*operands: Any) -> Any:
        new, old = function(*operands), otherwise(*operands)
        wanted = own(predicate)
        return jax.tree.map(lambda new, old: jnp.where(wanted, new, old), new, old)

    def of_one_type(branch: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands: varying_like(branch(*operands), (predicate, operands))

    return jax.lax.cond(
        for_any(predicate), of_one_type(for_those_who_want_it), of_one_type(otherwise), *operands
    )

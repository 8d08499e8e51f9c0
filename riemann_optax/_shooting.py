"""Shooting: which velocity leads to a point, found for longer and longer ways."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optimistix

PARTS = 16


def velocity_towards(
    end: Callable[[optax.Updates], optax.Params],
    start: optax.Params,
    displacement: optax.Updates,
    rtol: float,
) -> tuple[optax.Updates, jax.Array]:
    """Return the velocity at ``start`` with which a motion is at ``start + displacement`` at time 1.

    Found by Newton's method for the first of :data:`PARTS` equal parts of the way, for two of them, up to the
    whole, each from the one before. Beside it stands how many parts were found, one after the other; the
    velocity is NaN unless these are all.

    Args:
      end: maps the velocity at the start to the point at time 1; differentiable forward.
      start: where the motion starts.
      displacement: the other point minus ``start``.
      rtol: tolerance relative to the displacement.
    """
    # Points are known no better than to their rounding; near 0 it is that of a number of size 1.
    unit = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(start))  # type: ignore[no-untyped-call]
    rounding = 8 * unit * (1 + optax.tree.norm(start) + optax.tree.norm(displacement))
    newton: Any = optimistix.Newton(rtol=rtol, atol=0.1 * rtol * optax.tree.norm(displacement) + rounding)

    def miss(velocity: optax.Updates, wanted: optax.Updates) -> optax.Updates:
        return jax.tree.map(lambda e, s, d: e - s - d, end(velocity), start, wanted)

    def like_start(tree: optax.Updates) -> optax.Updates:
        return optax.tree.cast_like(tree, start)

    def longer(
        before: tuple[optax.Updates, jax.Array], number: jax.Array
    ) -> tuple[tuple[optax.Updates, jax.Array], None]:
        velocity, found = before
        guess = like_start(optax.tree.scale(number / jnp.maximum(number - 1, 1), velocity))
        wanted = like_start(optax.tree.scale(number / PARTS, displacement))
        solution: Any = optimistix.root_find(miss, newton, guess, args=wanted, throw=False)
        arrived = (solution.result == optimistix.RESULTS.successful) & (found == number - 1)
        return (solution.value, found + arrived), None

    first = like_start(optax.tree.scale(1 / PARTS, displacement))
    (velocity, found), _ = jax.lax.scan(longer, (first, jnp.zeros([], int)), jnp.arange(1, PARTS + 1))
    return jax.tree.map(lambda v: jnp.where(found == PARTS, v, jnp.nan), velocity), found

"""Shooting: which velocity leads to a point, found for longer and longer ways."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optimistix

LONGEST, SHORTEST = 2.0**-4, 2.0**-16
# A guess that needs more rounds of Newton's method is no good one: a shorter part is cheaper.
ROUNDS = 16


class _Reached(NamedTuple):
    """Two ways of which the velocities are known, and how much further the next one is to lead.

    Attributes:
      way: how much of the whole way is found, from 0 to 1.
      velocity: the velocity at the start that leads there at time 1.
      way_before: the way found before.
      velocity_before: its velocity.
      part: how much is added to ``way`` next.
    """

    way: jax.Array
    velocity: optax.Updates
    way_before: jax.Array
    velocity_before: optax.Updates
    part: jax.Array


def velocity_towards(
    end: Callable[[optax.Updates], optax.Params],
    start: optax.Params,
    displacement: optax.Updates,
    rtol: float,
) -> tuple[optax.Updates, jax.Array]:
    """Return the velocity at ``start`` with which a motion is at ``start + displacement`` at time 1.

    Found by Newton's method for a part of the way, then for longer and longer ones. Each begins on the
    straight line through the two velocities before it. A part is at most :data:`LONGEST` of the way; where
    Newton's method fails it is halved, down to :data:`SHORTEST`, and where it does not it is doubled.
    Beside the velocity stands how much of the way was found; the velocity is NaN unless this is 1.

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

    def is_left(reached: _Reached) -> jax.Array:
        return (reached.way < 1) & (reached.part >= SHORTEST)

    def longer(reached: _Reached) -> _Reached:
        # Parts are powers of 2, so that ways are exact in any precision.
        way = jnp.minimum(reached.way + reached.part, 1)
        slope = (way - reached.way) / jnp.maximum(reached.way - reached.way_before, SHORTEST)
        guess = jax.tree.map(lambda v, b: v + slope * (v - b), reached.velocity, reached.velocity_before)
        first = reached.way == 0
        guess = jax.tree.map(lambda g, d: jnp.where(first, way * d, g), guess, displacement)
        wanted = like_start(optax.tree.scale(way, displacement))
        solution: Any = optimistix.root_find(
            miss, newton, like_start(guess), args=wanted, max_steps=ROUNDS, throw=False
        )
        found = solution.result == optimistix.RESULTS.successful
        further = _Reached(
            way, solution.value, reached.way, reached.velocity, jnp.minimum(2 * reached.part, LONGEST)
        )
        again = reached._replace(part=reached.part / 2)
        chosen: _Reached = jax.tree.map(lambda yes, no: jnp.where(found, yes, no), further, again)
        return chosen

    nowhere, at_rest = jnp.zeros([]), optax.tree.zeros_like(start)
    reached = jax.lax.while_loop(
        is_left, longer, _Reached(nowhere, at_rest, nowhere, at_rest, jnp.full([], LONGEST))
    )
    return jax.tree.map(lambda v: jnp.where(reached.way == 1, v, jnp.nan), reached.velocity), reached.way

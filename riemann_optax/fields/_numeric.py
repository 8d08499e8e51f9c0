"""Integrals of a density along a displacement and their inverse, where no closed form is known."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Density = Callable[[jax.Array], jax.Array]

_POINTS, _SHARES = np.polynomial.legendre.leggauss(16)
# Python floats take the dtype of what they meet.
_NODES = [(float((1 + point) / 2), float(share / 2)) for point, share in zip(_POINTS, _SHARES, strict=True)]

_ITERATIONS = 40


def integrate(density: Density, start: jax.Array, displacement: jax.Array) -> jax.Array:
    """Return the integral of ``density`` over the segment from ``start`` to ``start + displacement``.

    Gauss-Legendre with 16 points on each side of 0, where metrics such as ``1 + abs(w)`` have a kink. The
    result is the displacement times a mean, so it keeps its relative accuracy however short the segment is.
    """
    end = start + displacement
    crosses = jnp.sign(start) * jnp.sign(end) < 0
    zero = jnp.zeros_like(start)
    first = _segment(density, start, jnp.where(crosses, -start, displacement))
    second = _segment(density, jnp.where(crosses, zero, start), jnp.where(crosses, end, displacement))
    return jnp.where(crosses, first + second, first)


def first_moment(density: Density, start: jax.Array, displacement: jax.Array) -> jax.Array:
    """Return the integral of ``(displacement - t) * density(start + t)`` over ``t``, kinks at 0 included."""
    end = start + displacement
    crosses = jnp.sign(start) * jnp.sign(end) < 0
    zero = jnp.zeros_like(start)

    def moment(origin: jax.Array, length: jax.Array) -> jax.Array:
        return _segment(lambda w: (end - w) * density(w), origin, length)

    first = moment(start, jnp.where(crosses, -start, displacement))
    second = moment(jnp.where(crosses, zero, start), jnp.where(crosses, end, displacement))
    return jnp.where(crosses, first + second, first)


def _segment(density: Density, start: jax.Array, displacement: jax.Array) -> jax.Array:
    total = jnp.zeros_like(start)
    for node, share in _NODES:
        total = total + share * density(start + node * displacement)
    # An empty segment on a pole has integral 0, not 0 * inf.
    return jnp.where(displacement == 0, jnp.zeros_like(total), displacement * total)


def invert(
    integral: Callable[[jax.Array, jax.Array], jax.Array],
    density: Density,
    start: jax.Array,
    amount: jax.Array,
) -> jax.Array:
    """Return the displacement from ``start`` whose ``integral(start, displacement)`` is ``amount``.

    Newton's method on the increasing function ``integral``, guarded: a proposal outside of the bracket known
    so far is replaced by the bracket's middle, or by twice the length as long as there is no upper end. The
    unknown is the displacement itself, so nothing cancels at short steps. A fixed number of iterations: a
    stopping test would be a collective under sharding.
    """
    sign = jnp.where(amount < 0, -jnp.ones_like(amount), jnp.ones_like(amount))
    target = jnp.abs(amount)
    rate = density(start)
    usable = jnp.logical_and(rate > 0, jnp.isfinite(rate))
    guess = jnp.where(usable, target / jnp.where(usable, rate, jnp.ones_like(rate)), target)

    def iterate(_: int, carry: Any) -> Any:
        length, low, high = carry
        displacement = sign * length
        missing = target - sign * integral(start, displacement)
        low = jnp.where(missing >= 0, jnp.maximum(low, length), low)
        high = jnp.where(missing <= 0, jnp.minimum(high, length), high)
        slope = density(start + displacement)
        usable = jnp.logical_and(slope > 0, jnp.isfinite(slope))
        newton = length + missing / jnp.where(usable, slope, jnp.ones_like(slope))
        inside = jnp.logical_and(newton >= low, newton <= high)
        bounded = jnp.isfinite(high)
        guarded = jnp.where(bounded, low / 2 + jnp.where(bounded, high, low) / 2, 2 * length)
        return jnp.where(jnp.logical_and(usable, inside), newton, guarded), low, high

    carry = (guess, jnp.zeros_like(guess), jnp.full_like(guess, jnp.inf))
    length, _, _ = jax.lax.fori_loop(0, _ITERATIONS, iterate, carry)
    return jnp.where(amount == 0, jnp.zeros_like(amount), sign * length)

"""Integrals of a density along a displacement, their inverse, and formulas that keep their digits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _tree

Density = Callable[[jax.Array], jax.Array]


def _nodes(number: int, power: int) -> list[tuple[float, float]]:
    """Return Gauss-Legendre points and weights of (0, 1) in ``t = u**power``, which gathers them at 0."""
    points, weights = np.polynomial.legendre.leggauss(number)
    # Python floats take the dtype of what they meet.
    return [
        (float(u**power), float(power * u ** (power - 1) * weight / 2))
        for u, weight in zip((1 + points) / 2, weights, strict=True)
    ]


_NODES = _nodes(24, 2)
_SHORT_NODES = _nodes(12, 1)

_ITERATIONS = 40
_REACHED = (
    1e-2  # the share of an amount that may be missing; more than any rounding, less than what never comes
)


def integrate(density: Density, start: jax.Array, displacement: jax.Array) -> jax.Array:
    """Return the integral of ``density`` over the segment from ``start`` to ``start + displacement``.

    Gauss-Legendre with 24 points on each side of 0, where metrics such as ``1 + abs(w)`` have a kink; the
    points are dense at the end next to 0, where metrics such as ``1/(w**2 + eps**2)`` are sharp. The result
    is the displacement times a mean, so it keeps its relative accuracy however short the segment is.
    """
    crosses, to_zero, end = _split(start, displacement)
    first = _segment(density, start, to_zero)
    second = _segment(density, jnp.where(crosses, jnp.zeros_like(start), start), end)
    return jnp.where(crosses, first + second, first)


def first_moment(density: Density, start: jax.Array, displacement: jax.Array) -> jax.Array:
    """Return the integral of ``(displacement - t) * density(start + t)`` over ``t``, kinks at 0 included."""
    crosses, to_zero, end = _split(start, displacement)
    zero = jnp.zeros_like(start)
    first = _segment(density, start, to_zero, lever=jnp.where(crosses, end, zero))
    second = _segment(density, jnp.where(crosses, zero, start), end, lever=zero)
    return jnp.where(crosses, first + second, first)


def short_moment(density: Density, start: jax.Array, displacement: jax.Array) -> jax.Array:
    """Return :func:`first_moment` where ``displacement`` is at most half of the way to the nearest pole.

    The poles are those in the complex plane; twelve points reach the rounding of float64.
    """
    terms = [share * (1 - node) * density(start + node * displacement) for node, share in _SHORT_NODES]
    # Not the square of the displacement, which underflows.
    return displacement * (displacement * sum(terms[1:], start=terms[0]))


def _split(start: jax.Array, displacement: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return whether a path crosses 0, and its way up to 0 and from there on; one that does not, twice."""
    end = start + displacement
    crosses = jnp.sign(start) * jnp.sign(end) < 0
    return crosses, jnp.where(crosses, -start, displacement), jnp.where(crosses, end, displacement)


def _segment(
    density: Density, start: jax.Array, displacement: jax.Array, lever: jax.Array | None = None
) -> jax.Array:
    """Integrate on one side of 0; given a ``lever``, times the way left to go plus that lever."""
    end = start + displacement
    inward = jnp.abs(end) < jnp.abs(start)
    nearest, outward = jnp.where(inward, end, start), jnp.where(inward, -displacement, displacement)
    total = jnp.zeros_like(start)
    for node, share in _NODES:
        term = share * density(nearest + node * outward)
        if lever is not None:
            # From the displacement, never as the end minus the place: that has no digits at short steps.
            term = term * (lever + jnp.where(inward, node, 1 - node) * displacement)
        total = total + term
    # An empty segment on a pole has integral 0, not 0 * inf. Elsewhere its derivative is the density.
    on_a_pole = jnp.logical_and(displacement == 0, ~jnp.isfinite(total))
    return displacement * jnp.where(on_a_pole, jnp.zeros_like(total), total)


def invert(
    integral: Callable[[jax.Array, jax.Array], jax.Array],
    density: Density,
    start: jax.Array,
    amount: jax.Array,
) -> jax.Array:
    """Return the displacement from ``start`` whose ``integral(start, displacement)`` is ``amount``.

    Newton's method on the increasing function ``integral``, guarded: a proposal outside of the bracket known
    so far is replaced by the bracket's middle, or by twice the length as long as there is no upper end. A
    length is too long where it ends at a density that is negative or undefined, outside of the domain of a
    field such as ``1/(p (1 - p))``. The unknown is the displacement itself, so nothing cancels at short
    steps. A fixed number of iterations: a stopping test would be a collective under sharding.
    """
    sign = jnp.where(amount < 0, -jnp.ones_like(amount), jnp.ones_like(amount))
    target = sign * amount  # its size, with a derivative at 0
    rate = density(start)
    usable = jnp.logical_and(rate > 0, jnp.isfinite(rate))
    at_rest = jnp.logical_and(amount == 0, ~usable)
    guess = jnp.where(usable, target / jnp.where(usable, rate, jnp.ones_like(rate)), target)

    def iterate(_: int, carry: Any) -> Any:
        length, low, high = carry
        displacement = sign * length
        missing = target - sign * integral(start, displacement)
        slope = density(start + displacement)
        within = slope >= 0  # an infinite one is a pole, which a way may cross
        low = jnp.where(jnp.logical_and(within, missing >= 0), jnp.maximum(low, length), low)
        beyond = jnp.logical_or(~within, missing <= 0)
        high = jnp.where(beyond, jnp.minimum(high, length), high)
        usable = jnp.logical_and(slope > 0, jnp.isfinite(slope))
        newton = length + missing / jnp.where(usable, slope, jnp.ones_like(slope))
        inside = jnp.logical_and(newton >= low, newton <= high)
        bounded = jnp.isfinite(high)
        guarded = jnp.where(bounded, low / 2 + jnp.where(bounded, high, low) / 2, 2 * length)
        return jnp.where(jnp.logical_and(usable, inside), newton, guarded), low, high

    carry = (guess, jnp.zeros_like(guess), jnp.full_like(guess, jnp.inf))
    length, _, _ = jax.lax.fori_loop(0, _ITERATIONS, iterate, carry)
    # In two halves: over a way on which the density falls to nothing, quadrature in one piece goes wrong.
    half = sign * length / 2
    found = sign * (integral(start, half) + integral(start + half, half))
    reached = jnp.abs(target - found) <= _REACHED * target
    length = jnp.where(reached, length, jnp.full_like(length, jnp.inf))
    return jnp.where(at_rest, jnp.zeros_like(amount), sign * length)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divide, with ``0 / 0 = 0``."""
    undefined = jnp.logical_and(numerator == 0, denominator == 0)
    return numerator / jnp.where(undefined, jnp.ones_like(denominator), denominator)


def log_ratio(start: jax.Array, end: jax.Array, difference: jax.Array) -> jax.Array:
    """Return ``log(end / start)`` given the exact ``end - start``, from the smaller of the two."""
    grows = difference >= 0
    logarithm = jnp.log1p(divide(jnp.abs(difference), jnp.where(grows, start, end)))
    return jnp.where(grows, logarithm, -logarithm)


def asinh_difference(x: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what ``asinh(x + step) - asinh(x)`` is made of, for ``x`` and ``x + step`` not negative.

    With ``t = asinh(x)`` and ``u = asinh(x + step)``: ``sinh(u - t) / step``, ``sinh(u - t)`` and
    ``cosh(u + t)``, each to full relative accuracy for short steps and for large ``x``.
    """
    end = x + step
    here, there = jnp.sqrt(1 + jnp.square(x)), jnp.sqrt(1 + jnp.square(end))
    cosh_sum = here * there + x * end
    cosh_difference = (1 + jnp.square(x) + jnp.square(end)) / cosh_sum
    share = (1 + cosh_difference) / (here + there)
    return share, step * share, cosh_sum


def asinh_ratio(x: jax.Array) -> jax.Array:
    """Return ``asinh(x) / x``, which is 1 at 0."""
    return _tree.divided(jnp.arcsinh(x), x, 1.0)


def sinh_ratio(x: jax.Array) -> jax.Array:
    """Return ``sinh(x) / x``, which is 1 at 0."""
    return _tree.divided(jnp.sinh(x), x, 1.0)

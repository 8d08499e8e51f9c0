"""The separable fields whose integrals have closed forms."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from riemann_optax import _check, _tree
from riemann_optax.fields import _numeric
from riemann_optax.fields._numeric import asinh_difference, divide, log_ratio
from riemann_optax.fields.base import SeparableField

Integral = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Constant(SeparableField):
    r"""The Euclidean metric up to a scale, :math:`E_i = c`.

    Args:
      value: ``c``, positive.

    Raises:
      ValueError: for a ``value`` that is not positive and finite.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> print(ro.fields.Constant(4.0).arc_length(jnp.zeros(1), jnp.array([3.0])))
      [6.]
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        _check.check_number("value", self.value, low=0.0, low_open=True)

    def elementwise(self, weights: jax.Array) -> jax.Array:
        """Return ``c``."""
        return jnp.full_like(weights, self.value)

    def arc_length(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        """Return ``sqrt(c) * d``."""
        return self._root(weights) * displacement

    def geodesic_displacement(self, weights: jax.Array, arc_length: jax.Array) -> jax.Array:
        """Return ``s / sqrt(c)``."""
        return arc_length / self._root(weights)

    def dual_displacement(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        """Return ``c * d``."""
        return self.elementwise(weights) * displacement

    def mirror_displacement(self, weights: jax.Array, dual_displacement: jax.Array) -> jax.Array:
        """Return ``s / c``."""
        return dual_displacement / self.elementwise(weights)

    def bregman_divergence(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        """Return ``c * d**2 / 2``."""
        return self.elementwise(weights) * jnp.square(displacement) / 2


class _EvenField(SeparableField):
    """A field with ``e(-w) = e(w)``: integrals are known on one side of 0 and put together through it.

    ``x >= 0`` is the distance from 0, ``y >= -x`` a displacement away from 0. Where a path passes through 0
    both parts have one sign, so nothing cancels there either.
    """

    @abc.abstractmethod
    def _half_arc(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return the integral of ``sqrt(e)`` from x to x + y."""

    def _half_geodesic(self, x: jax.Array, arc: jax.Array) -> jax.Array:
        """Return the y of a given arc that does not pass through 0."""
        return _numeric.invert(self._half_arc, self._root, x, arc)

    @abc.abstractmethod
    def _half_dual(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return the integral of ``e`` from x to x + y."""

    @abc.abstractmethod
    def _half_mirror(self, x: jax.Array, dual: jax.Array) -> jax.Array:
        """Return the y of a given integral of ``e`` that does not pass through 0."""

    @abc.abstractmethod
    def _half_moment(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return the integral of ``(x + y - s) * e(s)`` from x to x + y."""

    def arc_length(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        return _through_zero(self._half_arc, weights, displacement)

    def geodesic_displacement(self, weights: jax.Array, arc_length: jax.Array) -> jax.Array:
        return _back_through_zero(self._half_arc, self._half_geodesic, weights, arc_length)

    def dual_displacement(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        return _through_zero(self._half_dual, weights, displacement)

    def mirror_displacement(self, weights: jax.Array, dual_displacement: jax.Array) -> jax.Array:
        return _back_through_zero(self._half_dual, self._half_mirror, weights, dual_displacement)

    def bregman_divergence(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        side = _side(weights, displacement)
        x, y = jnp.abs(side * weights), side * displacement
        beyond = jnp.maximum(-(x + y), 0)
        crosses = beyond > 0
        zero = jnp.zeros_like(x)
        # On the way to 0 the lever x + y - s is longer by what lies beyond. From 0, not to it: the derivative
        # by x would else be a difference of E at 0.
        longer = beyond * self._half_dual(zero, jnp.where(crosses, x, zero))
        outside = longer + self._half_moment(zero, beyond)
        inside = self._half_moment(x, jnp.where(crosses, -x, y))
        return jnp.where(crosses, inside + outside, inside)


@dataclass(frozen=True)
class Absolute(_EvenField):
    r"""Rigidity proportional to strength, :math:`E_i = 1 + a\,|w_i|`: maintenance energy with alpha = a.

    Args:
      strength: ``a``, at least 0; at 0 the metric is Euclidean.

    Raises:
      ValueError: for a negative ``strength``.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> field, w = ro.fields.Absolute(3.0), jnp.array([1.0])
      >>> print(field.arc_length(w, -w))  # two thirds of (8 - 1) / 3
      [-1.5556]
    """

    strength: float

    def __post_init__(self) -> None:
        _check.check_number("strength", self.strength, low=0.0)

    def elementwise(self, weights: jax.Array) -> jax.Array:
        """Return ``1 + a * abs(w)``."""
        return 1 + self.strength * jnp.abs(weights)

    def _half_arc(self, x: jax.Array, y: jax.Array) -> jax.Array:
        here, there = self._root(x), self._root(x + y)
        return 2 * y * (there**2 + there * here + here**2) / (3 * (here + there))

    def _half_geodesic(self, x: jax.Array, arc: jax.Array) -> jax.Array:
        root = self._root(x)
        relative = 3 * self.strength * arc / (2 * root**3)
        # ((1 + t)^(2/3) - 1) / t, which is 2/3 at t = 0.
        shape = _tree.divided(jnp.expm1(jnp.log1p(relative) * (2 / 3)), relative, 2 / 3)
        return 3 * arc * shape / (2 * root)

    def _half_dual(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return y * (1 + self.strength * (x + y / 2))

    def _half_mirror(self, x: jax.Array, dual: jax.Array) -> jax.Array:
        metric = self.elementwise(x)
        return 2 * dual / (metric + jnp.sqrt(jnp.maximum(metric**2 + 2 * self.strength * dual, 1.0)))

    def _half_moment(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.square(y) * (1 + self.strength * (x + y / 3)) / 2


@dataclass(frozen=True)
class Quadratic(_EvenField):
    r"""Rigidity that grows with the square of the weight, :math:`E_i = 1 + a\,w_i^2`.

    The geodesic has no closed inverse: its chart is inverted by a guarded Newton iteration.

    Args:
      strength: ``a``, at least 0; at 0 the metric is Euclidean.

    Raises:
      ValueError: for a negative ``strength``.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> field, zero = ro.fields.Quadratic(3.0), jnp.zeros(1)
      >>> print(field.dual_displacement(zero, zero + 2))  # w + w**3
      [10.]
      >>> print(field.mirror_displacement(zero, zero + 10))
      [2.]
    """

    strength: float

    def __post_init__(self) -> None:
        _check.check_number("strength", self.strength, low=0.0)

    def elementwise(self, weights: jax.Array) -> jax.Array:
        """Return ``1 + a * w**2``."""
        return 1 + self.strength * jnp.square(weights)

    def _half_arc(self, x: jax.Array, y: jax.Array) -> jax.Array:
        # With sqrt(a) w = sinh t the chart is (sinh(2 t) / 2 + t) / (2 sqrt(a)).
        scale = jnp.sqrt(jnp.asarray(self.strength, x.dtype))
        share, sinh, cosh_sum = asinh_difference(scale * x, scale * y)
        return y * share * (cosh_sum + _numeric.asinh_ratio(sinh)) / 2

    def _half_dual(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return y * (1 + self.strength * (jnp.square(x) + x * y + jnp.square(y) / 3))

    def _half_mirror(self, x: jax.Array, dual: jax.Array) -> jax.Array:
        # z + z**3 / 3 = c has the root z = 2 sinh(asinh(3 c / 2) / 3).
        scale = jnp.sqrt(jnp.asarray(self.strength, x.dtype))
        scaled = scale * x
        argument = 1.5 * scaled + scaled**3 / 2
        share, sinh, _ = asinh_difference(argument, 1.5 * scale * dual)
        slope = share * _numeric.asinh_ratio(sinh)
        half = 1.5 * scale * dual * slope / 6
        return dual * slope * jnp.cosh(jnp.arcsinh(argument) / 3 + half) * _numeric.sinh_ratio(half)

    def _half_moment(self, x: jax.Array, y: jax.Array) -> jax.Array:
        mean = jnp.square(x) + 2 * x * y / 3 + jnp.square(y) / 6
        return jnp.square(y) * (1 + self.strength * mean) / 2


@dataclass(frozen=True)
class Multiplicative(_EvenField):
    r"""The multiplicative geometry, :math:`E_i = 1/(|w_i| + \epsilon)`: large weights move more.

    Its mirror step with ``eps=0`` is exponentiated gradient exactly, ``w * exp(-rate * sign(w) * gradient)``.
    **Only the mirror step keeps signs**: 0 is at the finite distance ``2 * sqrt(abs(w))``, and the geodesic
    crosses it. With ``eps=0`` a weight that is 0 has infinite ``E`` and never moves: zero-initialised weights
    need ``eps > 0`` (and then mirror steps may cross 0 too).

    Args:
      eps: at least 0, in the units of the weights.

    Raises:
      ValueError: for a negative ``eps``.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> field, w = ro.fields.Multiplicative(), jnp.array([4.0])
      >>> print(field.geodesic_displacement(w, jnp.array([-6.0])))  # sqrt(w) goes from 2 to -1: w to -1
      [-5.]
      >>> print(field.mirror_displacement(w, jnp.array([-jnp.log(2.0)])))
      [-2.]

    References:
      Kivinen and Warmuth, `Exponentiated Gradient versus Gradient Descent for Linear Predictors
      <https://doi.org/10.1006/inco.1996.2612>`_, Information and Computation, 1997

      Cornford et al, `Brain-like learning with exponentiated gradients
      <https://doi.org/10.1101/2024.10.25.620272>`_, bioRxiv, 2024
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        _check.check_number("eps", self.eps, low=0.0)

    def elementwise(self, weights: jax.Array) -> jax.Array:
        """Return ``1 / (abs(w) + eps)``."""
        return 1 / (jnp.abs(weights) + self.eps)

    def _half_arc(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return divide(2 * y, _tree.power(x + self.eps, 0.5) + _tree.power(x + y + self.eps, 0.5))

    def _half_geodesic(self, x: jax.Array, arc: jax.Array) -> jax.Array:
        return arc * (jnp.sqrt(x + self.eps) + arc / 4)

    def _half_dual(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return log_ratio(x + self.eps, x + y + self.eps, y)

    def _half_mirror(self, x: jax.Array, dual: jax.Array) -> jax.Array:
        return (x + self.eps) * jnp.expm1(dual)

    def _half_moment(self, x: jax.Array, y: jax.Array) -> jax.Array:
        end = x + y + self.eps
        # In the pole, where the dual variable is infinite, its product with the lever is 0.
        dual = self._half_dual(x, jnp.where(end == 0, jnp.zeros_like(y), y))
        return _unless_short(self, x, y, x + self.eps, end * dual - y)


@dataclass(frozen=True)
class LogNormal(_EvenField):
    r"""The metric in which the logarithm of a weight is flat, :math:`E_i = 1/(w_i^2 + \epsilon^2)`.

    With ``eps=0`` its chart is :math:`\log|w|`: a geodesic step multiplies the weight, Gaussian noise in the
    orthonormal frame makes weights log-normally distributed, as those of synapses are, and 0 is infinitely
    far: geodesics keep signs here. With ``eps > 0`` the chart is :math:`\mathrm{asinh}(w/\epsilon)`, which
    passes smoothly through 0; zero-initialised weights need it. (Exponentiated gradient, the mirror step of
    :class:`Multiplicative`, leads to log-normal weights as well.) The dual variable is bounded,
    :math:`-1/w`: a mirror step beyond infinity is infinite.

    Args:
      eps: at least 0, in the units of the weights.

    Raises:
      ValueError: for a negative ``eps``.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> w = jnp.array([3.0, -3.0])
      >>> print(ro.fields.LogNormal().geodesic_displacement(w, jnp.log(jnp.array([2.0, 2.0]))))
      [3.  1.5]

    References:
      Buzsaki and Mizuseki, `The log-dynamic brain: how skewed distributions affect network operations
      <https://doi.org/10.1038/nrn3687>`_, Nature Reviews Neuroscience, 2014

      Pogodin et al, `Synaptic Weight Distributions Depend on the Geometry of Plasticity
      <https://arxiv.org/abs/2305.19394>`_, ICLR, 2024
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        _check.check_number("eps", self.eps, low=0.0)

    def elementwise(self, weights: jax.Array) -> jax.Array:
        """Return ``1 / (w**2 + eps**2)``."""
        return 1 / (jnp.square(weights) + self.eps**2)

    def _distance(self, x: jax.Array) -> jax.Array:
        return x if self.eps == 0 else jnp.sqrt(jnp.square(x) + self.eps**2)

    def _half_arc(self, x: jax.Array, y: jax.Array) -> jax.Array:
        here, there = self._distance(x), self._distance(x + y)
        difference = y * (1 + divide(2 * x + y, here + there))
        return log_ratio(x + here, x + y + there, difference)

    def _half_geodesic(self, x: jax.Array, arc: jax.Array) -> jax.Array:
        displacement = x * jnp.expm1(arc)
        if self.eps == 0:
            return displacement
        return displacement + self.eps**2 / (x + self._distance(x)) * jnp.sinh(arc)

    def _half_dual(self, x: jax.Array, y: jax.Array) -> jax.Array:
        if self.eps == 0:
            return divide(y, x * (x + y))
        return jnp.arctan2(self.eps * y, self.eps**2 + x * (x + y)) / self.eps

    def _half_mirror(self, x: jax.Array, dual: jax.Array) -> jax.Array:
        if self.eps == 0:
            remaining, tangent = 1 - x * dual, dual
            reached = remaining > 0
        else:
            angle = self.eps * dual
            reached = angle < jnp.arctan2(jnp.full_like(x, self.eps), x)
            tangent = jnp.tan(jnp.where(reached, angle, jnp.zeros_like(angle))) / self.eps
            remaining = 1 - x * tangent
        displacement = tangent * (jnp.square(x) + self.eps**2)
        safe = jnp.where(reached, remaining, jnp.ones_like(remaining))
        return jnp.where(reached, displacement / safe, jnp.full_like(x, jnp.inf))

    def _half_moment(self, x: jax.Array, y: jax.Array) -> jax.Array:
        here, there = self._distance(x), self._distance(x + y)
        linear = divide(y, x) if self.eps == 0 else (x + y) * self._half_dual(x, y)
        # From the pole the linear term alone is infinite enough.
        difference = jnp.where(here == 0, jnp.zeros_like(y), divide(y * (2 * x + y), here + there))
        return _unless_short(self, x, y, here, linear - log_ratio(here, there, difference))


def _unless_short(
    field: SeparableField, x: jax.Array, y: jax.Array, scale: jax.Array, moment: jax.Array
) -> jax.Array:
    """Return the closed form ``moment``, or the quadrature over a ``y`` short against the ``scale`` of ``e``.

    There the terms of the closed form cancel, and ``e`` varies so little that the quadrature is exact.
    """
    short = 2 * jnp.abs(y) < scale
    origin, step = jnp.where(short, x, jnp.ones_like(x)), jnp.where(short, y, jnp.zeros_like(y))
    return jnp.where(short, _numeric.short_moment(field.elementwise, origin, step), moment)


def _through_zero(half: Integral, weights: jax.Array, displacement: jax.Array) -> jax.Array:
    """Extend an integral over ``x >= 0`` of an even density to both sides."""
    side = _side(weights, displacement)
    x, y = jnp.abs(side * weights), side * displacement
    beyond = -(x + y)
    crosses = beyond > 0
    inside = half(x, jnp.where(crosses, -x, y))
    return side * jnp.where(crosses, inside - half(jnp.zeros_like(x), jnp.maximum(beyond, 0)), inside)


def _back_through_zero(half: Integral, inverse: Integral, weights: jax.Array, amount: jax.Array) -> jax.Array:
    """Invert :func:`_through_zero`, given the inverse for ``x >= 0``."""
    side = _side(weights, amount)
    x, outward = jnp.abs(side * weights), side * amount
    zero = jnp.zeros_like(x)
    # A pole at 0 is infinitely far. The derivative of that distance is no number, and times 0 still none.
    reachable = jnp.isfinite(jax.lax.stop_gradient(half(zero, x)))
    to_zero = jnp.where(reachable, half(zero, jnp.where(reachable, x, zero)), jnp.inf)
    crosses = outward < -to_zero
    inside = inverse(x, jnp.where(crosses, zero, outward))
    beyond = inverse(zero, jnp.where(crosses, -(outward + to_zero), zero))
    return side * jnp.where(crosses, -(x + beyond), inside)


def _side(weights: jax.Array, displacement: jax.Array) -> jax.Array:
    """Return the sign of each weight; at 0 that of the way it goes.

    ``abs(side * weights)`` has the derivative ``side`` there, where ``abs(weights)`` would have 1.
    """
    sign = jnp.where(weights == 0, displacement, weights)
    return jnp.where(sign < 0, -jnp.ones_like(sign), jnp.ones_like(sign))

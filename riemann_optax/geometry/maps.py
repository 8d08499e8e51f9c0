"""The maps of a Riemannian geometry: sharp and flat, exponential and logarithm, transport, distances."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax.fields.base import (
    MetricField,
    SeparableField,
    check_field_type,
    require_separable,
    to_working_tree,
)


def inner(field: MetricField, params: optax.Params, first: optax.Updates, second: optax.Updates) -> jax.Array:
    r"""Return the inner product of two tangent vectors, :math:`\sum_i E_i u_i v_i`.

    Under sharding one all-reduce per leaf, which XLA combines.

    Args:
      field: a metric field.
      params: the point.
      first: a tangent vector there, in the structure of ``params``.
      second: another one.

    Returns:
      A scalar, float32 or wider.

    Raises:
      TypeError: where ``field`` is no metric field, or a leaf is not real and floating point.
      ValueError: where a vector, or what the field returns, has not the structure and shapes of ``params``.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> u, v = jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])
      >>> print(ro.geometry.inner(ro.fields.Quadratic(1.0), jnp.array([0.0, 1.0]), u, v))  # 3 + 2 * 2
      7.0
    """
    metric, first, second = _at(field, params, first=first, second=second)
    return _sum(jax.tree.map(lambda e, u, v: _times(e, u * v), metric, first, second))


def norm(field: MetricField, params: optax.Params, tangent: optax.Updates) -> jax.Array:
    r"""Return the length of a tangent vector, :math:`\sqrt{\sum_i E_i u_i^2}`.

    Args:
      field: a metric field.
      params: the point.
      tangent: a tangent vector there.

    Returns:
      A scalar, float32 or wider.

    Raises:
      TypeError, ValueError: as :func:`inner`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> print(ro.geometry.norm(ro.fields.Constant(4.0), jnp.zeros(2), jnp.array([3.0, 4.0])))
      10.0
    """
    length: jax.Array = _tree.power(inner(field, params, tangent, tangent), 0.5)
    return length


def sharp(field: MetricField, params: optax.Params, covector: optax.Updates) -> optax.Updates:
    r"""Raise the index of a covector: :math:`(g^{-1} c)_i = c_i / E_i`, a gradient's tangent vector.

    Args:
      field: a metric field.
      params: the point.
      covector: such as the gradient of a loss.

    Returns:
      The tangent vector, in the dtypes of ``covector``.

    Raises:
      TypeError, ValueError: as :func:`inner`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> print(ro.geometry.sharp(ro.fields.Constant(4.0), jnp.zeros(1), jnp.array([2.0])))
      [0.5]
    """
    metric, values = _at(field, params, covector=covector)
    return _cast(jax.tree.map(lambda e, c: c / e, metric, values), covector)


def flat(field: MetricField, params: optax.Params, tangent: optax.Updates) -> optax.Updates:
    r"""Lower the index of a tangent vector, :math:`(g u)_i = E_i u_i`: the inverse of :func:`sharp`.

    Args:
      field: a metric field.
      params: the point.
      tangent: a tangent vector there.

    Returns:
      The covector, in the dtypes of ``tangent``.

    Raises:
      TypeError, ValueError: as :func:`inner`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> print(ro.geometry.flat(ro.fields.Constant(4.0), jnp.zeros(1), jnp.array([0.5])))
      [2.]
    """
    metric, values = _at(field, params, tangent=tangent)
    return _cast(jax.tree.map(lambda e, u: _times(e, u), metric, values), tangent)


def christoffel(
    field: MetricField, params: optax.Params, first: optax.Updates, second: optax.Updates | None = None
) -> optax.Updates:
    r"""Return the Christoffel term of any diagonal metric applied to tangent vectors.

    .. math::
      \Gamma(u, v)_k = \frac{1}{2 E_k} \Big( v_k\,(D_u E)_k + u_k\,(D_v E)_k
      - \partial_k \sum_i E_i u_i v_i \Big)

    The geodesic through ``w`` obeys ``w'' = -christoffel(w', w')``; a vector ``v`` is carried along a path
    ``c`` by ``v' = -christoffel(c', v)``. Each ``E_i`` may depend on all weights: one JVP and one VJP of the
    field (a second JVP where ``second`` differs), no matrix. A separable field adds no collective.

    Args:
      field: a metric field, differentiable.
      params: the point.
      first: ``u``, a tangent vector there.
      second: ``v``; by default ``u``.

    Returns:
      The components, in the dtypes of ``first``.

    Raises:
      TypeError, ValueError: as :func:`inner`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> half_plane = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 / w[1] ** 2))
      >>> w, u = jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0])
      >>> print(ro.geometry.christoffel(half_plane, w, u))  # bends up, by 1 / height
      [0.  0.5]
    """
    check_field_type(field)
    points = to_working_tree(params, "params")
    u = optax.tree.cast_like(to_working_vector(first, points, "first"), points)
    v = u if second is None else optax.tree.cast_like(to_working_vector(second, points, "second"), points)
    check_metric(jax.eval_shape(field.metric, points), points)
    metric, along_u = jax.jvp(field.metric, (points,), (u,))
    along_v = along_u if second is None else jax.jvp(field.metric, (points,), (v,))[1]
    _, pull_back = jax.vjp(field.metric, points)
    (gradient,) = pull_back(jax.tree.map(lambda e, a, b: (a * b).astype(e.dtype), metric, u, v))
    terms = jax.tree.map(
        lambda e, a, b, du, dv, g: (b * du + a * dv - g) / (2 * e), metric, u, v, along_u, along_v, gradient
    )
    return _cast(terms, first)


def distance(field: MetricField, params: optax.Params, displacement: optax.Updates) -> jax.Array:
    r"""Return the geodesic distance over a displacement, :math:`\sqrt{\sum_i (\int\sqrt{E_i})^2}`.

    It need not fall along the gradient flow, not even that of a convex quadratic loss; what falls there is
    :func:`bregman_divergence`. Where nothing moves, its derivative is the subgradient 0.

    The fields of this package have closed forms. ``fields.Elementwise`` is integrated by quadrature: accurate
    where ``E`` varies little between the points, wrong where it is sharp; ``testing.check_field`` tells if it
    is sharp at weights of the size that it draws.

    Args:
      field: a separable metric field.
      params: the point the displacement starts from.
      displacement: the other point minus ``params``.

    Returns:
      A scalar, float32 or wider. Under sharding one all-reduce per leaf, which XLA combines.

    Raises:
      TypeError: where ``field`` is not separable, or a leaf is not real and floating point.
      ValueError: where ``displacement`` has not the structure and shapes of ``params``.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> w = jnp.array([1.0, 4.0])
      >>> print(ro.geometry.distance(ro.fields.Multiplicative(), w, jnp.array([3.0, 5.0])))  # (2, 2)
      2.8284
    """
    separable = require_separable(field, "distance", "use flow.geodesic_between.")
    points = to_working_tree(params, "params")
    displacements = to_working_vector(displacement, points, "displacement")
    lengths = jax.tree.map(separable.arc_length, points, displacements)
    total: jax.Array = _tree.power(_sum(jax.tree.map(jnp.square, lengths)), 0.5)
    return total


def exponential_map(field: MetricField, params: optax.Params, tangent: optax.Updates) -> optax.Updates:
    r"""Follow the geodesic that starts with ``tangent`` for unit time; return the displacement.

    Exact in each weight's chart: :math:`\int_w^{w+d} \sqrt{E} = \sqrt{E(w)}\,u`. It may cross 0 (see
    ``fields.Multiplicative``). Where the chart ends before the length is used up, the result is not finite.

    Args:
      field: a separable metric field.
      params: the point.
      tangent: the initial velocity ``u``.

    Returns:
      The displacement ``d``, an update for ``optax.apply_updates``, in the dtypes of ``tangent``.

    Raises:
      TypeError, ValueError: as :func:`distance`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> field, w = ro.fields.LogNormal(), jnp.array([1.0, -2.0])
      >>> step = ro.geometry.exponential_map(field, w, jnp.array([1.0, 2.0]))
      >>> print(step)  # e - 1, and -2 / e + 2
      [1.7183 1.2642]
      >>> print(ro.geometry.logarithm_map(field, w, step))
      [1. 2.]
    """
    separable = require_separable(field, "exponential_map", "use flow.geodesic.")

    def follow(weights: jax.Array, metric: jax.Array, velocity: jax.Array) -> jax.Array:
        return separable.geodesic_displacement(weights, scale_velocity(velocity, jnp.sqrt(metric)))

    return map_at(separable, follow, params, tangent=tangent)


def logarithm_map(field: MetricField, params: optax.Params, displacement: optax.Updates) -> optax.Updates:
    r"""Return the initial velocity of the geodesic over a displacement: :func:`exponential_map`'s inverse.

    In each weight's chart, :math:`u = \frac{1}{\sqrt{E(w)}} \int_w^{w+d} \sqrt{E}`.

    Args:
      field: a separable metric field.
      params: the point.
      displacement: the other point minus ``params``.

    Returns:
      The tangent vector at ``params``, in the dtypes of ``displacement``.

    Raises:
      TypeError, ValueError: as :func:`distance`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> print(ro.geometry.logarithm_map(ro.fields.Multiplicative(), jnp.array([4.0]), jnp.array([-4.0])))
      [-8.]
    """
    separable = require_separable(field, "logarithm_map", "use flow.geodesic_between.")

    def velocity(weights: jax.Array, metric: jax.Array, displacement: jax.Array) -> jax.Array:
        return separable.arc_length(weights, displacement) / jnp.sqrt(metric)

    return map_at(separable, velocity, params, displacement=displacement)


def transport(
    field: MetricField, params: optax.Params, displacement: optax.Updates, tangent: optax.Updates
) -> optax.Updates:
    r"""Transport a tangent vector in parallel over a displacement, :math:`v_i\sqrt{E_i(w)/E_i(w+d)}`.

    A separable metric is flat, so the path does not matter. (Of a metric that is not, transport depends on
    the path: ``flow.parallel_transport``.)

    Args:
      field: a separable metric field.
      params: the point the displacement starts from.
      displacement: where to.
      tangent: a tangent vector at ``params``.

    Returns:
      The tangent vector at ``params + displacement``, in the dtypes of ``tangent``.

    Raises:
      TypeError, ValueError: as :func:`distance`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> w, d = jnp.array([1.0]), jnp.array([3.0])
      >>> print(ro.geometry.transport(ro.fields.Multiplicative(), w, d, jnp.array([1.0])))  # sqrt(4 / 1)
      [2.]
    """
    separable = require_separable(field, "transport", "use flow.parallel_transport along a path.")

    def carry(weights: jax.Array, metric: jax.Array, vector: jax.Array, step: jax.Array) -> jax.Array:
        rests = jnp.isinf(metric) & (step == 0)  # in a pole, where inf / inf is no number
        one = jnp.ones_like(metric)
        after = jnp.where(rests, one, separable.elementwise(jnp.where(rests, one, weights + step)))
        return _times(jnp.sqrt(jnp.where(rests, one, metric) / after), vector)

    return map_at(separable, carry, params, tangent=tangent, displacement=displacement)


def bregman_divergence(field: MetricField, params: optax.Params, displacement: optax.Updates) -> jax.Array:
    r"""Return :math:`D_\psi(w + d, w) = \sum_i \int (w_i + d_i - s)\,E_i(s)\,ds`, with :math:`\psi'' = E`.

    With ``d`` leading to a minimum of a convex loss it never rises along the gradient flow
    :math:`\dot w = -g^{-1}\nabla f`: its rate of change is :math:`\langle\nabla f(w), d\rangle \le 0`.

    Closed form or quadrature, as in :func:`distance`. Infinite from or across a pole of ``E``, such as that
    of ``fields.LogNormal()`` at 0.

    Args:
      field: a separable metric field.
      params: the point ``w``.
      displacement: the other point minus ``params``.

    Returns:
      A scalar, not negative; half the squared distance where the metric is 1. Under sharding one all-reduce
      per leaf, which XLA combines.

    Raises:
      TypeError, ValueError: as :func:`distance`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> w, d = jnp.array([1.0]), jnp.array([1.0])
      >>> print(ro.geometry.bregman_divergence(ro.fields.Multiplicative(), w, d))  # 2 log 2 - 2 + 1
      0.3863
    """
    separable = require_separable(field, "bregman_divergence", "it has no potential.")
    points = to_working_tree(params, "params")
    displacements = to_working_vector(displacement, points, "displacement")
    return _sum(jax.tree.map(separable.bregman_divergence, points, displacements))


def _times(metric: jax.Array, values: jax.Array) -> jax.Array:
    """Multiply, with 0 where the values are 0: beside a weight at rest in a pole, lengths are finite."""
    at_rest = jnp.logical_and(values == 0, ~jnp.isfinite(metric))
    return jnp.where(
        at_rest, jnp.zeros_like(values), values * jnp.where(at_rest, jnp.ones_like(metric), metric)
    )


def scale_velocity(velocity: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply, with 0 where the velocity is 0 or the factor infinite: such a weight is at rest.

    Without momentum it has no velocity, since stage 2 divides by its ``E``; a momentum from before the weight
    underflowed to 0 must not move it either, nor give NaN.
    """
    at_rest = jnp.logical_or(jnp.isinf(factor), jnp.logical_and(velocity == 0, jnp.isnan(factor)))
    return jnp.where(at_rest, jnp.zeros_like(velocity), velocity * jnp.where(at_rest, 1.0, factor))


def map_at(
    field: SeparableField,
    function: Callable[..., jax.Array],
    params: optax.Params,
    **vectors: optax.Updates,
) -> optax.Updates:
    """Map ``function(weights, E, *vectors)`` over the leaves; the result has the dtypes of the first vector.

    An error calls a vector by its keyword.
    """
    points = to_working_tree(params, "params")
    working = [to_working_vector(vector, points, name) for name, vector in vectors.items()]

    def apply(weights: jax.Array, *of_leaf: jax.Array) -> jax.Array:
        return function(weights, field.elementwise(weights), *of_leaf)

    return _cast(jax.tree.map(apply, points, *working), next(iter(vectors.values())))


def to_working_vector(tree: Any, points: Any, argument: str) -> Any:
    """Do the same of a vector; raise ``ValueError`` unless it has the structure and shapes of the point."""
    _check.check_same_structure(tree, points, argument, "params", "give one number per weight.")
    return to_working_tree(tree, argument)


def check_metric(metric: Any, points: Any) -> None:
    """Raise ``ValueError`` unless there is one E per weight: a matrix is no diagonal metric."""
    _check.check_same_structure(
        metric, points, "field", "params", "let it return one E per weight, the diagonal of the metric."
    )


def _at(field: MetricField, params: optax.Params, **vectors: optax.Updates) -> tuple[Any, ...]:
    check_field_type(field)
    points = to_working_tree(params, "params")
    metric = field.metric(points)
    check_metric(metric, points)
    return metric, *(to_working_vector(vector, points, name) for name, vector in vectors.items())


def _cast(tree: Any, reference: Any) -> Any:
    return jax.tree.map(lambda x, r: x.astype(_tree.dtype_of(r)), tree, reference)


def _sum(tree: Any) -> jax.Array:
    dtype = _tree.widest_dtype(tree)
    return sum((jnp.sum(leaf, dtype=dtype) for leaf in jax.tree.leaves(tree)), start=jnp.zeros([], dtype))

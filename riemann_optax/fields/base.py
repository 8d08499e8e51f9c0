"""Metric fields: a metric that is a pure function of the weights, and what follows from that function."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi
from riemann_optax.edits.lifting import multiply_metric
from riemann_optax.fields import _numeric
from riemann_optax.metric import compute_metric


class MetricField(abc.ABC):
    r"""A diagonal metric :math:`g(w) = \mathrm{diag}(E_1(w), \dots, E_n(w))` on the space of parameters.

    A subclass defines :meth:`metric`; the rest derives from it. Each ``E_i`` may depend on all weights; where
    it depends on ``w_i`` alone, derive from :class:`SeparableField` instead, which has geodesics.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> class Sphere(ro.fields.MetricField):  # latitude and longitude
      ...     def metric(self, params):
      ...         return {"latitude": jnp.ones(()), "longitude": jnp.cos(params["latitude"]) ** 2}
      >>> point = {"latitude": jnp.array(1.0), "longitude": jnp.array(0.0)}
      >>> tangent = {"latitude": jnp.array(0.0), "longitude": jnp.array(1.0)}
      >>> print(Sphere().metric(point)["longitude"])
      0.2919
      >>> print(ro.geometry.christoffel(Sphere(), point, tangent)["latitude"])  # sin * cos of the latitude
      0.4546
    """

    @abc.abstractmethod
    def metric(self, params: optax.Params) -> optax.Updates:
        """Return the diagonal ``E`` at ``params``: the same structure and shapes, real, positive, finite."""

    def inverse(self, params: optax.Params) -> optax.Updates:
        """Return ``1/E``, the effective rate of each weight."""
        return jax.tree.map(lambda metric: 1 / metric, self.metric(params))

    def derivative(self, params: optax.Params, tangent: optax.Updates) -> optax.Updates:
        """Return the derivative of ``E`` at ``params`` in the direction ``tangent``: one JVP."""
        points = to_working_tree(params, "params")
        direction = optax.tree.cast_like(to_working_tree(tangent, "tangent"), points)
        return jax.jvp(self.metric, (points,), (direction,))[1]

    def as_factor(self) -> optax.GradientTransformationExtraArgs:
        """Return a phi whose value is ``E`` itself, for :func:`riemann_optax.multiply_metric`. No state."""

        def update(
            updates: optax.Updates,
            state: optax.EmptyState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, optax.EmptyState]:
            del updates, extra_args
            params = _check.require_params(params, type(self).__name__)
            return self.metric(to_working_tree(params, "params")), state

        return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


class SeparableField(MetricField):
    r"""A metric field in which each :math:`E_i(w) = e(w_i)` depends on its own weight alone.

    Such a metric is flat: the chart :math:`\int\sqrt{e}` of each weight straightens it, and exponential map,
    logarithm map, distance and transport are known. A subclass defines :meth:`elementwise`; the integrals and
    their inverses derive from it (Gauss-Legendre quadrature and a guarded Newton iteration), and a subclass
    that knows a closed form overrides them.

    All integrals are written in *displacements*, never as ``chart_inverse(chart(w) + s) - w``: in float32
    that difference has an error of some 10% at steps of 1e-6.

    An instance is a function of a weight array, so ``phi.from_weights(field)`` and ``multiply_metric(field)``
    take it as it is.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> class Cosh(ro.fields.SeparableField):
      ...     def elementwise(self, weights):
      ...         return jnp.cosh(weights) ** 2
      >>> w = jnp.array([1.0])
      >>> print(Cosh().arc_length(jnp.zeros(1), w))  # the integral of cosh
      [1.1752]
      >>> print(Cosh().geodesic_displacement(jnp.zeros(1), jnp.sinh(w)))
      [1.]
    """

    @abc.abstractmethod
    def elementwise(self, weights: jax.Array) -> jax.Array:
        """Return ``e(weights)``, positive, of the same shape; ``weights`` is float32 or wider."""

    def __call__(self, weights: jax.Array) -> jax.Array:
        """Return ``E`` of one array of weights, evaluated in float32 or wider."""
        # Integers pass: optax.inject_hyperparams takes a field for a schedule and calls it with a count. The
        # error that follows names its static_args.
        if jnp.iscomplexobj(weights):
            to_working_tree(weights, "weights")  # raises
        return self.elementwise(_tree.to_working_dtype(weights))

    def metric(self, params: optax.Params) -> optax.Updates:
        """Return ``E`` of every leaf."""
        return jax.tree.map(self, params)

    def arc_length(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        r"""Return the signed length :math:`\int_w^{w+d}\sqrt{e(s)}\,ds` of each weight's displacement."""
        return _numeric.integrate(self._root, weights, displacement)

    def geodesic_displacement(self, weights: jax.Array, arc_length: jax.Array) -> jax.Array:
        """Return the displacement with the given :meth:`arc_length`."""
        return _numeric.invert(self.arc_length, self._root, weights, arc_length)

    def dual_displacement(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        r"""Return :math:`\int_w^{w+d} e(s)\,ds`, the change of the mirror map's dual variable."""
        return _numeric.integrate(self.elementwise, weights, displacement)

    def mirror_displacement(self, weights: jax.Array, dual_displacement: jax.Array) -> jax.Array:
        """Return the displacement with the given :meth:`dual_displacement`."""
        return _numeric.invert(self.dual_displacement, self.elementwise, weights, dual_displacement)

    def bregman_divergence(self, weights: jax.Array, displacement: jax.Array) -> jax.Array:
        r"""Return :math:`\int_w^{w+d} (w + d - s)\,e(s)\,ds`, what the potential adds to its tangent.

        With :math:`\psi'' = e` this is :math:`D_\psi(w+d, w) = \psi(w+d) - \psi(w) - \psi'(w)\,d`, of each
        weight; by quadrature, never negative.
        """
        return _numeric.first_moment(self.elementwise, weights, displacement)

    def _root(self, weights: jax.Array) -> jax.Array:
        return jnp.sqrt(self.elementwise(weights))


@dataclass(frozen=True)
class Elementwise(SeparableField):
    r"""The separable field of any positive function of a weight array, :math:`E_i = e(w_i)`.

    Its integrals are by quadrature with points dense at 0: accurate where ``E`` varies little between the two
    points, or is sharp at 0 only and not very, such as ``1/(w**2 + eps**2)`` from 0 to 1: with ``eps=0.01``
    to 1e-5, with ``eps=0.001`` to 2e-3. A sharper ``E``, or one sharp elsewhere, needs a
    :class:`SeparableField` with closed forms of its own: of ``1 / (p (1 - p))`` the distance from 0.001 to
    0.999 is short by 0.4%, and a long step may end at infinity or at the pole. Across a pole, where the
    distance is infinite, it is a number. ``riemann_optax.testing.check_field`` tells if ``E`` is sharp at
    weights of the size that it draws; give it ``points=30`` and the ``domain``.

    Args:
      function: maps a weight array to ``E`` of its shape, each ``E_i`` from ``w_i`` alone, such as
        ``lambda w: 1 + w**4``. ``riemann_optax.testing.check_field`` tells whether it is a metric.

    Raises:
      TypeError: where ``function`` is not callable.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> field = ro.fields.Elementwise(lambda w: 1 + w**4)
      >>> print(field.metric({"w": jnp.array([0.0, 2.0])})["w"])
      [ 1. 17.]
    """

    function: Callable[[jax.Array], jax.Array]

    def __post_init__(self) -> None:
        _check_function(self.function)

    def elementwise(self, weights: jax.Array) -> jax.Array:
        """Return ``function(weights)``."""
        return self.function(weights)


@dataclass(frozen=True)
class Coupled(MetricField):
    r"""The field of any function of all parameters, :math:`E_i = E_i(w_1, \dots, w_n)`.

    Args:
      function: maps the tree of parameters to the tree of ``E``.

    Raises:
      TypeError: where ``function`` is not callable.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> field = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 + jnp.sum(w**2)))
      >>> print(field.metric(jnp.array([1.0, 2.0])))
      [6. 6.]
    """

    function: Callable[[optax.Params], optax.Updates]

    def __post_init__(self) -> None:
        _check_function(self.function)

    def metric(self, params: optax.Params) -> optax.Updates:
        """Return ``function(params)``."""
        return self.function(params)


def attach_field(field: MetricField) -> optax.GradientTransformationExtraArgs:
    r"""Attach the metric of a field to each gradient leaf: stage 1 where ``E(w)`` is a field.

    .. math::
      g(w) = \mathrm{diag}(E(w))

    The same as ``compute_metric`` with ``alpha=0`` followed by ``multiply_metric(field.as_factor())``. For
    ``E = 1 + alpha*phi(w)`` it equals ``compute_metric(phi.from_weights(phi), alpha)``. No state but the
    update count; needs ``params``; collectives are those of the field, none where it is separable.

    Args:
      field: a metric field.

    Returns:
      A gradient transformation whose updates carry the metric.

    Raises:
      TypeError: where ``field`` is no metric field; at ``update``, for a leaf that is not real and floating
        point.
      ValueError: at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> field = ro.fields.Quadratic(1.0)
      >>> tx = optax.chain(
      ...     ro.attach_field(field),
      ...     ro.scale_by_inverse_metric(),
      ...     optax.scale_by_learning_rate(0.1),
      ...     ro.retract(field, "geodesic"),
      ... )
      >>> params = jnp.array([0.0, 1.0])
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
      >>> print(updates)  # the Euler step is -0.1 and -0.05
      [-0.0998 -0.0506]
    """
    check_field_type(field)

    def nothing(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del updates, extra_args
        points = to_working_tree(_check.require_params(params, "attach_field"), "params")
        return jax.tree.map(jnp.zeros_like, points), state

    phi = Phi(optax.init_empty_state, nothing, name=type(field).__name__)
    return optax.chain(compute_metric(phi, alpha=0.0), multiply_metric(field.as_factor()))


def check_field_type(field: Any) -> None:
    """Raise ``TypeError`` unless ``field`` is a metric field."""
    if not isinstance(field, MetricField):
        raise TypeError(
            f"field must be a riemann_optax.fields.MetricField, got {field!r}: wrap a function of a weight "
            "array in fields.Elementwise, a function of all parameters in fields.Coupled"
            f"{_check.injected('field', field)}."
        )


def to_working_tree(tree: Any, argument: str) -> Any:
    """Cast every leaf to its working dtype; raise ``TypeError`` for one that is not real floating point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(_tree.dtype_of(leaf), jnp.floating):
            raise TypeError(
                f"{argument}: {_tree.leaf_name(path)} has dtype {_tree.dtype_of(leaf)}, and a metric field's "
                "geometry is defined on real floating-point leaves only: convert this one, or leave it out, "
                "in an optimiser by optax.partition."
            )
    return jax.tree.map(_tree.to_working_dtype, tree)


def require_separable(field: MetricField, name: str, remedy: str) -> SeparableField:
    """Return ``field``, or raise ``TypeError`` where no chart of it is known."""
    check_field_type(field)
    if not isinstance(field, SeparableField):
        raise TypeError(
            f"{name} needs a separable field, in which each E_i depends on w_i alone, and {field!r} is not "
            f"one: {remedy}"
        )
    return field


def _check_function(function: Any) -> None:
    if not callable(function):
        raise TypeError(f"function must map weights to E, got {function!r}.")

"""From a tangent vector to a step: what comes last in a chain."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax.fields.base import MetricField, SeparableField, check_field_type, require_separable
from riemann_optax.geometry import maps

Retraction = Literal["euler", "geodesic", "second_order", "mirror"]
RETRACTIONS: tuple[str, ...] = get_args(Retraction)

_LARGEST_CORRECTION = 0.75


def retract(field: MetricField, kind: Retraction = "geodesic") -> optax.GradientTransformationExtraArgs:
    r"""Turn the tangent vector ``u`` that a chain arrives at into a step on the manifold (last in a chain).

    ``kind`` chooses the step ``d``:

    - ``"euler"``: :math:`u` itself;
    - ``"geodesic"``: the exponential map, :math:`\int_w^{w+d}\sqrt{E} = \sqrt{E(w)}\,u`, exact; separable
      fields only;
    - ``"second_order"``: :math:`u - \Gamma(u, u)/2`, the geodesic to second order; any field;
    - ``"mirror"``: mirror descent, :math:`\int_w^{w+d} E = E(w)\,u`, a straight line in the dual variable;
      separable fields only.

    All agree to first order, and all follow the gradient flow to first order in the rate: the geodesic buys
    invariance to re-parameterisation, not accuracy. The correction of ``"second_order"`` is taken only where
    twice its metric norm is below 0.75 of the step's (over all leaves; otherwise, or where it is not finite,
    the step is Euler's): under sharding two all-reduces per leaf, which XLA combines. The others add no
    collective where the field is separable.

    **Signs**: with ``fields.Multiplicative()``, ``1/abs(w)``, the mirror step is exponentiated gradient,
    ``w * exp(-rate * sign(w) * gradient)``, and keeps every weight's sign. Only that step does: the geodesic
    of the same metric crosses 0, and Euler and second-order steps overshoot it.

    Args:
      field: the metric field of the chain, the one given to :func:`riemann_optax.attach_field`.
      kind: one of the above.

    Returns:
      A gradient transformation without state. It must see updates as they will be applied: after the
      learning rate. Needs ``params``; keeps the dtypes of the updates.

    Raises:
      ValueError: for an unknown ``kind``; at ``update``, where ``params`` are missing.
      TypeError: where ``field`` is no metric field, or not separable and ``kind`` needs it to be; at
        ``update``, except with ``"euler"``, for a leaf that is not real and floating point.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> w, u = jnp.array([4.0]), jnp.array([-6.0])
      >>> for kind in ("euler", "geodesic", "second_order", "mirror"):
      ...     tx = ro.retract(ro.fields.Multiplicative(), kind)
      ...     print(kind, w + tx.update(u, tx.init(w), w)[0])
      euler [-2.]
      geodesic [0.25]
      second_order [-2.]
      mirror [0.8925]

    References:
      Transtrum and Sethna, `Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares
      minimization <https://arxiv.org/abs/1201.5885>`_, arXiv, 2012: when to
      accept the second-order correction.

      Song, Song and Ermon, `Accelerating Natural Gradient with Higher-Order Invariance
      <https://arxiv.org/abs/1803.01273>`_, ICML, 2018

      Raskutti and Mukherjee, `The Information Geometry of Mirror Descent
      <https://arxiv.org/abs/1310.7780>`_, IEEE Transactions on Information Theory, 2015
    """
    _check.check_choice("kind", kind, RETRACTIONS)
    check_field_type(field)
    if kind in ("geodesic", "mirror"):
        require_separable(field, f'retract(field, "{kind}")', 'use kind="second_order".')

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        params = _check.require_params(_tree.trained(params, updates), "retract")
        if kind == "geodesic":
            updates = maps.exponential_map(field, params, updates)
        elif kind == "second_order":
            updates = _second_order(field, params, updates)
        elif kind == "mirror":
            updates = _mirror(field, params, updates)  # type: ignore[arg-type]  # checked above
        return updates, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _mirror(field: SeparableField, params: optax.Params, updates: optax.Updates) -> optax.Updates:
    def step(weights: jax.Array, metric: jax.Array, velocity: jax.Array) -> jax.Array:
        return field.mirror_displacement(weights, maps.scale_velocity(velocity, metric))

    return maps.map_at(field, step, params, updates=updates)


def _second_order(field: MetricField, params: optax.Params, updates: optax.Updates) -> optax.Updates:
    correction = jax.tree.map(lambda x: -x / 2, maps.christoffel(field, params, updates))
    size = maps.norm(field, params, correction)
    # Not finite counts as too large: the comparison is then false.
    accepted = 2 * size < _LARGEST_CORRECTION * maps.norm(field, params, updates)
    return jax.tree.map(lambda u, c: jnp.where(accepted, u + c, u), updates, correction)

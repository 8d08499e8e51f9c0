"""Stage 2: from a covector to a tangent vector, directly or through the metric's orthonormal frame."""

from typing import Any

import jax
import optax

from riemann_optax import _observe as observe
from riemann_optax import _tree
from riemann_optax._axes import Axes
from riemann_optax._check import check_transformation
from riemann_optax._tree import Group
from riemann_optax.covector import Covector, map_covectors, require_covectors
from riemann_optax.metric import Role, compute_metric


def scale_by_inverse_metric() -> optax.GradientTransformationExtraArgs:
    r"""Turn each covector into the tangent vector :math:`g^{-1}\nabla f` (stage 2, Eq. 2).

    .. math::
      u_i = \partial_i f / E_i

    Any Optax transform may follow. Leaves without a metric beside leaves with one pass unchanged: they are
    Euclidean. No state; the result has the dtype of the gradient; elementwise, so it adds no collective.

    Returns:
      A gradient transformation without state.

    Raises:
      ValueError: at ``update``, where no leaf at all carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(ro.compute_metric(ro.phi.activity(), alpha=1.0), ro.scale_by_inverse_metric())
      >>> gradients = jnp.array([0.0, 1.0, 3.0])
      >>> tangent, _ = tx.update(gradients, tx.init(gradients))
      >>> print(tangent)  # at the first step phi = abs(gradient): g / (1 + abs(g))
      [0.   0.5  0.75]

    References:
      Amari, `Natural Gradient Works Efficiently in Learning
      <https://doi.org/10.1162/089976698300017746>`_, Neural Computation, 1998
    """

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        require_covectors(updates, "scale_by_inverse_metric")
        observe.metric_used(updates)
        return map_covectors(Covector.raise_index, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def in_orthonormal_frame(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Run ``inner`` in the orthonormal frame of the metric, then leave the frame (stage 2).

    .. math::
      u = g^{-1/2}\,\mathrm{inner}\big(g^{-1/2}\,\nabla f\big)

    In the frame :math:`e_i = E_i^{-1/2}\,\partial_i` the metric is the identity, so Euclidean rules are
    Riemannian ones: with ``optax.identity()`` this is :func:`scale_by_inverse_metric` up to rounding; with
    ``optax.trace`` momentum is parallel transported and with ``optax.scale_by_adam`` the rule is Riemannian
    Adam (both exactly so where each ``E_i`` depends on ``w_i`` alone, approximately otherwise); with
    ``optax.clip_by_global_norm`` it is the Riemannian norm of the gradient that is clipped.

    Args:
      inner: any Optax transformation; it sees the parameters and, for Euclidean leaves, the gradient, all in
        float32 or wider, so that its constants, such as Adam's ``eps``, mean the same for narrow weights.

    Returns:
      A gradient transformation with the state of ``inner``; the result has the dtype of the gradient.

    Raises:
      TypeError: where ``inner`` is no gradient transformation.
      ValueError: at ``update``, where no leaf carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.from_weights(lambda w: w**2), alpha=1.0),
      ...     ro.in_orthonormal_frame(optax.clip_by_global_norm(1.0)),
      ... )
      >>> params = jnp.array([0.0, 3.0**0.5])
      >>> tangent, _ = tx.update(jnp.array([3.0, 8.0]), tx.init(params), params)
      >>> print(tangent)  # E = [1, 4]: frame [3, 4], clipped to [.6, .8], left by 1/sqrt(E)
      [0.6 0.4]

    References:
      Becigneul and Ganea, `Riemannian Adaptive Optimization Methods
      <https://arxiv.org/abs/1810.00760>`_, ICLR, 2019
    """
    check_transformation("inner", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(_tree.widen(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        require_covectors(updates, "in_orthonormal_frame")
        observe.metric_used(updates)
        frame = map_covectors(
            lambda c: c.with_components(_tree.widen(c.components)).to_frame(), updates, euclidean=_tree.widen
        )
        weights = _tree.widen(_tree.trained(params, updates))
        frame, state = inner.update(frame, state, weights, **extra_args)

        def leave(old: Any, u: jax.Array) -> jax.Array:
            return (old.from_frame(u) if isinstance(old, Covector) else u).astype(old.dtype)

        return jax.tree.map(leave, updates, frame), state

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_metric(
    phi: optax.GradientTransformation,
    alpha: optax.ScalarOrSchedule = 1.0,
    *edits: optax.GradientTransformation,
    role: Role = "metric",
    conformal: Group | None = None,
    axes: Axes = "flax",
) -> optax.GradientTransformationExtraArgs:
    r"""Both stages in one word: :math:`g^{-1}\,\nabla f` with :math:`E = 1 + \alpha\,\varphi`.

    The chain of :func:`compute_metric`, the ``edits`` and :func:`scale_by_inverse_metric`, nothing else. Like
    every ``scale_by_...`` of Optax it has no learning rate and does not turn the sign.
    ``optax.inject_hyperparams`` cannot pass on ``*edits``: inject into :func:`compute_metric`, or give
    ``alpha`` a schedule.

    Args:
      phi: what the metric measures; see :func:`compute_metric`.
      alpha: the scaling factor; see there.
      *edits: transformations that may stand between the stages, in their order.
      role: ``"metric"`` divides by ``1 + alpha*phi``, ``"inverse_metric"`` multiplies by it.
      conformal: None, or the group over which the scale of the metric is taken from phi's mean.
      axes: how arrays are read where that group is ``"neuron"``.

    Returns:
      A gradient transformation with the states of its parts in a tuple.

    Raises:
      ValueError: as :func:`compute_metric`.
      TypeError: where phi or an edit is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.scale_by_metric(ro.phi.maintenance_energy(), 3.0, ro.clip_metric(high=2.0)),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params = jnp.array([0.0, 1.0])
      >>> print(tx.update(jnp.ones(2), tx.init(params), params)[0])  # E = [1, 4], clipped to [1, 2]
      [-0.1  -0.05]
    """
    for number, edit in enumerate(edits):
        check_transformation(f"edit number {number}", edit)
    return optax.chain(
        compute_metric(phi, alpha, role, conformal=conformal, axes=axes), *edits, scale_by_inverse_metric()
    )

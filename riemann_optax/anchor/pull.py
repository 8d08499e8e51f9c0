"""The pull to anchored weights."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._check import check_transformation
from riemann_optax._tree import wide_dtype
from riemann_optax.covector import Covector, map_covectors, plus
from riemann_optax.metric import check_phi_values


class AnchoredWeightsState(NamedTuple):
    """State of :func:`add_anchored_weights`.

    Attributes:
      count: int32 scalar, the number of updates so far; a schedule of ``rate`` reads it.
      anchor: the state of the anchor.
      precision: the state of the phi given as ``precision``, or an empty state.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    anchor: optax.OptState
    precision: optax.OptState


def add_anchored_weights(
    rate: optax.ScalarOrSchedule,
    anchor: optax.GradientTransformation,
    precision: optax.GradientTransformation | Literal["phi"] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the pull to anchored weights, :math:`\mathrm{rate}\cdot P\,(w - w_\mathrm{anchor})`.

    What it does depends on where it stands::

        # before stage 1: part of the loss, rate/2 * sum P (w - w_anchor)**2; phi sees its gradient too
        optax.chain(pull, ro.compute_metric(phi), ro.scale_by_inverse_metric(), scale_by_learning_rate(lr))
        # between the stages: part of the loss, not seen by phi; stiff weights are pulled less
        optax.chain(ro.compute_metric(phi), pull, ro.scale_by_inverse_metric(), scale_by_learning_rate(lr))
        # after stage 2: decoupled; all weights return at the same rate, stable for lr * rate * P < 2
        optax.chain(ro.compute_metric(phi), ro.scale_by_inverse_metric(), pull, scale_by_learning_rate(lr))

    Between the stages ``precision="phi"`` takes ``P`` from stage 1. With ``alpha = lr * rate`` the pull is
    then ``lr * rate * phi / (1 + lr * rate * phi)`` of the distance: an implicit step of the penalty, stable
    at any strength, where the plain penalty diverges once ``lr * rate * phi > 2``.

    State: the anchor's, and the precision's where it is a phi. Elementwise, so no collective.

    Args:
      rate: strength of the pull, at least 0: a number, a schedule of the update count, or a traced scalar.
        Times the learning rate it is the share of the distance closed per update (after stage 2, at P = 1).
      anchor: what to return to, from :mod:`riemann_optax.anchor`.
      precision: ``P``, the weight of each synapse in the pull: None for 1; a phi, whose own state it then
        keeps; or ``"phi"`` for the values of the phi in stage 1 (0 for a leaf without a metric).

    Returns:
      A gradient transformation with state :class:`AnchoredWeightsState`. Extra arguments of ``update``, such
      as ``task_boundary``, reach the anchor and the precision; the anchor gets the values of the precision by
      that name.

    Raises:
      ValueError: for a negative concrete ``rate``; at ``update``, where ``params`` are missing, or where
        ``precision="phi"`` finds no metric.
      TypeError: where ``anchor`` or ``precision`` is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> pull = ro.add_anchored_weights(0.1, ro.anchor.initial_weights())
      >>> gradients, state = jnp.zeros(1), pull.init(jnp.zeros(1))
      >>> for weight in (1.0, 3.0):  # the first weights seen are the anchor
      ...     updates, state = pull.update(gradients, state, jnp.array([weight]))
      ...     print(updates)
      [0.]
      [0.2]

    References:
      Kumar, Marklund and Van Roy, `Maintaining Plasticity in Continual Learning via Regenerative
      Regularization <https://arxiv.org/abs/2308.11958>`_, arXiv, 2023: the pull to initial weights

      Kirkpatrick et al, `Overcoming catastrophic forgetting in neural networks
      <https://doi.org/10.1073/pnas.1611835114>`_, PNAS, 2017: the pull weighted by precision
    """
    _check.check_schedulable("rate", rate)
    check_transformation("anchor", anchor)
    anchor = optax.with_extra_args_support(anchor)
    if isinstance(precision, str):
        _check.check_choice("precision", precision, ("phi",))
    elif precision is not None:
        check_transformation("precision", precision)
    phi = optax.with_extra_args_support(
        optax.identity() if precision is None or isinstance(precision, str) else precision
    )

    def init(params: optax.Params) -> AnchoredWeightsState:
        return AnchoredWeightsState(
            count=jnp.zeros([], jnp.int32), anchor=anchor.init(params), precision=phi.init(params)
        )

    def update(
        updates: optax.Updates,
        state: AnchoredWeightsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AnchoredWeightsState]:
        updates = _tree.arrays(updates)
        params = _check.require_params(_tree.trained(params, updates), "add_anchored_weights")
        components = map_covectors(lambda c: c.components, updates)
        phi_state = state.precision
        values = _phi_of_stage_1(updates) if isinstance(precision, str) else None
        if precision is not None and values is None:
            values, phi_state = phi.update(components, state.precision, params, **extra_args)
            check_phi_values(values, components)
        weighting = {} if values is None else {"precision": values}
        weights, anchor_state = anchor.update(components, state.anchor, params, **(extra_args | weighting))
        strength = _tree.at_count(rate, state.count)

        def pull(weight: jax.Array, target: jax.Array) -> jax.Array:
            dtype = wide_dtype(weight)
            return jnp.asarray(strength).astype(dtype) * (weight.astype(dtype) - target.astype(dtype))

        pulls = jax.tree.map(pull, params, weights)
        if values is not None:
            pulls = jax.tree.map(lambda p, v: p * v.astype(p.dtype), pulls, values)

        new_state = AnchoredWeightsState(optax.safe_increment(state.count), anchor_state, phi_state)
        return jax.tree.map(plus, updates, pulls), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _phi_of_stage_1(updates: optax.Updates) -> optax.Updates:
    """Return the values of the phi that the metric was made from, 0 for a leaf without a metric."""
    leaves = jax.tree.leaves(updates)
    if leaves and not any(isinstance(leaf, Covector) for leaf in leaves):
        raise ValueError(
            'precision="phi" takes phi from stage 1, and no leaf carries a metric: put add_anchored_weights '
            "after compute_metric, or give the phi itself as precision."
        )

    def read(leaf: Any) -> jax.Array:
        if isinstance(leaf, Covector) and leaf.phi is not None:
            return leaf.phi
        return jnp.zeros(leaf.shape, _tree.working_dtype(leaf))

    return jax.tree.map(read, updates)

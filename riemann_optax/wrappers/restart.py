"""A restart at a task boundary: the anchor's weights, and a fresh optimiser state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Declared
from riemann_optax._population import when
from riemann_optax._varying import varying_like
from riemann_optax.boundary import check_outermost, one_boolean


class RestartAtBoundaryState(NamedTuple):
    """State of :func:`restart_at_boundary`.

    Attributes:
      anchor: the state of the anchor.
      inner_state: the state of the optimiser.
    """

    anchor: optax.OptState
    inner_state: optax.OptState

    def restarts_in_update(self) -> bool:
        """Return True; by this method :func:`consolidate` knows that an update is needed."""
        return True

    def places_weights(self) -> str:
        """Return what puts weights in a place; what multiplies updates asks for this method."""
        return "restart_at_boundary"


def restart_at_boundary(
    inner: optax.GradientTransformation, anchor: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    r"""Restart from the weights of an anchor at each task boundary, with a fresh optimiser state.

    With ``anchor.nearest_isometry()`` a network keeps its directions and gets back its scales; with
    ``anchor.initial_weights()`` every task is trained from scratch. At a boundary the update leads to the
    anchor, :math:`w \leftarrow a`, up to the rounding of a sum; for weights of bfloat16 give gradients of
    float32. It ignores the gradient, which belongs to the old weights. The state of ``inner`` becomes what
    ``inner.init`` returns, with all momenta and averages, also inside of :func:`in_eigenbasis`; only keys of
    random numbers go on. So put ``optax.inject_hyperparams`` around: inside it would begin again with its
    first rate.

    State: the states of ``anchor`` and ``inner``. Needs ``params``. The extra argument ``task_boundary`` of
    ``update`` announces a boundary; in a Flax NNX loop ``optimizer.update(model, gradients,
    task_boundary=boundary)``. A restart is an update, so :func:`consolidate` refuses this state. Put
    ``optax.MultiSteps`` and ``optax.apply_if_finite`` inside: around it they swallow the boundary of an
    update that they do not pass on.

    Args:
      inner: a whole optimiser.
      anchor: where to restart, from :mod:`riemann_optax.anchor`.

    Returns:
      A gradient transformation with state :class:`RestartAtBoundaryState`.

    Raises:
      TypeError: where ``inner`` or ``anchor`` is no gradient transformation.
      ValueError: at ``init``, where ``inner`` counts energy (put that after this one); at ``update``, where
        ``params`` are missing, or ``task_boundary`` is no single boolean.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.restart_at_boundary(ro.riemannian_sgd(0.1), ro.anchor.nearest_isometry())
      >>> params = jnp.diag(jnp.array([3.0, 0.5]))
      >>> updates, _ = tx.update(jnp.ones([2, 2]), tx.init(params), params, task_boundary=True)
      >>> print((params + updates).round(3))
      [[1. 0.]
       [0. 1.]]

    References:
      Han et al, `FIRE <https://arxiv.org/abs/2602.08040>`_, ICLR, 2026
    """
    _check.check_transformation("inner", inner)
    _check.check_transformation("anchor", anchor)
    inner, anchor = optax.with_extra_args_support(inner), optax.with_extra_args_support(anchor)

    def init(params: optax.Params) -> RestartAtBoundaryState:
        _tree.check_inexact(params, "params")
        inner_state = inner.init(params)
        check_outermost("restart_at_boundary", inner_state)
        return varying_like(RestartAtBoundaryState(anchor.init(params), inner_state), params)

    def update(
        updates: optax.Updates,
        state: RestartAtBoundaryState,
        params: optax.Params | None = None,
        *,
        task_boundary: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RestartAtBoundaryState]:
        _tree.check_inexact(updates, "gradients")
        params = _check.require_params(_tree.trained(params, updates), "restart_at_boundary")
        boundary = one_boolean(task_boundary)

        def anchored(params: optax.Params, anchor_state: optax.OptState) -> tuple[Any, optax.OptState]:
            target, anchor_state = anchor.update(
                updates, anchor_state, params, task_boundary=task_boundary, **extra_args
            )
            return jax.tree.map(lambda to, weight: to.astype(weight.dtype), target, params), anchor_state

        def unread(params: optax.Params, anchor_state: optax.OptState) -> tuple[Any, optax.OptState]:
            return params, anchored(params, anchor_state)[1]

        # An anchor may be long to compute, an isometry is ten products of each matrix, and is seldom wanted.
        target, anchor_state = when(boundary, anchored, unread, params, state.anchor)
        step, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        # Rounded to narrow gradients, or to narrow weights, a jump would not end at the anchor.
        step = _tree.at_least_as_wide(step, params)
        jump = jax.tree.map(jnp.subtract, _tree.widen(target), _tree.widen(params))
        begun = inner.init(target)

        def choose(restarted: Any, going_on: Any) -> Any:
            # Or each task would be given the same random numbers. Older keys, and seeds, are words.
            if any(jnp.issubdtype(going_on.dtype, kind) for kind in (jax.dtypes.prng_key, jnp.uint32)):
                return going_on
            return jnp.where(boundary, restarted, going_on)

        updates = jax.tree.map(lambda j, s: choose(j.astype(s.dtype), s), jump, step)
        return updates, RestartAtBoundaryState(anchor_state, jax.tree.map(choose, begun, inner_state))

    return Declared(init, update, name="restart_at_boundary", needs=("task_boundary",))

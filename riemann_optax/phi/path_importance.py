"""Importance measured along the path of learning: what each weight has done for the loss."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._check import check_share
from riemann_optax._declare import Phi
from riemann_optax._state_fields import declare_fields
from riemann_optax.boundary import consolidated_where
from riemann_optax.phi import _state


@declare_fields(
    linear=("previous_params", "previous_gradients", "start_params"),
    squared=("path_integral", "importance"),
    weights=("previous_params", "start_params"),
    exact=("previous_params", "start_params"),
)
class SynapticIntelligenceState(NamedTuple):
    """State of :func:`synaptic_intelligence`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      memory: scalar, the argument of that name at the last update, which ``consolidate`` needs.
      damping: scalar, likewise.
      previous_params: the parameters at the last update.
      previous_gradients: the gradients at the last update.
      start_params: the parameters at the last task boundary, or at the first update.
      path_integral: ``sum(-g dw)`` since then, shaped like the parameters.
      importance: the importance from all finished tasks, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    memory: jax.Array
    damping: jax.Array
    previous_params: optax.Params
    previous_gradients: optax.Updates
    start_params: optax.Params
    path_integral: optax.Updates
    importance: optax.Updates

    def walked(self, params: optax.Params) -> Self:
        """Return the state with the change since the last update counted."""
        decrease = loss_decrease(self.previous_gradients, params, self.previous_params, self.count)
        return self._replace(
            previous_params=_state.copy_like(params, self.previous_params),
            path_integral=_state.add(self.path_integral, decrease),
        )

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after a task boundary; :func:`riemann_optax.consolidate` calls it."""
        del task_importance
        params = _tree.masked_like(params, self.importance)
        state = self.walked(params)
        distance = _state.applied_change(params, state.start_params, state.count)

        def fold(total: jax.Array, path: jax.Array, change: jax.Array) -> jax.Array:
            square = _tree.squared_magnitude(change)
            memory, damping = self.memory.astype(square.dtype), self.damping.astype(square.dtype)
            gain = path.astype(square.dtype) / (square + damping)
            return _state.narrowed(jnp.maximum(memory * total.astype(square.dtype) + gain, 0), total.dtype)

        return state._replace(
            start_params=_state.copy_like(params, state.start_params),
            path_integral=jax.tree.map(jnp.zeros_like, state.path_integral),
            importance=jax.tree.map(fold, state.importance, state.path_integral, distance),
        )


def synaptic_intelligence(*, damping: float = 0.1, memory: float = 1.0, state_dtype: Any = None) -> Phi:
    r"""What each weight's path has contributed to lowering the loss (synaptic intelligence).

    .. math::
      \varphi = \Omega, \qquad \Omega \leftarrow \max\Big(0,\ \gamma\,\Omega +
      \frac{\sum_t -g_t\,\Delta w_t}{\Delta^2 + \xi}\Big) \ \text{ at each task boundary}

    with ``dw_t`` the change found in the weights after gradient ``g_t`` and ``Delta`` the change over the
    whole task. The sum over all weights of ``-g dw`` is the decrease of the loss, up to the second order of
    each step; under minibatch noise it overestimates. Phi stays as it is within a task.

    The gradients must come from the task alone, as published: put a pull to old weights after this stage,
    with ``add_anchored_weights`` between the stages or after them. The published penalty ``c * sum Omega (w -
    w_old)**2`` is ``add_anchored_weights(2 * c, anchor.task_boundary_weights(), precision="phi")``. Equal to
    the authors' program in float64.

    ``phi >= 0``. State: 5 values per weight. No collective. Needs ``params``. Extra argument of ``update``,
    optional: ``task_boundary`` (one boolean: this update is the first of a new task). In a Flax NNX loop:
    ``optimizer.update(model, gradients, task_boundary=boundary)``. For ``TrainState`` see
    :func:`riemann_optax.consolidate`.

    Args:
      damping: ``xi``, positive, in units of weight squared. Published default 0.1.
      memory: ``gamma``, the share of ``Omega`` that survives a boundary, in [0, 1]. Default 1, the published
        sum.
      state_dtype: of the path integral and of ``Omega``; None means float32, or wider where the parameter is
        wider.

    Returns:
      A phi with state :class:`SynapticIntelligenceState`, in units of loss per weight squared.

    Raises:
      ValueError: for a ``damping`` that is not positive or a concrete ``memory`` outside [0, 1]; at
        ``update``, where ``params`` are missing or ``task_boundary`` is no single boolean.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.synaptic_intelligence(damping=1.0)
      >>> params = jnp.array([1.0])
      >>> _, state = phi.update(jnp.array([4.0]), phi.init(params), params)
      >>> values, _ = phi.update(jnp.array([2.0]), state, jnp.array([0.0]), task_boundary=True)
      >>> print(values)  # -4 * (0 - 1) / ((0 - 1)**2 + 1)
      [2.]

    References:
      Zenke, Poole and Ganguli, `Continual Learning Through Synaptic Intelligence
      <https://arxiv.org/abs/1703.04200>`_, ICML, 2017
    """
    _check.check_number("damping", damping, low=0.0, low_open=True)
    check_share("memory", memory)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> SynapticIntelligenceState:
        return SynapticIntelligenceState(
            count=jnp.zeros([], jnp.int32),
            memory=_state.wide_scalar(memory),
            damping=_state.wide_scalar(damping),
            previous_params=_state.zeros_of(params),
            previous_gradients=_state.zeros_of(params),
            start_params=_state.zeros_of(params),
            path_integral=_tree.zeros_like(params, state_dtype),
            importance=_tree.zeros_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: SynapticIntelligenceState,
        params: optax.Params | None = None,
        *,
        task_boundary: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SynapticIntelligenceState]:
        del extra_args
        params = _check.require_params(params, "synaptic_intelligence")
        state = state._replace(memory=_state.wide_scalar(memory), damping=_state.wide_scalar(damping))
        state = consolidated_where(task_boundary, state, params).walked(params)
        new_state = state._replace(
            count=optax.safe_increment(state.count),
            previous_gradients=_state.copy_like(updates, state.previous_gradients),
            start_params=_state.first_or(params, state.start_params, state.count),
        )
        return _state.in_working_dtype(state.importance, updates), new_state

    return Phi(init, update, name="synaptic_intelligence", needs=("task_boundary",))


def loss_decrease(gradients: Any, params: Any, previous: Any, count: jax.Array) -> Any:
    """Return ``-g dw`` per weight for the change since the last update, 0 at the first."""
    changes = _state.applied_change(params, previous, count)
    return jax.tree.map(lambda g, dw: -_tree.inner(g, dw), gradients, changes)

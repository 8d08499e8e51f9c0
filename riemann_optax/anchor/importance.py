"""The anchor that stands for one anchor per task: their mean, weighted by importance."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Declared
from riemann_optax._state_fields import declare_fields
from riemann_optax._tree import wide_dtype
from riemann_optax.boundary import consolidated_where
from riemann_optax.phi import _state


@declare_fields(
    linear=("weights", "boundary_weights"),
    squared=("importance",),
    weights=("weights", "boundary_weights"),
    exact=("weights", "boundary_weights"),
)
class ImportanceWeightedState(NamedTuple):
    """State of :func:`importance_weighted_weights`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      tasks: int32 scalar, the number of task boundaries so far.
      pending: boolean scalar, whether the last boundary still waits for the importance of its task.
      weights: the anchor of all tasks before the last boundary that is pending, shaped like the parameters.
      boundary_weights: the parameters at the last boundary.
      importance: the precision at the last update, shaped like the parameters; 0 before the first boundary.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    tasks: jax.Array
    pending: jax.Array
    weights: optax.Params
    boundary_weights: optax.Params
    importance: optax.Updates

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after a task boundary; :func:`riemann_optax.consolidate` calls it."""
        # Before the first update no task of this state has ended: one that somebody has measured has. The
        # importance comes with the next update: the precision of the pull then includes the new task.
        ended = (self.count > 0) | (task_importance is not None)
        return self._replace(
            tasks=jnp.where(ended, optax.safe_increment(self.tasks), self.tasks),
            pending=jnp.logical_or(self.pending, ended),
            boundary_weights=_state.copy_like(_tree.masked_like(params, self.weights), self.boundary_weights),
        )


def importance_weighted_weights(*, memory: float = 1.0) -> optax.GradientTransformationExtraArgs:
    r"""Anchor: the mean of the weights at all task boundaries, weighted by the importance of their tasks.

    .. math::
      a = \frac{\sum_k F_k\,w_k}{\sum_k F_k}, \qquad
      \sum_k F_k\,(w - w_k) = \Big(\sum_k F_k\Big)\,(w - a)

    so one pull does what elastic weight consolidation as published does with one anchor per task. The
    importance is the ``precision`` of :func:`riemann_optax.add_anchored_weights`, and what it gains at a
    boundary is the importance of the task that ended::

        optax.chain(
            ro.compute_metric(ro.phi.online_ewc(), alpha=learning_rate * strength),
            ro.add_anchored_weights(strength, ro.anchor.importance_weighted_weights(), precision="phi"),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(learning_rate),
        )

    Equal in float64 to the sum over tasks of Kirkpatrick et al. From the third task on
    :func:`task_boundary_weights`, the single anchor of Schwarz et al, pulls elsewhere. Use it with
    importances that are sums over tasks, such as those of :func:`riemann_optax.phi.online_ewc` and
    :func:`riemann_optax.phi.laplace`, not with one that is scaled anew at each boundary, as that of
    :func:`riemann_optax.phi.rwalk` or inside of :func:`riemann_optax.phi.limited_mean`: there the gain of a
    task depends on the scale, not on the task alone. Where such a precision falls, its task has gained
    nothing. Until the first boundary, and where nothing has been important, it pulls to nothing.

    State: 3 values per weight. No collective. Needs ``params``. A boundary is announced by the extra argument
    ``task_boundary`` of ``update``, or by :func:`riemann_optax.consolidate`. In a Flax NNX loop:
    ``optimizer.update(model, gradients, task_boundary=boundary)``.

    Args:
      memory: the share of the old importance that survives a boundary, in [0, 1]: that of the phi.

    Returns:
      An anchor with state :class:`ImportanceWeightedState`.

    Raises:
      ValueError: for a concrete ``memory`` outside [0, 1]; at ``update``, where ``params`` or the precision
        are missing, or ``task_boundary`` is no single boolean.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> pull = ro.add_anchored_weights(
      ...     1.0, ro.anchor.importance_weighted_weights(), precision=ro.phi.online_ewc(running=False)
      ... )
      >>> state = pull.init(jnp.zeros(1))
      >>> for weight, importance in ((0.0, 0.0), (1.0, 2.0), (4.0, 1.0)):
      ...     updates, state = pull.update(
      ...         jnp.zeros(1),
      ...         state,
      ...         jnp.array([weight]),
      ...         task_boundary=True,
      ...         task_importance=jnp.array([importance]),
      ...     )
      >>> print(updates, state.anchor.weights)  # 2 * (4 - 1) + 1 * (4 - 4); (2 * 1 + 1 * 4) / 3
      [6.] [2.]

    References:
      Kirkpatrick et al, `Overcoming catastrophic forgetting in neural networks
      <https://doi.org/10.1073/pnas.1611835114>`_, PNAS, 2017

      Huszár, `Note on the quadratic penalties in elastic weight consolidation
      <https://doi.org/10.1073/pnas.1717042115>`_, PNAS, 2018: one anchor or several
    """
    _check.check_share("memory", memory)

    def init(params: optax.Params) -> ImportanceWeightedState:
        return ImportanceWeightedState(
            count=jnp.zeros([], jnp.int32),
            tasks=jnp.zeros([], jnp.int32),
            pending=jnp.zeros([], bool),
            weights=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p)), params),
            boundary_weights=_state.zeros_of(params),
            importance=_tree.zeros_like(params),
        )

    def update(
        updates: optax.Updates,
        state: ImportanceWeightedState,
        params: optax.Params | None = None,
        *,
        precision: optax.Updates | None = None,
        task_boundary: Any = None,
        task_importance: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Params, ImportanceWeightedState]:
        del updates, extra_args
        params = _check.require_params(params, "importance_weighted_weights")
        if precision is None:
            raise ValueError(
                "importance_weighted_weights needs the precision of the pull, for its importance: call "
                'add_anchored_weights(rate, importance_weighted_weights(), precision="phi"), or give a phi.'
            )
        state = consolidated_where(task_boundary, state, params, task_importance)

        def fold(anchor: jax.Array, ended: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
            after = after.astype(before.dtype)
            old = jnp.asarray(memory).astype(before.dtype) * before
            total = jnp.maximum(old, after)  # a precision that has shrunk has gained nothing
            share = jnp.where(total == 0, 0, old / jnp.where(total == 0, 1, total)).astype(anchor.dtype)
            ended = ended.astype(anchor.dtype)
            return jnp.where(state.pending, ended + share * (anchor - ended), anchor)

        weights = jax.tree.map(fold, state.weights, state.boundary_weights, state.importance, precision)
        importance = jax.tree.map(
            lambda i, p: jnp.where(state.tasks == 0, jnp.zeros_like(i), p.astype(i.dtype)),
            state.importance,
            precision,
        )
        new_state = state._replace(
            count=optax.safe_increment(state.count),
            pending=jnp.zeros_like(state.pending),
            weights=weights,
            importance=importance,
        )
        return _state.first_or(params, weights, state.tasks), new_state

    return Declared(init, update, name="importance_weighted_weights", needs=("task_boundary",))

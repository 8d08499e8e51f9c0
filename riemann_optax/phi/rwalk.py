"""RWalk: Fisher information, and the decrease of the loss per distance in it."""

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
from riemann_optax.phi.gradient_importance import fisher_information
from riemann_optax.phi.path_importance import loss_decrease


@declare_fields(
    linear=("previous_params", "previous_gradients", "window_params"),
    squared=("loss_decrease", "squares", "fisher", "task_score", "score", "importance"),
    weights=("previous_params", "window_params"),
    exact=("previous_params", "window_params"),
)
class RWalkState(NamedTuple):
    """State of :func:`rwalk`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      tasks: int32 scalar, the number of task boundaries so far.
      window: int32 scalar, the number of updates since the last score.
      memory: scalar, the argument of that name at the last update, which ``consolidate`` needs.
      mixing: scalar, likewise.
      damping: scalar, likewise.
      previous_params: the parameters at the last update.
      previous_gradients: the gradients at the last update.
      window_params: the parameters at the last score.
      loss_decrease: ``sum(-g dw)`` since the last score, shaped like the parameters.
      squares: sum of squared gradients since the last score, shaped like the parameters.
      fisher: running Fisher information, shaped like the parameters.
      task_score: sum of the scores since the last task boundary, shaped like the parameters.
      score: the decayed scores of all finished tasks, shaped like the parameters.
      importance: phi: ``score`` plus the Fisher information at the last task boundary, each scaled to [0, 1].
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    tasks: jax.Array
    window: jax.Array
    memory: jax.Array
    mixing: jax.Array
    damping: jax.Array
    previous_params: optax.Params
    previous_gradients: optax.Updates
    window_params: optax.Params
    loss_decrease: optax.Updates
    squares: optax.Updates
    fisher: optax.Updates
    task_score: optax.Updates
    score: optax.Updates
    importance: optax.Updates

    def walked(self, params: optax.Params) -> Self:
        """Return the state with the change since the last update counted."""
        decrease = loss_decrease(self.previous_gradients, params, self.previous_params, self.count)
        return self._replace(
            previous_params=_state.copy_like(params, self.previous_params),
            loss_decrease=_state.add(self.loss_decrease, decrease),
        )

    def scored(self, params: optax.Params) -> Self:
        """Return the state with the present window of updates scored and a new one begun."""
        change = _state.applied_change(params, self.window_params, self.count)

        def score(total: jax.Array, decrease: jax.Array, fisher: jax.Array, dw: jax.Array) -> jax.Array:
            square = _tree.squared_magnitude(dw)
            distance = 0.5 * fisher.astype(square.dtype) * square + self.damping.astype(square.dtype)
            gain = jnp.maximum(decrease.astype(square.dtype) / distance, 0)
            return _state.narrowed(total.astype(square.dtype) + gain, total.dtype)

        def average(fisher: jax.Array, squares: jax.Array) -> jax.Array:
            wide = _tree.to_working_dtype(squares)
            mean = wide / jnp.maximum(self.window, 1).astype(wide.dtype)
            mixing = self.mixing.astype(wide.dtype)
            mixed = mixing * mean + (1 - mixing) * fisher.astype(wide.dtype)
            return jnp.where(self.window == 0, fisher, _state.narrowed(mixed, fisher.dtype))

        return self._replace(
            window=jnp.zeros_like(self.window),
            window_params=_state.copy_like(params, self.window_params),
            loss_decrease=jax.tree.map(jnp.zeros_like, self.loss_decrease),
            squares=jax.tree.map(jnp.zeros_like, self.squares),
            # The distance of a window is measured by the Fisher information at its start.
            fisher=jax.tree.map(average, self.fisher, self.squares),
            task_score=jax.tree.map(score, self.task_score, self.loss_decrease, self.fisher, change),
        )

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after a task boundary; :func:`riemann_optax.consolidate` calls it."""
        del task_importance
        params = _tree.masked_like(params, self.importance)
        state = self.walked(params).scored(params)

        def fold(old: jax.Array, new: jax.Array) -> jax.Array:
            wide = _tree.to_working_dtype(new)
            memory = self.memory.astype(wide.dtype)
            mixed = memory * old.astype(wide.dtype) + (1 - memory) * wide
            return jnp.where(self.tasks == 0, wide, mixed).astype(old.dtype)

        score = jax.tree.map(fold, state.score, state.task_score)
        return state._replace(
            # Before the first update no task can have ended.
            tasks=jnp.where(state.count == 0, state.tasks, optax.safe_increment(state.tasks)),
            task_score=jax.tree.map(jnp.zeros_like, state.task_score),
            score=score,
            importance=jax.tree.map(
                lambda f, s: f + s.astype(f.dtype),
                _state.scaled_to_unit(state.fisher),
                _state.scaled_to_unit(score),
            ),
        )


def rwalk(
    *,
    interval: int = 10,
    mixing: float = 0.9,
    damping: float = 1e-3,
    memory: float = 0.5,
    state_dtype: Any = None,
) -> Phi:
    r"""Fisher information plus loss decrease per distance walked (Riemannian walk).

    .. math::
      \varphi = [F] + [s], \qquad [x] = \frac{x - \min x}{\max x - \min x}, \qquad
      s_\mathrm{task} = \sum_\mathrm{windows} \max\Big(0,\;
      \frac{\sum_t -g_t\,\Delta w_t}{\tfrac12 F\,\Delta^2 + \epsilon}\Big), \qquad
      s \leftarrow \gamma\,s + (1 - \gamma)\,s_\mathrm{task}

    ``Delta`` is the change of the weight over a window of ``interval`` updates, so that the denominator is
    the Kullback-Leibler divergence that the weight has walked. At the end of each window ``F`` becomes
    ``mixing * mean(g**2) + (1 - mixing) * F``. At a task boundary the window is closed early, ``s`` takes in
    the task's score (the first task's as it is), and phi becomes the sum of ``F`` and ``s``, each scaled to
    [0, 1] by its extremes over the tree; it stays as it is within a task. (Unscaled, ``s`` can be thousands
    of times as large as ``F``.)

    Equal to the paper's in float64. The authors' program has no 1/2 in the distance, and adds the mean of old
    and new score to the old instead of replacing it. The penalty ``lambda * sum phi (w - w_old)**2`` is
    ``add_anchored_weights(2 * lambda, anchor.task_boundary_weights(), precision="phi")``.

    The gradients must come from the task alone: put a pull to old weights after this stage. With
    ``per_example_gradients`` (a leading batch axis) ``F`` is the empirical Fisher; **without them it is the
    batched Fisher**, as in the published code.

    ``0 <= phi <= 2``. State: 9 values per weight. Under sharding, where ``task_boundary`` is given, four
    all-reduces of a scalar per leaf (the extremes), which XLA combines; and the mean over the batch axis of
    ``per_example_gradients`` where that axis is sharded. Needs ``params``. Extra arguments of ``update``,
    both optional: ``task_boundary`` (one boolean: this update is the first of a new task) and
    ``per_example_gradients``. In a Flax NNX loop: ``optimizer.update(model, gradients,
    task_boundary=boundary)``. For ``TrainState`` see :func:`riemann_optax.consolidate`.

    Args:
      interval: the updates in a window, at least 1. Published default 10 (50 for larger networks).
      mixing: the weight of the newest window in ``F``, in [0, 1]. Published default 0.9.
      damping: ``epsilon``, positive, in units of loss. Default 1e-3, as in the published code.
      memory: ``gamma``, the share of ``s`` that survives a boundary, in [0, 1]. Published default 0.5.
      state_dtype: of all but the copies of parameters and gradients; None means float32, or wider where the
        parameter is wider.

    Returns:
      A phi with state :class:`RWalkState`, without units.

    Raises:
      ValueError: for a concrete argument outside its range; at ``update``, where ``params`` are missing, for
        ``per_example_gradients`` that lack the batch axis, or a ``task_boundary`` that is no single boolean.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.rwalk(interval=1, damping=1.0)
      >>> params = jnp.array([1.0, 1.0, 1.0])
      >>> _, state = phi.update(jnp.array([0.0, 1.0, 2.0]), phi.init(params), params)
      >>> values, state = phi.update(jnp.zeros(3), state, jnp.array([0.0, 0.0, 0.5]), task_boundary=True)
      >>> print(state.score)  # (2 * 0.5) / (4 * 0.25 / 2 + 1) for the last weight, whose F is 2**2
      [0. 0.667 0.667]
      >>> print(values)  # F is 0, 1 and 4
      [0. 1.25 2. ]

    References:
      Chaudhry et al, `Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence
      <https://arxiv.org/abs/1801.10112>`_, ECCV, 2018
    """
    _check.check_count("interval", interval)
    check_share("mixing", mixing)
    _check.check_number("damping", damping, low=0.0, low_open=True)
    check_share("memory", memory)
    _check.check_state_dtype(state_dtype, squares=True)

    def hyper_parameters() -> dict[str, jax.Array]:
        return {
            "memory": _state.wide_scalar(memory),
            "mixing": _state.wide_scalar(mixing),
            "damping": _state.wide_scalar(damping),
        }

    def init(params: optax.Params) -> RWalkState:
        return RWalkState(
            count=jnp.zeros([], jnp.int32),
            tasks=jnp.zeros([], jnp.int32),
            window=jnp.zeros([], jnp.int32),
            **hyper_parameters(),
            previous_params=_state.zeros_of(params),
            previous_gradients=_state.zeros_of(params),
            window_params=_state.zeros_of(params),
            loss_decrease=_tree.zeros_like(params, state_dtype),
            squares=_tree.zeros_like(params, state_dtype),
            fisher=_tree.zeros_like(params, state_dtype),
            task_score=_tree.zeros_like(params, state_dtype),
            score=_tree.zeros_like(params, state_dtype),
            importance=_tree.zeros_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: RWalkState,
        params: optax.Params | None = None,
        *,
        task_boundary: Any = None,
        per_example_gradients: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RWalkState]:
        del extra_args
        params = _check.require_params(params, "rwalk")
        state = consolidated_where(task_boundary, state._replace(**hyper_parameters()), params).walked(params)
        full = state.window >= interval
        state = jax.tree.map(lambda new, old: jnp.where(full, new, old), state.scored(params), state)
        squares = fisher_information(updates, per_example_gradients)
        new_state = state._replace(
            count=optax.safe_increment(state.count),
            window=state.window + 1,
            previous_gradients=_state.copy_like(updates, state.previous_gradients),
            window_params=_state.first_or(params, state.window_params, state.count),
            squares=_state.add(state.squares, squares),
            fisher=_state.first_or(squares, state.fisher, state.count),
        )
        return _state.in_working_dtype(state.importance, updates), new_state

    return Phi(init, update, name="rwalk", needs=("per_example_gradients", "task_boundary"))

"""Activity: how large the gradients of a synapse have been, and how far from their own mean."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi
from riemann_optax._state_fields import declare_fields
from riemann_optax.phi import _state


@declare_fields(squared=("second_moment",), nonnegative=("second_moment",))
class ActivityState(NamedTuple):
    """State of :func:`activity`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      second_moment: running mean of the squared gradient, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    second_moment: optax.Updates


def activity(*, decay: float = 0.99, power: float = 0.5, state_dtype: Any = None) -> Phi:
    r"""Running root mean square of the gradient: a busy synapse is stiff.

    .. math::
      v_t = \beta v_{t-1} + (1 - \beta)\,|g_t|^2, \qquad \varphi_t = \big(v_t / (1 - \beta^t)\big)^p

    At every alpha, ``compute_metric(activity(decay=decay), alpha)`` and rate ``lr`` are bias-corrected
    RMSprop at rate ``lr / alpha`` with ``eps = 1 / alpha``: a finite alpha is an epsilon with a meaning.

    ``phi >= 0``. State: 1 value per weight. No collective. With ``state_dtype=bfloat16`` a decay above about
    0.99 is refused, since small increments would round away: :func:`riemann_optax.low_precision_state` keeps
    them.

    Args:
      decay: of the running mean, in [0, 1), per update. Default of Tieleman and Hinton's successors: 0.99.
      power: the exponent ``p`` of the mean square, positive; 0.5 makes phi a gradient size.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`ActivityState`. A gradient above 2**63 (float32) counts as 2**63,
      so that its step is longer than the rate: put ``optax.clip_by_global_norm`` before.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1), a ``power`` that is not positive, or a
        ``state_dtype`` that is not real floating point.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.activity(decay=0.5)
      >>> state = phi.init(jnp.zeros(2))
      >>> values, state = phi.update(jnp.array([3.0, -4.0]), state)
      >>> print(values)
      [3. 4.]

    References:
      Tieleman and Hinton, Lecture 6.5: RMSprop, Coursera: Neural Networks for Machine Learning, 2012
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_number("power", power, low=0.0, low_open=True)
    _check.check_state_dtype(state_dtype, squares=True)

    def init(params: optax.Params) -> ActivityState:
        return ActivityState(jnp.zeros([], jnp.int32), _tree.zeros_like(params, state_dtype))

    def update(
        updates: optax.Updates, state: ActivityState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ActivityState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        squares = jax.tree.map(_tree.squared_magnitude, updates)
        mean = _state.running_mean(squares, state.second_moment, decay)
        values = _tree.power(_state.debias(mean, decay, count), power)
        return values, ActivityState(count, _state.cast_like(mean, state.second_moment))

    return Phi(init, update, name="activity")


@declare_fields(squared=("sum_of_squares",), nonnegative=("sum_of_squares",))
class AccumulatedActivityState(NamedTuple):
    """State of :func:`accumulated_activity`.

    Attributes:
      sum_of_squares: sum of all squared gradients so far, shaped like the parameters.
    """

    sum_of_squares: optax.Updates


def accumulated_activity(*, power: float = 0.5, memory: float = 1.0, state_dtype: Any = None) -> Phi:
    r"""Root of the sum of all squared gradients: a synapse stiffens with everything it went through.

    .. math::
      s_t = \gamma\,s_{t-1} + |g_t|^2, \qquad \varphi_t = s_t^{\,p}

    With ``power=0.5`` this is Adagrad as published, at rate ``lr / alpha`` with ``delta = 1 / alpha``.
    (``optax.adagrad`` differs: it starts from 0.1 and adds epsilon inside the root.)

    ``phi >= 0``. State: 1 value per weight. No collective. Without a window the sum never shrinks; in float32
    it stops growing once it exceeds the squared gradients by 2**24.

    Args:
      power: the exponent ``p`` of the sum, positive.
      memory: ``gamma``, the share of the sum that survives an update, in [0, 1]. Default 1, the published
        sum; below 1 the window is about ``1 / (1 - gamma)`` updates.
      state_dtype: of the sum; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`AccumulatedActivityState`.

    Raises:
      ValueError: for a ``power`` that is not positive, a concrete ``memory`` outside [0, 1] or a
        ``state_dtype`` that is not real floating point.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.accumulated_activity()
      >>> state = phi.init(jnp.zeros(1))
      >>> _, state = phi.update(jnp.array([3.0]), state)
      >>> values, state = phi.update(jnp.array([4.0]), state)
      >>> print(values)
      [5.]

    References:
      Duchi, Hazan and Singer, `Adaptive Subgradient Methods for Online Learning and Stochastic Optimization
      <https://jmlr.org/papers/v12/duchi11a.html>`_, JMLR, 2011
    """
    _check.check_number("memory", memory, low=0.0, high=1.0)
    if not (_check.is_concrete_number(memory) and memory == 1):  # the published sum stops growing by itself
        _check.check_mean_moves("memory", memory, "state_dtype", state_dtype)
    _check.check_number("power", power, low=0.0, low_open=True)
    _check.check_state_dtype(state_dtype, squares=True)

    def init(params: optax.Params) -> AccumulatedActivityState:
        return AccumulatedActivityState(_tree.zeros_like(params, state_dtype))

    def update(
        updates: optax.Updates,
        state: AccumulatedActivityState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulatedActivityState]:
        del params, extra_args

        def accumulate(gradient: jax.Array, total: jax.Array) -> jax.Array:
            square = _tree.squared_magnitude(gradient)
            # Saturate: an infinite sum would freeze its synapse for good.
            kept = jnp.asarray(memory).astype(square.dtype) * total.astype(square.dtype)
            return jnp.minimum(kept + square, np.finfo(square.dtype).max)

        total = jax.tree.map(accumulate, updates, state.sum_of_squares)
        values = _tree.power(total, power)
        return values, AccumulatedActivityState(_state.cast_like(total, state.sum_of_squares))

    return Phi(init, update, name="accumulated_activity")


@declare_fields(linear=("expected",), squared=("variance",))
class SurpriseState(NamedTuple):
    """State of :func:`surprise`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      expected: running mean of the gradient, shaped like the parameters.
      variance: running mean of the squared distance of the gradient from it, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    expected: optax.Updates
    variance: optax.Updates


def surprise(
    *, expected_decay: float = 0.9, decay: float = 0.999, power: float = 0.5, state_dtype: Any = None
) -> Phi:
    r"""Running distance of the gradient from its own mean: a synapse is stiff where gradients surprise it.

    .. math::
      m_t = \beta_1 m_{t-1} + (1 - \beta_1)\,g_t, \qquad
      s_t = \beta_2 s_{t-1} + (1 - \beta_2)\,|g_t - m_t|^2, \qquad
      \varphi_t = \big(s_t / (1 - \beta_2^t)\big)^p

    A constant large gradient leaves a synapse free, while :func:`activity` stiffens it: only noise and
    oscillation count here. This is the denominator of AdaBelief, equal to Optax's in float64 without the two
    epsilons that Optax adds. As in Optax, the mean is not bias-corrected.

    ``phi >= 0``. State: 2 values per weight. No collective.

    Args:
      expected_decay: of the running mean of the gradient, in [0, 1), per update.
      decay: of the running mean of the squared distance, in [0, 1), per update.
      power: the exponent ``p``, positive; 0.5 makes phi a distance of gradients.
      state_dtype: of both means; None means float32, or wider where the parameter is wider. The mean of
        complex gradients is complex.

    Returns:
      A phi with state :class:`SurpriseState`.

    Raises:
      ValueError: for a concrete decay outside [0, 1), a ``power`` that is not positive, or a ``state_dtype``
        that is not real floating point.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.surprise(expected_decay=0.5, decay=0.5)
      >>> state = phi.init(jnp.zeros(2))
      >>> for gradients in (jnp.array([8.0, 8.0]), jnp.array([8.0, -8.0])):
      ...     values, state = phi.update(gradients, state)
      >>> print(values)  # the second has turned round: sqrt((16/4 + 36/2) / (3/4))
      [2.828 5.416]

    References:
      Zhuang et al, `AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients
      <https://arxiv.org/abs/2010.07468>`_, NeurIPS, 2020
    """
    _check.check_decay(expected_decay, "expected_decay", state_dtype)
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_number("power", power, low=0.0, low_open=True)
    _check.check_state_dtype(state_dtype, squares=True)

    def init(params: optax.Params) -> SurpriseState:
        return SurpriseState(
            count=jnp.zeros([], jnp.int32),
            expected=_tree.vectors_like(params, state_dtype),
            variance=_tree.zeros_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates, state: SurpriseState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, SurpriseState]:
        del params, extra_args
        count = optax.safe_increment(state.count)

        def expect(gradient: jax.Array, mean: jax.Array) -> jax.Array:
            wide = jnp.asarray(gradient).astype(_tree.wide_dtype(gradient))
            rate = jnp.asarray(expected_decay).astype(_tree.working_dtype(gradient))
            return rate * mean.astype(wide.dtype) + (1 - rate) * wide

        expected = jax.tree.map(expect, updates, state.expected)
        distances = jax.tree.map(
            lambda g, m: _tree.squared_magnitude(g.astype(m.dtype) - m), updates, expected
        )
        variance = _state.running_mean(distances, state.variance, decay)
        values = _tree.power(_state.debias(variance, decay, count), power)
        return values, SurpriseState(
            count=count,
            expected=_state.cast_like(expected, state.expected),
            variance=_state.cast_like(variance, state.variance),
        )

    return Phi(init, update, name="surprise")

"""Momentum as a mean: a rate then means what it means to Adam."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax import _observe as observe
from riemann_optax.covector import Covector


def ema(
    decay: float = 0.9, nesterov: bool = False, accumulator_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Bias-corrected running mean of the updates, with Nesterov's look-ahead if asked for.

    .. math::
      m_t = \beta\,m_{t-1} + (1 - \beta)\,u_t, \qquad
      \hat u_t = \frac{m_t}{1 - \beta^t}
      \quad\text{or}\quad
      \hat u_t = \frac{\beta\,m_t}{1 - \beta^{t+1}} + \frac{(1 - \beta)\,u_t}{1 - \beta^t}

    A steady update keeps its size. ``optax.trace``, the momentum of ``optax.sgd``, makes it ``1/(1 - decay)``
    times as large: at decay 0.9 a rate of Adam's would be ten times too high for it. Without Nesterov this is
    ``optax.ema``; with it, it is what ``optax.nadam`` does to its first moment.

    Between the stages it may stand **in the place of** :func:`scale_by_inverse_metric`: of covectors it
    averages the tangent vectors, which on a CPU is twice as fast as the two in a row and the same otherwise.

    State: 1 value per weight. Elementwise, so no collective.

    Args:
      decay: of the running mean, in [0, 1), per update.
      nesterov: whether to look ahead.
      accumulator_dtype: of the mean; None means float32, or wider where the parameter is wider. The mean of
        complex updates is complex.

    Returns:
      A gradient transformation with state ``optax.EmaState``. The result has the dtype of the updates.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1), or a dtype that is not real and floating point.
      TypeError: for a ``nesterov`` that is no boolean.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.ema(0.9, nesterov=True)
      >>> updates = jnp.array([1.0])
      >>> state = tx.init(updates)
      >>> for _ in range(2):
      ...     mean, state = tx.update(updates, state)
      ...     print(mean)  # NAdam's correction: close to 1, not 1 / (1 - 0.9)
      [1.474]
      [1.157]

    References:
      Dozat, `Incorporating Nesterov Momentum into Adam
      <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_, ICLR workshop, 2016
    """
    _check.check_decay(decay)
    _check.check_flag("nesterov", nesterov)
    _check.check_state_dtype(accumulator_dtype, "accumulator_dtype")
    _check.check_mean_moves("decay", decay, "accumulator_dtype", accumulator_dtype)

    def init(params: optax.Params) -> optax.EmaState:
        return optax.EmaState(
            count=jnp.zeros([], jnp.int32), ema=_tree.vectors_like(params, accumulator_dtype)
        )

    def update(
        updates: optax.Updates,
        state: optax.EmaState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmaState]:
        del params, extra_args
        observe.metric_used(updates)
        count = optax.safe_increment(state.count)

        @functools.cache  # scalars once for each dtype, not for each leaf: each is to be compiled
        def shares(dtype: Any) -> tuple[jax.Array, jax.Array]:
            rate = jnp.asarray(decay).astype(dtype)
            return rate, 1 - rate

        @functools.cache
        def corrections(dtype: Any) -> tuple[jax.Array, jax.Array]:
            rate, new = shares(dtype)
            number = count.astype(dtype)
            if not nesterov:
                return 1 / (1 - rate**number), jnp.zeros_like(rate)
            return rate / (1 - rate ** (number + 1)), new / (1 - rate**number)

        def wide(u: Any, m: jax.Array) -> Any:
            # One after the other: float16 and bfloat16 have no common dtype but that of work.
            return np.promote_types(np.promote_types(u.dtype, _tree.working_dtype(u)), m.dtype)

        def average(u: Any, m: jax.Array) -> jax.Array:
            dtype = wide(u, m)
            old, new = shares(_real(dtype))
            mean: jax.Array = old * m.astype(dtype) + new * _tangent(u, dtype)
            return mean

        def correct(u: Any, mean: jax.Array) -> jax.Array:
            ahead, here = corrections(_real(mean.dtype))
            corrected = ahead * mean
            if nesterov:
                corrected = corrected + _scaled_tangent(u, here, mean.dtype)
            return corrected.astype(u.dtype)

        means = jax.tree.map(average, updates, state.ema)
        corrected = jax.tree.map(correct, updates, means)
        stored = jax.tree.map(lambda mean, old: mean.astype(old.dtype), means, state.ema)
        return corrected, optax.EmaState(count=count, ema=stored)

    return optax.GradientTransformationExtraArgs(init, update)


def measure_with_momentum(
    stage_1: optax.GradientTransformation, momentum: optax.GradientTransformation, share: Any
) -> optax.GradientTransformationExtraArgs:
    """Return a stage 1 that sees gradient and momentum in quadrature, and whose covector is the momentum.

    Phi sees ``sqrt(share |g|**2 + (1 - share) |m|**2)``. Of a stationary gradient with spectrum ``S``,
    ``g**2`` is the sum of ``S`` and ``m**2`` that of ``|H|**2 S``, with ``H`` the filter of the mean. So the
    share is the least part of a fast component, noise or oscillation, that phi still counts.
    """
    stage_1, momentum = optax.with_extra_args_support(stage_1), optax.with_extra_args_support(momentum)

    def init(params: optax.Params) -> tuple[optax.OptState, optax.OptState]:
        return momentum.init(params), stage_1.init(params)

    def update(
        updates: optax.Updates,
        state: tuple[optax.OptState, optax.OptState],
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, tuple[optax.OptState, optax.OptState]]:
        means, mean_state = momentum.update(updates, state[0], params, **extra_args)

        def size(gradient: jax.Array, mean: jax.Array) -> jax.Array:
            square, square_of_mean = _tree.squared_magnitude(gradient), _tree.squared_magnitude(mean)
            part = jnp.asarray(share).astype(square.dtype)
            both: jax.Array = _tree.power(part * square + (1 - part) * square_of_mean, 0.5)
            return both.astype(gradient.dtype)

        sizes = jax.tree.map(size, updates, means)
        measured, metric_state = stage_1.update(sizes, state[1], params, **extra_args)

        def attach(old: Any, mean: jax.Array) -> Any:
            return old.with_components(mean) if isinstance(old, Covector) else mean

        covectors = jax.tree.map(attach, measured, means, is_leaf=lambda leaf: isinstance(leaf, Covector))
        return covectors, (mean_state, metric_state)

    return optax.GradientTransformationExtraArgs(init, update)


def keep_state_types(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return ``tx`` with a state whose dtypes stay those of ``init``.

    Optax's momentum takes the dtype of the gradient: bfloat16 weights with float32 gradients would change
    the structure of a compiled loop, and refuse the run's own checkpoint.
    """
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, new_state = tx.update(updates, state, params, **extra_args)
        return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, state)

    def init(params: optax.Params) -> optax.OptState:
        # Zeros of a weakly typed weight would be weak, and strong from the first update on.
        return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), tx.init(params))

    return optax.GradientTransformationExtraArgs(init, update)


def _tangent(update: Any, dtype: Any) -> jax.Array:
    """Return an update in ``dtype``; of a covector the tangent vector."""
    if isinstance(update, Covector):
        return update.with_components(update.components.astype(dtype)).raise_index()
    return jnp.asarray(update).astype(dtype)


def _scaled_tangent(update: Any, factor: jax.Array, dtype: Any) -> jax.Array:
    """Return ``factor * update``; of a covector a product, where :func:`_tangent` has a quotient.

    On a CPU XLA would keep one quotient with two users in fresh memory of the size of the leaf, which costs
    more than the whole update. Of two expressions it keeps none.
    """
    if isinstance(update, Covector):
        scaled = update.with_inverse_metric(factor / update.metric)
        return scaled.with_components(update.components.astype(dtype)).raise_index()
    return factor * jnp.asarray(update).astype(dtype)


def _real(dtype: Any) -> Any:
    return np.empty(0, dtype).real.dtype

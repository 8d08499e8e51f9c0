"""Activity read from momentum: the phi and the momentum share one value per weight."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi, keeps_momentum
from riemann_optax._state_fields import declare_fields
from riemann_optax.phi import _state


@declare_fields(linear=("momentum",))
class MomentumActivityState(NamedTuple):
    """State of :func:`momentum_activity`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      momentum: running mean of the gradient, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    momentum: optax.Updates


def momentum_activity(*, decay: float = 0.9, state_dtype: Any = None) -> Phi:
    r"""Size of the gradient, estimated from momentum: a busy synapse is stiff, without a state of its own.

    .. math::
      m_t = \beta m_{t-1} + (1 - \beta)\,g_t, \qquad
      v_t = \big(1 - (1 - \beta)^2\big)\,|m_{t-1}|^2 + (1 - \beta)^2\,|g_t|^2, \qquad
      \varphi_t = \frac{\sqrt{v_t}}{1 - \beta^t}

    :math:`v_t` estimates the mean square of the *momentum*, so this phi is made for steps along it:
    :func:`riemann_optax.momentum_from_phi` takes the momentum out of this phi's state, and the chain keeps
    **one value per weight in all**. Without that edit the step is along the gradient.

    Use it if memory is tight. Phi remembers no longer than momentum does, ``1 / (1 - decay)`` updates, and so
    is noisier than a phi with a longer memory of its own. :func:`factored_activity` with momentum keeps one
    more value per row and column.

    ``phi >= 0``. State: 1 value per weight, the momentum. No collective. Two stages with ``conformal="tree"``
    and a large alpha take the rates of Adam where gradients have no noise. Where they are mostly noise their
    mean, and phi with it, is ``sqrt((1 - decay) / (1 + decay))`` times as large as they are: begin at that
    share of Adam's rate, 0.23 at a decay of 0.9.

    Args:
      decay: of the running mean, in (0, 1), per update.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider. The mean of
        complex gradients is complex.

    Returns:
      A phi with state :class:`MomentumActivityState`. A size above 2**63 (float32) counts as 2**63.

    Raises:
      ValueError: for a concrete ``decay`` outside (0, 1), or a ``state_dtype`` that is not real floating
        point.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.momentum_activity(decay=0.9), alpha=1e4, conformal="tree"),
      ...     ro.momentum_from_phi(),
      ...     ro.scale_by_inverse_metric(),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.array([3.0, -4.0]), tx.init(params), params)
      >>> print(updates)  # the first step is Adam's
      [-0.1  0.1]
      >>> print([leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim])
      [(2,)]

    References:
      Jiang and Xiao, `Stochastic Approximation with Block Coordinate Optimal Stepsizes
      <https://arxiv.org/abs/2507.08963>`_, arXiv, 2025: BCOS, the second moment from one momentum.
      There momentum and second moment have no bias correction; both have the same here, so that their
      quotient, the step at an infinite alpha, is the published one.
    """
    _check.check_number("decay", decay, low=0.0, high=1.0, low_open=True, high_open=True)
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_state_dtype(state_dtype, squares=True)

    def init(params: optax.Params) -> MomentumActivityState:
        return MomentumActivityState(jnp.zeros([], jnp.int32), _tree.vectors_like(params, state_dtype))

    def update_with_means(
        over: _tree.Group | None,
        updates: optax.Updates,
        state: MomentumActivityState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any, MomentumActivityState]:
        del params, extra_args
        count = optax.safe_increment(state.count)

        @functools.cache  # scalars once per dtype, not per leaf, because each takes time to compile
        def scalars(dtype: Any) -> tuple[jax.Array, ...]:
            rate = jnp.asarray(decay).astype(dtype)
            number = count.astype(dtype)
            return rate, 1 - rate, 1 / rate, 1 / (1 - rate**number), rate / (1 - rate ** (number + 1))

        def average(g: Any, m: jax.Array) -> jax.Array:
            dtype = _tree.wide_dtype(g)
            old, new, *_ = scalars(_tree.working_dtype(g))
            mean: jax.Array = old * m.astype(dtype) + new * jnp.asarray(g).astype(dtype)
            return mean

        def expected_square(g: Any, mean: jax.Array) -> jax.Array:
            _, new, inverse, *_ = scalars(_tree.working_dtype(g))
            fresh = new * jnp.asarray(g).astype(mean.dtype)
            # Compute the old momentum from the new: two reads of the donated state would copy it on a CPU.
            old = inverse * (mean - fresh)
            return (1 - new * new) * _tree.squared_magnitude(old) + _tree.squared_magnitude(fresh)

        def root_over_share(g: Any, mean: jax.Array) -> jax.Array:
            # Deliberately unlike the expression of phi: XLA would store the root of a shared expression in
            # new memory, which on a CPU costs more than the whole update.
            _, new, inverse, *_ = scalars(_tree.working_dtype(g))
            old = (1 / new) * mean - jnp.asarray(g).astype(mean.dtype)
            share = (1 - new * new) * inverse * inverse
            root: jax.Array = _tree.power(
                share * jnp.square(_state.real(old)) + jnp.square(_state.real(g)), 0.5
            )
            return root

        def corrected(g: Any, mean: jax.Array) -> Callable[[bool], jax.Array]:
            def momentum(nesterov: bool) -> jax.Array:
                _, new, _, here, ahead = scalars(_tree.working_dtype(g))
                if not nesterov:
                    return (here * mean).astype(g.dtype)
                return (ahead * mean + (here * new) * jnp.asarray(g).astype(mean.dtype)).astype(g.dtype)

            return momentum

        means = jax.tree.map(average, updates, state.momentum)
        roots = _tree.power(jax.tree.map(expected_square, updates, means), 0.5)
        values = jax.tree.map(lambda root: scalars(root.dtype)[3] * root, roots)
        keeps_momentum(jax.tree.map(corrected, updates, means))
        group_means = None
        if over in ("leaf", "tree"):
            group_means = _tree.group_mean(jax.tree.map(root_over_share, updates, means), over)
            factor = functools.cache(lambda dtype: scalars(dtype)[1] * scalars(dtype)[3])
            group_means = jax.tree.map(_tree.once(lambda mean: factor(mean.dtype) * mean), group_means)
        return values, group_means, MomentumActivityState(count, _state.cast_like(means, state.momentum))

    def update(
        updates: optax.Updates, state: MomentumActivityState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, MomentumActivityState]:
        values, _, new_state = update_with_means(None, updates, state, params, **extra)
        return values, new_state

    return Phi(init, update, name="momentum_activity", update_with_means=update_with_means)

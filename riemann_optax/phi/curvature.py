"""Curvature: how quickly the gradient of a weight changes as the weight moves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi, required_loss
from riemann_optax._state_fields import declare_fields
from riemann_optax.phi import _state


@declare_fields(
    linear=("previous_params", "previous_gradients"),
    squared=("covariation", "variation"),
    weights=("previous_params",),
    exact=("previous_params", "previous_gradients"),
)
class SecantCurvatureState(NamedTuple):
    """State of :func:`secant_curvature`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      previous_params: the parameters at the last update.
      previous_gradients: the gradients at the last update.
      covariation: running mean of ``abs(dg * dw)`` over the updates that moved a weight, shaped like the
        parameters.
      variation: running mean of ``abs(dw)**2`` over the same, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    previous_params: optax.Params
    previous_gradients: optax.Updates
    covariation: optax.Updates
    variation: optax.Updates


def secant_curvature(*, decay: float = 0.9, initial_phi: float = 1e4, state_dtype: Any = None) -> Phi:
    r"""Curvature along each axis from successive gradients, a diagonal Barzilai-Borwein rule.

    .. math::
      \varphi = \frac{\overline{|\Delta g\,\Delta w|}}{\overline{|\Delta w|^2}}

    with bars for running means over the updates that moved the weight, and deltas for changes since the last
    update. On a quadratic with a diagonal Hessian it is exact after one step. At the first update, and for a
    weight that has never moved, nothing is known and ``phi = initial_phi``: choose it above any expected
    curvature, so that the first update is a small probe.

    **Deterministic gradients only**: with minibatches ``dg`` is mostly the change of batch, and phi grows
    without bound. With minibatches pass ``gradients_at_previous_params``, the gradient of the *current*
    batch at the *previous* parameters, as an extra argument; both gradients then come from one batch.

    ``phi >= 0``. State: 4 values per weight. No collective. Needs ``params``.

    Args:
      decay: of both running means, in [0, 1). 0 uses the last step alone.
      initial_phi: the curvature assumed before anything is known, positive, in units of loss per weight
        squared.
      state_dtype: of the running means; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`SecantCurvatureState`. Optional extra argument of ``update``:
      ``gradients_at_previous_params``, a tree like the gradients.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1) or an ``initial_phi`` that is not positive; at
        ``update``, where ``params`` are missing.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> loss = lambda w: 0.5 * (3.0 * w[0] ** 2 + 50.0 * w[1] ** 2)
      >>> phi = ro.phi.secant_curvature()
      >>> state = phi.init(jnp.zeros(2))
      >>> for params in (jnp.array([1.0, 1.0]), jnp.array([0.5, 0.75])):
      ...     values, state = phi.update(jax.grad(loss)(params), state, params)
      ...     print(values)
      [10000.0 10000.0]
      [ 3.00 50.00]

    References:
      Barzilai and Borwein, `Two-Point Step Size Gradient Methods
      <https://doi.org/10.1093/imanum/8.1.141>`_, IMA Journal of Numerical Analysis, 1988
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_number("initial_phi", initial_phi, low=0.0, low_open=True)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> SecantCurvatureState:
        return SecantCurvatureState(
            count=jnp.zeros([], jnp.int32),
            previous_params=_state.zeros_of(params),
            previous_gradients=_tree.vectors_like(params),  # rounded ones would differ by their rounding
            covariation=_tree.zeros_like(params, state_dtype),
            variation=_tree.zeros_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: SecantCurvatureState,
        params: optax.Params | None = None,
        *,
        gradients_at_previous_params: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SecantCurvatureState]:
        del extra_args
        params = _check.require_params(params, "secant_curvature")
        before = (
            state.previous_gradients if gradients_at_previous_params is None else gradients_at_previous_params
        )
        dw = _state.applied_change(params, state.previous_params, state.count)
        dg = _state.applied_change(updates, before, state.count)
        products = jax.tree.map(lambda a, b: _tree.magnitude(a) * _tree.magnitude(b), dg, dw)
        squares = jax.tree.map(_tree.squared_magnitude, dw)
        average = _state.averaging(decay)

        def while_moving(new: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
            # A rest tells nothing. If both means shrank in it, the smaller one would become 0 first.
            return jnp.where(square == 0, mean.astype(new.dtype), average(new, mean))

        covariation = jax.tree.map(while_moving, products, state.covariation, squares)
        variation = jax.tree.map(while_moving, squares, state.variation, squares)

        values = jax.tree.map(lambda c, v: _tree.divided(c, v, initial_phi), covariation, variation)
        new_state = SecantCurvatureState(
            count=optax.safe_increment(state.count),
            previous_params=_state.copy_like(params, state.previous_params),
            previous_gradients=_state.copy_like(updates, state.previous_gradients),
            covariation=_state.cast_like(covariation, state.covariation),
            variation=_state.cast_like(variation, state.variation),
        )
        return values, new_state

    return Phi(init, update, name="secant_curvature", needs=("gradients_at_previous_params",))


@declare_fields(squared=("diagonal",))
class HutchinsonCurvatureState(NamedTuple):
    """State of :func:`hutchinson_curvature`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      key: the random key of the probes.
      diagonal: running mean of the probes' estimates of the Hessian's diagonal, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    key: jax.Array
    diagonal: optax.Updates


def hutchinson_curvature(*, decay: float = 0.99, key: jax.Array | int = 0, state_dtype: Any = None) -> Phi:
    r"""Diagonal of the Hessian from one Hessian-vector product per update (Hutchinson's probes).

    .. math::
      \varphi = \Big|\,\overline{z \odot H z}\,\Big|, \qquad z_i = \pm 1 \text{ at random}

    with a bar for the bias-corrected running mean, as in Sophia's second moment. One probe is exact where the
    Hessian is diagonal; elsewhere it is unbiased with variance ``sum_{j != i} H_ij**2``, which the mean
    reduces, and where estimates of both signs alternate they cancel.

    AdaHessian does not let them cancel: it takes the root of the mean of their squares,
    :math:`\sqrt{\overline{(z \odot H z)^2}}`. That phi is the chain::

        optax.chain(ro.phi.hutchinson_curvature(decay=0.0), ro.phi.activity(decay=0.999))

    With ``alpha = 1 / eps``, rate ``lr / eps`` and ``on_gradient(optax.ema(0.9))`` between the stages it is
    AdaHessian for leaves with one axis, equal to the paper's in float64. For matrices and convolutions the
    paper first averages the diagonal over blocks; this does not.

    ``phi >= 0``. State: 1 value per weight. Elementwise but for the Hessian-vector product, which costs about
    twice a gradient and has its collectives.

    Needs ``params`` and the extra argument ``obj_fn``, the loss of the current batch as a function of the
    parameters (the name ``optax.contrib.sophia`` uses; or ``value_fn``, that of Optax's line searches). In a
    Flax NNX loop: ``optimizer.update(model, gradients, obj_fn=loss_of_params)``.

    Args:
      decay: of the running mean, in [0, 1).
      key: a random key or an integer seed.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`HutchinsonCurvatureState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1); at ``update``, where ``params`` or ``obj_fn`` are
        missing.
      TypeError: for a ``key`` that is neither a random key nor an integer.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> loss = lambda w: 0.5 * (3.0 * w[0] ** 2 + 50.0 * w[1] ** 2)
      >>> phi = ro.phi.hutchinson_curvature()
      >>> params = jnp.array([1.0, 1.0])
      >>> values, _ = phi.update(jax.grad(loss)(params), phi.init(params), params, obj_fn=loss)
      >>> print(values)
      [ 3.00 50.00]

    References:
      Liu et al, `Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training
      <https://arxiv.org/abs/2305.14342>`_, ICLR, 2024: the running mean

      Yao et al, `ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning
      <https://arxiv.org/abs/2006.00719>`_, AAAI, 2021: the chain with the mean of squares
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_key(key)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> HutchinsonCurvatureState:
        return _state.probed_state(HutchinsonCurvatureState, params, key, state_dtype)

    def update(
        updates: optax.Updates,
        state: HutchinsonCurvatureState,
        params: optax.Params | None = None,
        *,
        obj_fn: Callable[[optax.Params], jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, HutchinsonCurvatureState]:
        del updates
        params = _check.require_params(params, "hutchinson_curvature")
        gradient = jax.grad(required_loss("hutchinson_curvature", obj_fn, extra_args))

        def product(vector: optax.Params) -> optax.Params:
            with _state.forward_mode("hutchinson_curvature"):
                return jax.jvp(gradient, (params,), (vector,))[1]

        mean, new_state = _state.probed_diagonal(state, params, product, decay)
        return jax.tree.map(jnp.abs, mean), new_state

    return Phi(init, update, name="hutchinson_curvature", needs=("obj_fn",))

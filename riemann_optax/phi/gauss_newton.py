"""Gauss-Newton curvature: the part of the Hessian that comes from the loss, and is never negative."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check
from riemann_optax._declare import Phi, required
from riemann_optax._state_fields import declare_fields
from riemann_optax.phi import _state


@declare_fields(squared=("diagonal",))
class GaussNewtonCurvatureState(NamedTuple):
    """State of :func:`gauss_newton_curvature`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      key: the random key of the probes.
      diagonal: running mean of the probes' estimates of the matrix's diagonal, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    key: jax.Array
    diagonal: optax.Updates


def gauss_newton_curvature(*, decay: float = 0.99, key: jax.Array | int = 0, state_dtype: Any = None) -> Phi:
    r"""Diagonal of the generalised Gauss-Newton matrix from one product per update.

    .. math::
      G = J^\top H J, \qquad \varphi = \big[\,\overline{z \odot G z}\,\big]_+, \qquad z_i = \pm 1
      \text{ at random}

    with ``J`` the Jacobian of the model's outputs with respect to the parameters, ``H`` the Hessian of the
    loss with respect to the outputs, and a bar for the bias-corrected running mean. Where the loss is convex
    in the outputs ``G`` has no negative eigenvalue, unlike the Hessian that :func:`hutchinson_curvature`
    takes; where the model is linear the two are equal. One probe is exact where ``G`` is diagonal; elsewhere
    it is unbiased with variance ``sum_{j != i} G_ij**2``, which the mean reduces. (Sophia's Gauss-Newton
    form estimates the same diagonal by squared gradients of sampled labels, for likelihoods only.)

    ``phi >= 0``. State: 1 value per weight. Elementwise but for the product, which costs about twice a
    gradient and has its collectives. The running mean is the memory window.

    Needs ``params`` and the extra arguments ``outputs_fn``, the model's outputs (an array or a tree) as a
    function of the parameters, and ``outputs_loss_fn``, the scalar loss as a function of the outputs. In a
    Flax NNX loop: ``optimizer.update(model, gradients, outputs_fn=lambda p: nnx.merge(graph, p)(x),
    outputs_loss_fn=lambda z: cross_entropy(z, labels).mean())``.

    Args:
      decay: of the running mean, in [0, 1). Default 0.99, as in Sophia.
      key: a random key or an integer seed.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`GaussNewtonCurvatureState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1); at ``update``, where ``params`` or an extra
        argument are missing.
      TypeError: for a ``key`` that is neither a random key nor an integer.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> outputs = lambda w: jnp.array([2.0, 3.0]) * w  # a linear model, one output per weight
      >>> loss = lambda z: 0.5 * jnp.sum((z - 1.0) ** 2)
      >>> phi = ro.phi.gauss_newton_curvature()
      >>> params = jnp.array([1.0, 1.0])
      >>> gradients = jax.grad(lambda w: loss(outputs(w)))(params)
      >>> values, _ = phi.update(
      ...     gradients, phi.init(params), params, outputs_fn=outputs, outputs_loss_fn=loss
      ... )
      >>> print(values)
      [4. 9.]

    References:
      Schraudolph, `Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent
      <https://doi.org/10.1162/08997660260028683>`_, Neural Computation, 2002

      Liu et al, `Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training
      <https://arxiv.org/abs/2305.14342>`_, ICLR, 2024
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_key(key)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> GaussNewtonCurvatureState:
        return _state.probed_state(GaussNewtonCurvatureState, params, key, state_dtype)

    def update(
        updates: optax.Updates,
        state: GaussNewtonCurvatureState,
        params: optax.Params | None = None,
        *,
        outputs_fn: Callable[[optax.Params], Any] | None = None,
        outputs_loss_fn: Callable[[Any], jax.Array] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GaussNewtonCurvatureState]:
        del updates, extra_args
        params = _check.require_params(params, "gauss_newton_curvature")
        outputs_fn = required("gauss_newton_curvature", "outputs_fn", outputs_fn)
        outputs_loss_fn = required("gauss_newton_curvature", "outputs_loss_fn", outputs_loss_fn)
        mean, new_state = _state.probed_diagonal(
            state,
            params,
            lambda vector: _gauss_newton_product(outputs_fn, outputs_loss_fn, params, vector),
            decay,
        )
        return jax.tree.map(lambda d: jnp.maximum(d, 0), mean), new_state

    return Phi(init, update, name="gauss_newton_curvature", needs=("outputs_fn", "outputs_loss_fn"))


def _gauss_newton_product(
    outputs_fn: Callable[[Any], Any],
    outputs_loss_fn: Callable[[Any], jax.Array],
    params: optax.Params,
    vector: optax.Params,
) -> optax.Params:
    """Return ``J^T H J v``: forward through the model, through the loss's gradient, and back."""
    with _state.forward_mode("gauss_newton_curvature"):
        outputs, pushed = jax.jvp(outputs_fn, (params,), (vector,))
        _, curved = jax.jvp(jax.grad(outputs_loss_fn), (outputs,), (pushed,))
    _, pull_back = jax.vjp(outputs_fn, params)
    (product,) = pull_back(curved)
    return product

"""Uncertainty: a synapse that is sure of its weight moves less."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi
from riemann_optax.phi.activity import ActivityState, activity


def bayesian_synapse(
    *,
    learning_rate: float = 1e-3,
    learning_rate_sgd: float = 0.1,
    decay: float = 0.999,
    state_dtype: Any = None,
) -> Phi:
    r"""Posterior precision of a Bayesian synapse, relative to its prior (AdaBayes, fixed point).

    .. math::
      \varphi = \sqrt{\tfrac14 + (\eta_\mathrm{sgd}/\eta)^2\, \hat v} - \tfrac12

    with ``v`` the bias-corrected running mean of the squared gradient. Use ``alpha = 1`` and the base rate
    ``learning_rate_sgd``: then ``E`` is the inverse posterior variance in units of the prior's. Where data
    say little (``E -> 1``) the step equals SGD's; where they say much it is ``learning_rate / sqrt(v)``, as
    with Adam's denominator. The published rule also averages the gradient: put
    ``on_gradient(optax.ema(0.9))`` between the stages. It is then equal to the authors' in float64.

    ``phi >= 0``. State: 1 value per weight. No collective. ``v`` is a mean of squared *batch-mean*
    gradients, as in the published rule at batch size 1.

    Args:
      learning_rate: the rate in the data-rich limit, positive (Adam's). Published default 1e-3.
      learning_rate_sgd: the rate in the data-poor limit, positive (SGD's). Published default 0.1.
      decay: of the running mean, in [0, 1). Published default 0.999.
      state_dtype: of the running mean; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`ActivityState`.

    Raises:
      ValueError: for rates that are not positive or a concrete ``decay`` outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.bayesian_synapse(learning_rate=0.5, learning_rate_sgd=1.0)
      >>> values, _ = phi.update(jnp.array([0.0, 0.6]), phi.init(jnp.zeros(2)))
      >>> print(values)  # sqrt(1/4 + 4 * 0.36) - 1/2 = 0.8
      [0.000 0.800]

    References:
      Aitchison, `Bayesian filtering unifies adaptive and non-adaptive neural network optimization methods
      <https://arxiv.org/abs/1807.07540>`_, NeurIPS, 2020

      Aitchison et al, `Synaptic plasticity as Bayesian inference
      <https://doi.org/10.1038/s41593-021-00809-5>`_, Nature Neuroscience, 2021
    """
    _check.check_number("learning_rate", learning_rate, low=0.0, low_open=True)
    _check.check_number("learning_rate_sgd", learning_rate_sgd, low=0.0, low_open=True)
    mean_square = activity(decay=decay, power=1.0, state_dtype=state_dtype)

    def update(
        updates: optax.Updates, state: ActivityState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        means, new_state = mean_square.update(updates, state)

        def precision(v: jax.Array) -> jax.Array:
            ratio = jnp.asarray(learning_rate_sgd / learning_rate).astype(v.dtype)
            root: jax.Array = ratio * _tree.power(v, 0.5)
            # Equal to sqrt(1/4 + root**2) - 1/2 without its cancellation where root is small and its overflow
            # where root is large.
            return root * (root / (jnp.hypot(jnp.full_like(root, 0.5), root) + 0.5))

        return jax.tree.map(precision, means), new_state

    return Phi(mean_square.init, update, name="bayesian_synapse")

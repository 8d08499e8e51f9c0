"""The multiplicative geometry as a factor of the metric: large weights move more."""

import optax

from riemann_optax import _check, _tree
from riemann_optax.phi.energy import function_of_weights


def multiplicative_geometry(*, eps: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    r"""Metric of exponentiated gradient, :math:`\varphi_i = 1/(|w_i| + \epsilon)`.

    Meant as a factor, ``multiply_metric(multiplicative_geometry())``: steps are then proportional to the
    weight, as changes of synapses are. It runs against protection: large weights move *more*. With
    ``eps=0``, ``compute_metric(..., alpha=0)`` and ``retract(fields.Multiplicative(), "mirror")`` last in the
    chain the step is exponentiated gradient exactly, ``w * exp(-rate * sign(w) * gradient)``; without the
    mirror step it is its first order, and may cross 0.

    ``phi > 0``. No state. No collective. Needs ``params``.

    Args:
      eps: at least 0, in the units of the weights; a weight of 0 moves at the rate ``eps``. With 0 it never
        moves and its ``E`` is infinite: zero-initialised biases need more. Default 1e-3, ours.

    Returns:
      A phi without state.

    Raises:
      ValueError: for a negative ``eps``; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.activity(), alpha=0.0),
      ...     ro.multiply_metric(ro.phi.multiplicative_geometry(eps=0.25)),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> params = jnp.array([0.0, -0.25, 1.75])
      >>> print(tx.update(jnp.ones(3), tx.init(params), params)[0])
      [0.25 0.5  2.  ]

    References:
      Cornford et al, `Brain-like learning with exponentiated gradients
      <https://doi.org/10.1101/2024.10.25.620272>`_, 2024

      Pogodin et al, `Synaptic Weight Distributions Depend on the Geometry of Plasticity
      <https://arxiv.org/abs/2305.19394>`_, ICLR, 2024
    """
    _check.check_number("eps", eps, low=0.0)
    return function_of_weights(
        "multiplicative_geometry", lambda weights: 1 / (_tree.magnitude(weights) + eps)
    )

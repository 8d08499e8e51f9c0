"""The multiplicative geometry as a factor of the metric: what is large, or has moved far, moves more."""

from typing import Any

import jax
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Declared, Phi
from riemann_optax.phi.energy import function_of_weights

NAME = "multiplicative_geometry"


def multiplicative_geometry(*, eps: float = 1e-3, anchor: optax.GradientTransformation | None = None) -> Phi:
    r"""Metric of exponentiated gradient, :math:`\varphi_i = 1/(|w_i - a_i| + \epsilon)`, from an anchor or 0.

    Meant as a factor, ``multiply_metric(multiplicative_geometry())``: steps are then proportional to the
    weight, as changes of synapses are. It runs against protection: large weights move *more*. With
    ``eps=0``, ``compute_metric(..., alpha=0)`` and ``retract(fields.Multiplicative(), "mirror")`` last in the
    chain the step is exponentiated gradient exactly, ``w * exp(-rate * sign(w) * gradient)``; without the
    mirror step it is its first order, and may cross 0.

    Around ``anchor.initial_weights()`` it saves energy: weights that have already moved move on, so few
    change, each by much. Of all solutions of a linear problem it finds, with a small ``eps`` and rate, that
    with the least ``sum(abs(w - w_0))``, as mirror descent with the hyperbolic entropy does, and as
    diagonal linear networks with small first weights do. ``python -m benchmarks.energy`` measures what other
    networks save.

    ``phi > 0``. State: the anchor's, none without. No collective. Needs ``params``.

    Args:
      eps: at least 0, in the units of the weights; a weight at 0, or at its anchor, moves at the rate
        ``eps``. With 0 it never moves and its ``E`` is infinite: zero-initialised biases need more. Default
        1e-3, ours.
      anchor: what the distance is taken from: one of :mod:`riemann_optax.anchor`, but not
        ``importance_weighted_weights``, which needs the precision of a pull. Default None: from 0.

    Returns:
      A phi without state, or with that of the anchor.

    Raises:
      ValueError: for a negative ``eps``, or one of 0 with an anchor, as no weight would ever move; at
        ``update``, where ``params`` are missing.
      TypeError: where ``anchor`` is no gradient transformation.

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

      Around the first weights:

      >>> phi = ro.phi.multiplicative_geometry(eps=0.25, anchor=ro.anchor.initial_weights())
      >>> state = phi.init(params)
      >>> for weights in (params, params + jnp.array([0.0, 0.25, -0.75])):
      ...     values, state = phi.update(jnp.ones(3), state, weights)
      ...     print(values)
      [4. 4. 4.]
      [4. 2. 1.]

    References:
      Cornford et al, `Brain-like learning with exponentiated gradients
      <https://doi.org/10.1101/2024.10.25.620272>`_, bioRxiv, 2024

      Pogodin et al, `Synaptic Weight Distributions Depend on the Geometry of Plasticity
      <https://arxiv.org/abs/2305.19394>`_, ICLR, 2024

      Ghai, Hazan and Singer, `Exponentiated Gradient Meets Gradient Descent
      <https://arxiv.org/abs/1902.01903>`_, ALT, 2020

      Woodworth et al, `Kernel and Rich Regimes in Overparametrized Models
      <https://arxiv.org/abs/2002.09277>`_, COLT, 2020
    """
    _check.check_number("eps", eps, low=0.0, low_open=anchor is not None)
    if anchor is not None:
        return _around(anchor, eps)
    return function_of_weights(NAME, lambda weights: 1 / (_tree.magnitude(weights) + eps))


def _around(anchor: optax.GradientTransformation, eps: float) -> Phi:
    """Return the phi of distances from an anchor, whose state it keeps."""
    _check.check_transformation("anchor", anchor)
    anchor = optax.with_extra_args_support(anchor)

    def stiffness(weight: jax.Array, target: jax.Array) -> jax.Array:
        dtype = _tree.wide_dtype(weight)
        return 1 / (_tree.magnitude(weight.astype(dtype) - target.astype(dtype)) + eps)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        params = _check.require_params(params, NAME)
        targets, state = anchor.update(updates, state, params, **extra_args)
        return jax.tree.map(stiffness, params, targets), state

    needs = anchor.needs if isinstance(anchor, Declared) else ()
    return Phi(anchor.init, update, name=NAME, needs=needs)

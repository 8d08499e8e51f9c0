"""A third factor: one number for all weights, such as the error, says how plastic they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi

NAME = "from_value"


def from_value(function: Callable[[jax.Array], jax.Array]) -> Phi:
    r"""Make a phi that is a function of the batch's loss, the same for all weights, :math:`\varphi_i = f(L)`.

    A synapse follows the activities on its two sides and a third factor that all synapses share: a signal of
    reward, surprise or error. As plasticity, ``compute_metric(from_value(lambda loss: loss), alpha,
    "inverse_metric")``, the rate grows with the loss: errors teach most, and examples that are known change
    little. This saves energy where examples come one by one, see ``python -m benchmarks.energy``. As a metric
    the same phi slows learning down where the loss is large.

    ``phi >= 0`` where the function is. No state. No collective. Needs ``value``.

    Args:
      function: maps the loss, a scalar in float32 or wider, to a scalar.

    Returns:
      A phi without state.

    Raises:
      TypeError: where ``function`` is not callable.
      ValueError: at ``update``, where ``value`` is missing or is no scalar, or the function returns none.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.from_value(lambda loss: loss)
      >>> params = jnp.array([1.0, -3.0])
      >>> print(phi.update(jnp.ones(2), phi.init(params), params, value=0.5)[0])
      [0.5 0.5]

    References:
      Frémaux and Gerstner, `Neuromodulated Spike-Timing-Dependent Plasticity, and Theory of Three-Factor
      Learning Rules <https://doi.org/10.3389/fncir.2015.00085>`_, Frontiers in Neural Circuits, 2016
    """
    if not callable(function) or isinstance(function, optax.GradientTransformation):
        hint = _check.injected("function", function)
        raise TypeError(f"function must map the loss to a number, got {function!r}{hint}.")

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        value: Any,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        loss = _scalar("value must be the loss of the batch", value)
        factor = _scalar("function must return a number", function(_tree.to_working_dtype(loss)))

        def shared(gradient: jax.Array) -> jax.Array:
            zeros = jnp.zeros_like(_tree.magnitude(gradient))
            return zeros + factor.astype(zeros.dtype)

        return jax.tree.map(shared, updates), state

    return Phi(optax.init_empty_state, update, name=NAME, needs=("value",))


def _scalar(what: str, value: Any) -> jax.Array:
    number: jax.Array = jnp.asarray(value)
    if number.ndim:
        raise ValueError(f"{NAME}: {what}, a scalar, got an array of shape {number.shape}: take its mean.")
    return number

"""Averaged changes, with what their memory costs in the currency of synaptic caching."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# What a transient change costs per update, as a share of it; published for synaptic caching.
MAINTENANCE = 1e-3


class AveragingState(NamedTuple):
    """State of :func:`averaged_changes`.

    Attributes:
      mean: running mean of the changes, shaped like the parameters.
      kept: energy of maintenance in this update, a scalar.
    """

    mean: optax.Updates
    kept: jax.Array


def averaged_changes(
    decay: jax.typing.ArrayLike, maintenance: float = MAINTENANCE
) -> optax.GradientTransformationExtraArgs:
    r"""Replace changes by their running mean; charge for those that the mean still has to make.

    .. math:: m \leftarrow \beta m + (1 - \beta)\,\Delta w, \qquad
      \mathrm{kept} = c\,\frac{\beta}{1-\beta} \sum_i |m_i|

    A change goes on to move weights for as long as the mean remembers it: what is still to come is transient
    as in synaptic caching, and costs as much to maintain. Last in a chain.

    Args:
      decay: ``beta``, in [0, 1).
      maintenance: ``c``, per update, as a share of what is transient.
    """

    def init(params: optax.Params) -> AveragingState:
        return AveragingState(optax.tree.zeros_like(params), jnp.zeros(()))

    def update(updates: Any, state: AveragingState, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        mean = jax.tree.map(lambda m, u: decay * m + (1 - decay) * u, state.mean, updates)
        kept = maintenance * decay / (1 - decay) * optax.tree.norm(mean, ord=1)
        return mean, AveragingState(mean, kept)

    return optax.GradientTransformationExtraArgs(init, update)

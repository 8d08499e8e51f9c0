"""Synaptic caching (Li and van Rossum, 2020): changes are cheap and fade, until they are consolidated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Per update: what a transient change costs to maintain, as a share of it, and the share of it that fades.
MAINTENANCE, FADING = 1e-3, 1e-3


class CachingState(NamedTuple):
    """State of :func:`synaptic_caching`.

    Attributes:
      transient: the part of each weight that is not consolidated, shaped like the parameters.
      spent: energy of consolidation in this update, a scalar per leaf.
      changed: weights consolidated in this update, a scalar per leaf.
      kept: energy of maintenance in this update, a scalar.
      inner: the state of the rule that makes the changes.
    """

    transient: optax.Updates
    spent: Any
    changed: Any
    kept: jax.Array
    inner: optax.OptState

    def pending(self) -> jax.Array:
        """Return what it would cost to consolidate all now."""
        return sum((jnp.abs(leaf).sum() for leaf in jax.tree.leaves(self.transient)), start=jnp.zeros(()))


def synaptic_caching(
    inner: optax.GradientTransformation,
    threshold: jax.typing.ArrayLike,
    maintenance: float = MAINTENANCE,
    fading: float = FADING,
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the changes that ``inner`` makes transient; consolidate all when one crosses the threshold.

    .. math::
      s \leftarrow (1 - \lambda)\,s + \Delta w; \qquad
      \max_i |s_i| > \theta: \quad M \leftarrow M + \sum_i |s_i|, \quad s \leftarrow 0

    The network computes with consolidated and transient parts together, so the update is the change of their
    sum. Each update costs ``maintenance * sum(abs(s))`` after it.

    Args:
      inner: a whole rule, with learning rate and sign.
      threshold: ``theta``, in units of the weights.
      maintenance: as a share of the transient changes per update.
      fading: ``lambda``, per update.

    References:
      Li and van Rossum, `Energy efficient synaptic plasticity <https://doi.org/10.7554/eLife.50804>`_,
      eLife, 2020
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> CachingState:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(()), params)
        return CachingState(
            optax.tree.zeros_like(params), nothing, nothing, jnp.zeros(()), inner.init(params)
        )

    def update(updates: Any, state: CachingState, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        updates = jax.tree.map(lambda u, s: u - fading * s, updates, state.transient)
        transient = jax.tree.map(jnp.add, state.transient, updates)
        largest = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(transient)]).max()
        full = largest > threshold
        sizes = jax.tree.map(lambda leaf: jnp.abs(leaf).sum(), transient)
        numbers = jax.tree.map(lambda leaf: (leaf != 0).sum().astype(jnp.float32), transient)
        kept = maintenance * sum(jax.tree.leaves(sizes), start=jnp.zeros(()))
        return updates, CachingState(
            transient=jax.tree.map(lambda leaf: jnp.where(full, 0, leaf), transient),
            spent=jax.tree.map(lambda size: jnp.where(full, size, 0), sizes),
            changed=jax.tree.map(lambda number: jnp.where(full, number, 0), numbers),
            kept=jnp.where(full, 0, kept),
            inner=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)

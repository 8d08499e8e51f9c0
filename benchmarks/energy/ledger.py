"""What an update costs: how far weights move, how many of them, and what waits to be consolidated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.energy.averaging import AveragingState
from benchmarks.energy.caching import CachingState


class Costs(NamedTuple):
    """The costs of one update.

    Attributes:
      moved: ``sum(abs(dw))`` per leaf; with synaptic caching of what is consolidated.
      changed: weights that move, per leaf; with synaptic caching those that are consolidated.
      maintenance: energy to maintain transient changes.
    """

    moved: jax.Array
    changed: jax.Array
    maintenance: jax.Array


def states(state: optax.OptState, kind: type[Any]) -> list[Any]:
    """Return the states of a kind within a state."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def costs(updates: optax.Updates, state: optax.OptState) -> Costs:
    """Return the costs of the update that led to ``state``."""
    found = states(state, CachingState)
    if found:
        (cache,) = found
        moved, changed, maintenance = cache.spent, cache.changed, cache.kept
    else:
        moved = jax.tree.map(lambda leaf: jnp.abs(leaf).sum(), updates)
        changed = jax.tree.map(lambda leaf: (leaf != 0).sum().astype(jnp.float32), updates)
        maintenance = sum((mean.kept for mean in states(state, AveragingState)), start=jnp.zeros(()))
    return Costs(jnp.stack(jax.tree.leaves(moved)), jnp.stack(jax.tree.leaves(changed)), maintenance)


def distance(params: optax.Params, start: optax.Params) -> jax.Array:
    """Return ``sum(abs(w - w_0))``, the least that the way from ``start`` could cost."""
    return optax.tree.norm(optax.tree.sub(params, start), ord=1)


def pending(state: optax.OptState) -> jax.Array:
    """Return what is left to pay: for changes that are transient still."""
    return sum((cache.pending() for cache in states(state, CachingState)), start=jnp.zeros(()))

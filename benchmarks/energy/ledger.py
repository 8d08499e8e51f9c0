"""What an update costs: how far weights move, how many of them, and what waits to be consolidated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro
from benchmarks.energy.averaging import MAINTENANCE, AveragingState


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


def costs(updates: optax.Updates, before: optax.OptState, after: optax.OptState) -> Costs:
    """Return the costs of the update that led from one state to the next."""
    caches = [states(state, ro.SynapticCachingState) for state in (before, after)]
    if caches[1]:
        (old,), (new,) = caches
        full = new.consolidations > old.consolidations
        transient = jax.tree.map(jnp.add, old.transient, updates)
        consolidated = jax.tree.map(lambda leaf: jnp.where(full, leaf, 0), transient)
        maintenance = MAINTENANCE * optax.tree.norm(new.transient, ord=1)
    else:
        consolidated = updates
        maintenance = sum((mean.kept for mean in states(after, AveragingState)), start=jnp.zeros(()))
    leaves = jax.tree.leaves(consolidated)
    moved = jnp.stack([jnp.abs(leaf).sum() for leaf in leaves])
    changed = jnp.stack([(leaf != 0).sum().astype(jnp.float32) for leaf in leaves])
    return Costs(moved, changed, maintenance)


def distance(params: optax.Params, start: optax.Params) -> jax.Array:
    """Return ``sum(abs(w - w_0))``, the least that the way from ``start`` could cost."""
    return optax.tree.norm(optax.tree.sub(params, start), ord=1)


def pending(state: optax.OptState) -> jax.Array:
    """Return what is left to pay: for changes that are transient still."""
    found = states(state, ro.SynapticCachingState)
    return sum((optax.tree.norm(cache.transient, ord=1) for cache in found), start=jnp.zeros(()))

"""Counters at the end of their range."""

import jax
import jax.numpy as jnp
import numpy as np

from . import problem

LAST = np.iinfo(np.int32).max


def test_counters_saturate(entry):
    """After two thousand million steps a counter stays where it is, and the run goes on as before."""
    tx = entry.build()
    params = problem.params()

    def is_counter(leaf):
        return leaf.dtype == jnp.int32 and leaf.ndim == 0

    state = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, LAST) if is_counter(leaf) else leaf, tx.init(params)
    )
    updates, state = problem.updater(entry, tx)(problem.gradients(params), state, params)
    counters = [int(leaf) for leaf in jax.tree.leaves(state) if is_counter(leaf)]
    assert min(counters, default=0) >= 0  # some start anew, with a task or with a good gradient
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))

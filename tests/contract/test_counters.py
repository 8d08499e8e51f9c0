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

    def after(count):
        state = jax.tree.map(
            lambda leaf: jnp.full_like(leaf, count) if is_counter(leaf) else leaf, tx.init(params)
        )
        return problem.updater(entry, tx)(problem.gradients(params), state, params)

    updates, state = after(LAST)
    counters = [int(leaf) for leaf in jax.tree.leaves(state) if is_counter(leaf)]
    assert min(counters, default=0) >= 0  # some start anew, with a task or with a good gradient
    before, _ = after(LAST - 1)
    for now, old in zip(jax.tree.leaves(updates), jax.tree.leaves(before), strict=True):
        assert np.all(np.isfinite(now))
        assert np.max(np.abs(now)) <= 2 * np.max(np.abs(old))

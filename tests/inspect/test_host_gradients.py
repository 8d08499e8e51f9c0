"""Gradients that are numbers of Python, as of parameters that are: what stands alone takes them as arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

STAGES = {
    "add_anchored_weights": lambda: ro.add_anchored_weights(0.1, ro.anchor.initial_weights()),
    "nearest_isometry": lambda: ro.add_anchored_weights(0.1, ro.anchor.nearest_isometry()),
    "add_isometry_pull": lambda: ro.add_isometry_pull(0.1),
    "add_spectral_pull": lambda: ro.add_spectral_pull(0.1),
    "track_energy": ro.track_energy,
    "synaptic_caching": lambda: ro.synaptic_caching(0.3),
    "caching with fading": lambda: ro.synaptic_caching(0.3, fading=0.1),
}
TREES = {
    "one number": 2.0,
    "numbers": {"a": 1.0, "b": -0.5},
    "numbers beside arrays": {"a": 1.0, "w": np.array([[1.0, 2.0], [0.5, -1.0]], np.float32)},
    "integers of gradients": {"a": 2},
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", STAGES)
def test_numbers_are_taken_as_arrays(name, tree):
    gradients = TREES[tree]
    params = jax.tree.map(lambda leaf: 1.5 * leaf, gradients)
    results = []
    for given, weights in ((gradients, params), jax.tree.map(jnp.asarray, (gradients, params))):
        tx = STAGES[name]()
        state = tx.init(weights)
        for _ in range(3):
            updates, state = tx.update(given, state, weights)
        results.append((updates, state))
    chex.assert_trees_all_equal(*results)
    assert all(isinstance(update, jax.Array) for update in jax.tree.leaves(results[0][0]))
    optax.apply_updates(params, results[0][0])

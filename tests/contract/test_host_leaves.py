"""Parameters that are no arrays of JAX yet, as Optax takes them: NumPy arrays, float64 too, and numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro

from . import problem


def host():
    """The common problem with a NumPy array of each width and a Python number."""
    params = problem.params()
    return {
        "bias": np.asarray(params["bias"]),
        "kernel": np.asarray(params["kernel"], np.float64),
        "scale": 0.75,
    }


def on_device(tree):
    return jax.tree.map(jnp.asarray, tree)


@pytest.fixture
def extra_args(entry):
    return entry.extra_args(lambda params: problem.loss(on_device(params)))


def test_state_and_updates_are_those_of_arrays(entry, extra_args):
    tx = entry.build()
    params = host()
    gradients = jax.tree.map(lambda w: 2 * (w - 0.3), params)
    found, found_state = tx.update(gradients, tx.init(params), params, **extra_args)
    tx, arrays = entry.build(), on_device(params)
    expected, state = tx.update(on_device(gradients), tx.init(arrays), arrays, **extra_args)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert jax.tree.map(jnp.shape, found_state) == jax.tree.map(jnp.shape, state)
    dtypes = [[jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(s)] for s in (found_state, state)]
    assert dtypes[0] == dtypes[1]


def test_rank_is_promoted_nowhere(entry):
    """By ``init`` and by ``update``, for matrices whose sides have a basis."""
    params = problem.params() | {"square": jnp.ones([4, 4])}
    with jax.numpy_rank_promotion("raise"):
        problem.tracer(entry.build(), entry.extra_args(problem.loss), params)()


def test_restore_target_and_placements_of_host_arrays():
    """As for arrays on the default device, where ``init`` puts the state."""
    tx, params = ro.riemannian_sgd(0.1), host()
    target = ro.checkpoint.target(tx, params)
    expected = ro.checkpoint.target(tx, on_device(params))
    assert jax.tree.leaves(target) == jax.tree.leaves(expected)
    state = ro.sharding.init(tx, params)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, tx.init(on_device(params)))

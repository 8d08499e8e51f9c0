"""Restarts at task boundaries: what they read, and the random numbers that go on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro


def test_a_restart_reads_no_gradient_and_is_made_at_a_skipped_update():
    tx = ro.skip_nonfinite(ro.restart_at_boundary(optax.adam(0.1), ro.anchor.initial_weights()))
    params = {"w": jnp.ones(3)}
    _, state = tx.update(params, tx.init(params), params)  # the anchor is where training began
    moved = {"w": jnp.array([2.0, 3.0, -1.0])}
    for boundary, wanted in ((False, moved), (True, params)):
        updates, after = tx.update(
            {"w": jnp.full(3, jnp.nan)}, state, moved, task_boundary=jnp.asarray(boundary)
        )
        np.testing.assert_allclose(optax.apply_updates(moved, updates)["w"], wanted["w"])
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)], ids=["typed", "older"])
def test_a_restart_does_not_repeat_random_numbers(key):
    stage_1 = ro.compute_metric(ro.phi.activity())
    noisy = optax.chain(stage_1, ro.add_idle_noise(1.0, 1.0, key), ro.scale_by_inverse_metric())
    tx, params = ro.restart_at_boundary(noisy, ro.anchor.initial_weights()), jnp.ones(2)
    state, drawn = tx.init(params), []
    for boundary in (False, False, True, False, False):
        updates, state = tx.update(jnp.zeros(2), state, params, task_boundary=boundary)
        drawn += [] if boundary else [np.asarray(updates)]
    assert len({tuple(row) for row in drawn}) == 4


def test_a_restart_goes_on_with_the_seed_of_rounding():
    tx = ro.restart_at_boundary(ro.low_precision_state(optax.adam(0.1)), ro.anchor.initial_weights())
    params = jnp.ones(2)
    state = tx.init(params)
    first = state.inner_state.key
    for boundary in (False, True):
        _, state = tx.update(jnp.ones(2), state, params, task_boundary=boundary)
    assert state.inner_state.key != first


def test_a_restart_of_narrow_weights_ends_at_the_anchor():
    """A jump in bfloat16 would miss it by the rounding of a difference that is larger than the anchor."""
    random = np.random.default_rng(0)
    anchor = jnp.asarray(0.02 * random.normal(size=1000), jnp.bfloat16)
    moved = anchor + jnp.asarray(0.1 * random.normal(size=1000), jnp.bfloat16)
    tx = ro.restart_at_boundary(optax.sgd(0.1), ro.anchor.initial_weights())
    _, state = tx.update(jnp.zeros(1000), tx.init(anchor), anchor)
    updates, _ = tx.update(jnp.zeros(1000), state, moved, task_boundary=True)
    np.testing.assert_array_equal(optax.apply_updates(moved, updates), anchor)


def test_a_restart_of_narrow_weights_inside_of_what_chooses():
    """The branches of Optax's conditionals have one type: that of the gradients."""
    tx = optax.apply_if_finite(ro.restart_at_boundary(optax.adam(0.1), ro.anchor.initial_weights()), 3)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params, task_boundary=jnp.array(False))
    assert updates["w"].dtype == jnp.bfloat16

"""Fields of which small differences are taken are not stored in few bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

STORAGES = ("bfloat16", "int8")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "phi",
    [ro.phi.modification_energy(), ro.phi.secant_curvature(), ro.phi.synaptic_intelligence(), ro.phi.rwalk()],
    ids=lambda phi: phi.name,
)
def test_what_differences_are_taken_of_is_not_rounded(phi, storage):
    """A rounded copy of the last weights made the change since then mostly rounding: 16 times too large."""
    params = {"w": jnp.ones([4, 32])}
    narrow, wide = ro.low_precision_state(phi, storage).init(params).inner_state, phi.init(params)
    exact = type(wide).exact_fields
    assert exact
    for name in exact:
        assert getattr(narrow, name)["w"].dtype == jnp.float32
    assert any(leaf.dtype in (jnp.bfloat16, jnp.int8, jnp.uint8) for leaf in jax.tree.leaves(narrow))


def test_modification_energy_in_few_bits_is_that_of_the_steps():
    phi = ro.phi.modification_energy()
    narrow = ro.low_precision_state(phi, "int8")
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(32, 64)), jnp.float32)
    states = [tx.init(weights) for tx in (phi, narrow)]
    updates = [jax.jit(tx.update) for tx in (phi, narrow)]
    for _ in range(100):
        weights = weights + jnp.asarray(1e-3 * random.normal(size=weights.shape), jnp.float32)
        found = [update(weights, state, weights) for update, state in zip(updates, states, strict=True)]
        values, states = zip(*found, strict=True)
    np.testing.assert_allclose(values[1].mean(), values[0].mean(), rtol=0.05)


@pytest.mark.parametrize("storage", STORAGES)
def test_weights_on_their_initial_values_do_not_drift_in_few_bits(storage):
    """Rounded initial values are elsewhere, and the drift would lead there."""
    weights = jax.random.normal(jax.random.key(0), (4, 32))
    tx = ro.low_precision_state(ro.soft_resets(optax.adam(0.1), 0.5), storage)
    start = tx.init(weights)
    _, state = tx.update(jnp.zeros_like(weights), start, weights, obj_fn=lambda w: jnp.sum(w**2))
    np.testing.assert_array_equal(state.inner_state.prior_mean, weights)
    assert any(leaf.dtype in (jnp.bfloat16, jnp.int8, jnp.uint8) for leaf in jax.tree.leaves(state))

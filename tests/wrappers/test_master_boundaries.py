"""Wide weights behind narrow ones: what reads them outside of an update reads the wide ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

SCALES = np.array([1.0, 10.0, 100.0, 4.0])


def loss(params, batch):
    del batch
    return jnp.sum(SCALES * (params["w"].astype(jnp.float32) - 0.7) ** 2)


@pytest.mark.parametrize("phi", [ro.phi.synaptic_intelligence, ro.phi.online_ewc], ids=["si", "ewc"])
def test_a_boundary_outside_of_an_update_is_that_of_the_wide_weights(phi):
    """The oracle: the extra argument, at which the wide weights are at hand."""
    anchored = ro.add_anchored_weights(0.1, ro.anchor.task_boundary_weights())
    stages = ro.compute_metric(phi(), alpha=0.1), anchored, ro.scale_by_inverse_metric()
    tx = ro.master_weights(optax.chain(*stages, optax.scale(-1e-3)))
    params = {"w": jnp.linspace(1.0, 2.0, 4, dtype=jnp.bfloat16)}
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(jax.grad(loss)(params, None), state, params)
        params = optax.apply_updates(params, updates)
    assert float(jnp.abs(state.remainder["w"]).max()) > 0
    gradients = jax.grad(loss)(params, None)
    outside = tx.update(gradients, ro.consolidate(state, params), params)
    inside = tx.update(gradients, state, params, task_boundary=True)
    jax.tree.map(np.testing.assert_array_equal, outside, inside)


def test_the_secant_is_between_gradients_at_the_weights_that_the_model_saw():
    """At a small step the wide weights before and the narrow ones of now differ by rounding alone."""
    secant = ro.compute_metric(ro.phi.secant_curvature(), alpha=1.0)
    tx = ro.master_weights(optax.chain(secant, ro.scale_by_inverse_metric(), optax.scale(-1e-4)))
    step = ro.value_and_grad(loss, needs=tx)
    params = {"w": jnp.linspace(1.0, 2.0, 4, dtype=jnp.bfloat16)}
    state, before = tx.init(params), params
    for number in range(4):
        _, gradients, extra = step(params, None, state=state)
        if number:  # the first has none before it
            expected = jax.grad(loss)(before, None)["w"]
            np.testing.assert_array_equal(extra["gradients_at_previous_params"]["w"], expected)
        updates, state = tx.update(gradients, state, params, **extra)
        before, params = params, optax.apply_updates(params, updates)

"""What is read out of a state in few bytes is what was stored, never its codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

each_storage = pytest.mark.parametrize("storage", ["bfloat16", "int8"])
TARGET = np.random.default_rng(0).standard_normal([16, 8])


def weights():
    return {"kernel": jnp.zeros([16, 8]), "bias": jnp.full(8, 0.5)}


def loss(params):
    return jnp.mean((params["kernel"] - TARGET) ** 2) + jnp.mean(params["bias"] ** 2)


def trained(tx, params, steps=200):
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@each_storage
def test_the_average_of_schedule_free_training(storage):
    tx = ro.low_precision_state(ro.riemannian_schedule_free(0.05, warmup_steps=5), storage)
    params, state = trained(tx, weights())
    averaged = ro.eval_params(state, params)
    assert loss(weights()) > 1 > 1e-3 > loss(averaged)
    for found, expected in zip(
        jax.tree.leaves(averaged), jax.tree.leaves(ro.eval_params(state.wide(), params)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@each_storage
def test_the_average_of_a_flax_model(storage):
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    tx = ro.low_precision_state(ro.riemannian_schedule_free(0.1, warmup_steps=0), storage)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    inputs = jnp.eye(8)
    for _ in range(3):
        optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(inputs) - 1) ** 2))(model))
    averaged = ro.eval_params(optimizer, model)
    # Three steps of at most .1 each away from where the weights are, and half of them on average.
    assert np.abs(averaged["kernel"] - np.asarray(model.kernel)).max() < 0.3


@each_storage
def test_the_deviations_of_a_variational_phi(storage):
    phi = ro.phi.bayesian_gradient_descent(initial_deviation=0.06)
    tx = ro.low_precision_state(phi, storage)
    params = weights()
    state = tx.init(params)
    places, noise = ro.phi.draw_perturbations(state, params, samples=2)
    expected, same_noise = ro.phi.draw_perturbations(phi.init(params), params, samples=2)
    for name in params:
        np.testing.assert_array_equal(noise[name], same_noise[name])
        np.testing.assert_allclose(places[name], expected[name], atol=0.06 * 5 * 2.0**-7)

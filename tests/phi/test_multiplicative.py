"""The multiplicative geometry against NumPy replays of exponentiated gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .replay import RTOL, STEPS, plain, walk


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


START = np.array([2.0, -0.5, 1e-3, -3.0])
RATE = 0.05


def gradient(weights, step):
    noise = np.random.default_rng(step).normal(size=4)
    return weights - np.array([0.5, -1.0, 0.3, -0.1]) + 0.5 * noise


def metric(eps):
    return ro.multiply_metric(ro.phi.multiplicative_geometry(eps=eps))


def test_with_the_mirror_step_it_is_exponentiated_gradient():
    """Cornford et al 2024 (EG with signs kept): w <- w exp(-rate sign(w) g)."""
    weights, expected = START.copy(), [START.copy()]
    for step in range(STEPS):
        weights = weights * np.exp(-RATE * np.sign(weights) * gradient(weights, step))
        expected.append(weights.copy())
    mirror = ro.retract(ro.fields.Multiplicative(), "mirror")
    tx = optax.chain(plain(ro.phi.activity(), 0.0, RATE, metric(0.0)), mirror)
    actual = walk(tx, START, gradient)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)
    assert np.all(np.sign(actual) == np.sign(START))


def test_euler_steps_are_proportional_to_the_weight():
    eps = 0.1
    weights, expected = START.copy(), [START.copy()]
    for step in range(STEPS):
        weights = weights - RATE * gradient(weights, step) * (np.abs(weights) + eps)
        expected.append(weights.copy())
    actual = walk(plain(ro.phi.activity(), 0.0, RATE, metric(eps)), START, gradient)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


def test_euler_is_exponentiated_gradient_to_first_order():
    errors = []
    for rate in (1e-2, 1e-3):
        tx = plain(ro.phi.activity(), 0.0, rate, metric(0.0))
        step = walk(tx, START, gradient, steps=1)[1]
        errors.append(np.abs(step - START * np.exp(-rate * np.sign(START) * gradient(START, 0))))
    np.testing.assert_allclose(np.log10(errors[0] / errors[1]), 2.0, atol=0.05)


def test_a_weight_of_zero_moves_by_eps_and_with_eps_zero_not_at_all():
    params = jnp.zeros(1)
    for eps, expected in ((0.25, -RATE * 0.25), (0.0, 0.0)):
        tx = plain(ro.phi.activity(), 0.0, RATE, metric(eps))
        updates, _ = tx.update(jnp.ones(1), tx.init(params), params)
        np.testing.assert_allclose(updates, expected)


def test_eps_is_checked():
    with pytest.raises(ValueError, match="eps"):
        ro.phi.multiplicative_geometry(eps=-1.0)

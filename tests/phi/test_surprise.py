"""Surprise against NumPy's replay of AdaBelief, and against Optax's AdaBelief."""

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


def gradient(weights, step):
    noise = np.random.default_rng(step).normal(size=(2, 3))
    return {"w": weights["w"] * np.array([1.0, 5.0, 0.0]) + noise * np.array([0.1, 1.0, 10.0])}


START = {"w": np.random.default_rng(7).normal(size=(2, 3))}


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_surprise_replays_the_denominator_of_adabelief(power):
    """Zhuang et al 2020, algorithm 2: m, then s of the distance from the new m, then its correction."""
    alpha, rate, b1, b2 = 3.0, 0.01, 0.8, 0.95
    weight, mean, variance = START["w"].copy(), np.zeros((2, 3)), np.zeros((2, 3))
    expected = [weight]
    for step in range(STEPS):
        g = gradient({"w": weight}, step)["w"]
        mean = b1 * mean + (1 - b1) * g
        variance = b2 * variance + (1 - b2) * (g - mean) ** 2
        phi = (variance / (1 - b2 ** (step + 1))) ** power
        weight = weight - rate * g / (1 + alpha * phi)
        expected.append(weight)
    phi = ro.phi.surprise(expected_decay=b1, decay=b2, power=power)
    path = walk(plain(phi, alpha, rate), START, gradient)
    np.testing.assert_allclose(path["w"], np.stack(expected), rtol=RTOL)


def test_optax_divides_its_mean_by_this_phi():
    phi, belief = ro.phi.surprise(), optax.scale_by_belief(eps=0.0, eps_root=0.0)
    params = {"w": jnp.asarray(START["w"])}
    state, optax_state = phi.init(params), belief.init(params)
    mean = np.zeros((2, 3))
    for step in range(50):
        g = gradient(START, step)
        values, state = phi.update(g, state)
        updates, optax_state = belief.update(g, optax_state)
        mean = 0.9 * mean + 0.1 * g["w"]
        np.testing.assert_allclose(updates["w"], mean / (1 - 0.9 ** (step + 1)) / values["w"], rtol=1e-10)


def test_a_steady_gradient_is_no_surprise_and_noise_is():
    phi = ro.phi.surprise(expected_decay=0.9, decay=0.9)
    state = phi.init(jnp.zeros(2))
    for step in range(200):
        values, state = phi.update(jnp.array([10.0, 10.0 * (-1) ** step]), state)
    steady, turning = values
    assert steady < 1e-3
    assert turning > 9.0

"""The multiplicative geometry against NumPy replays of exponentiated gradient, and around an anchor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

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


def metric(eps, anchor=None):
    return ro.multiply_metric(ro.phi.multiplicative_geometry(eps=eps, anchor=anchor))


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


def around_the_start(eps):
    return plain(ro.phi.activity(), 0.0, RATE, metric(eps, ro.anchor.initial_weights()))


def test_around_the_first_weights_steps_are_proportional_to_the_way_from_there():
    eps = 0.1
    weights, expected = START.copy(), [START.copy()]
    for step in range(STEPS):
        weights = weights - RATE * gradient(weights, step) * (np.abs(weights - START) + eps)
        expected.append(weights.copy())
    np.testing.assert_allclose(walk(around_the_start(eps), START, gradient), expected, rtol=RTOL)


def test_another_anchor_moves_along():
    """Around slow weights: a running mean that follows."""
    eps, decay = 0.1, 0.75
    weights, slow, expected = START.copy(), START.copy(), [START.copy()]
    for step in range(STEPS):
        slow = slow if step == 0 else slow + (1 - decay) * (weights - slow)
        weights = weights - RATE * gradient(weights, step) * (np.abs(weights - slow) + eps)
        expected.append(weights.copy())
    tx = plain(ro.phi.activity(), 0.0, RATE, metric(eps, ro.anchor.slow_weights(decay=decay)))
    np.testing.assert_allclose(walk(tx, START, gradient), expected, rtol=RTOL)


@pytest.mark.parametrize("seed", range(3))
def test_around_the_first_weights_the_way_is_the_shortest_that_a_linear_program_finds(seed):
    """Of all solutions of A w = b the one with the least sum(abs(w - w_0)); flat descent goes further."""
    generator = np.random.default_rng(seed)
    matrix, start = generator.normal(size=(3, 9)), generator.normal(size=9)
    wanted = generator.normal(size=3)
    missing = wanted - matrix @ start
    least = linprog(np.ones(18), A_eq=np.hstack([matrix, -matrix]), b_eq=missing).fun

    def length(eps, rate):
        tx = plain(ro.phi.activity(), 0.0, rate, metric(eps, ro.anchor.initial_weights()))

        def step(carry, _):
            weights, state = carry
            updates, state = tx.update(matrix.T @ (matrix @ weights - wanted), state, weights)
            return (weights + updates, state), None

        start_ = jnp.asarray(start)
        (weights, _), _ = jax.lax.scan(step, (start_, tx.init(start_)), None, length=40_000)
        np.testing.assert_allclose(matrix @ weights, wanted, rtol=1e-6)
        return float(jnp.abs(weights - start).sum())

    flat = np.abs(np.linalg.pinv(matrix) @ missing).sum()
    assert flat > 1.1 * least
    assert least * (1 - 1e-6) < length(1e-6, 0.01) < 1.02 * least
    np.testing.assert_allclose(length(1e4, 1e-6), flat, rtol=1e-3)  # a large eps: the flat metric


def test_an_anchor_needs_an_eps_above_zero_and_must_be_one():
    with pytest.raises(ValueError, match="eps"):
        ro.phi.multiplicative_geometry(eps=0.0, anchor=ro.anchor.initial_weights())
    with pytest.raises(TypeError, match="anchor"):
        ro.phi.multiplicative_geometry(anchor="initial")


def test_around_an_anchor_half_precision_keeps_its_dtypes():
    phi = ro.phi.multiplicative_geometry(eps=0.25, anchor=ro.anchor.initial_weights())
    params = jnp.ones(2, jnp.bfloat16)
    values, state = phi.update(params, phi.init(params), params)
    assert values.dtype == jnp.float32
    assert state.weights.dtype == jnp.bfloat16
    np.testing.assert_allclose(values, 4.0)
    far = jnp.array([258.0, 1.0078125], jnp.bfloat16)  # 258 - 1 is no number of bfloat16
    values, _ = phi.update(far, state, far)
    np.testing.assert_allclose(values, [1 / 257.25, 1 / 0.2578125], rtol=1e-6)


def test_the_boundary_of_a_task_reaches_the_anchor():
    phi = ro.phi.multiplicative_geometry(eps=0.5, anchor=ro.anchor.task_boundary_weights())
    assert phi.needs == ("task_boundary",)
    state = phi.init(jnp.zeros(1))
    found = []
    for weight, boundary in ((1.0, False), (2.0, True), (4.0, False)):
        params = jnp.array([weight])
        values, state = phi.update(params, state, params, task_boundary=boundary)
        found.append(float(values[0]))
    np.testing.assert_allclose(found, [2.0, 2.0, 0.4])

"""Each published rule against an independent NumPy replay of its own equations: float64, 300 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .. import as_users

STEPS = 300
RTOL = 1e-5
HESSIAN = np.array([1.0, 7.0, 50.0])
MINIMUM = np.array([3.0, -2.0, 0.5])
START = np.array([1.0, -1.0, 2.0])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def noise(steps=STEPS, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, 3))


def noisy_gradient(weights, step):
    """A stochastic gradient of a quadratic, a function of weights and step alone."""
    return HESSIAN * (weights - MINIMUM) + noise()[step]


def run(tx, gradient, steps=STEPS, **extra_args):
    """Return the trajectory of ``tx``, shape (steps + 1, 3)."""
    params = jnp.asarray(START)
    state = tx.init(params)
    update = as_users.jit(lambda g, s, p: tx.update(g, s, p, **extra_args))
    path = [np.asarray(params)]
    for step in range(steps):
        updates, state = update(jnp.asarray(gradient(np.asarray(params), step)), state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return np.stack(path)


def plain(phi, alpha=1.0, learning_rate=0.01, *edits):
    return optax.chain(
        ro.compute_metric(phi, alpha),
        *edits,
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(learning_rate),
    )


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_activity_replays_rmsprop_with_bias_correction(alpha):
    weights, v = START.copy(), np.zeros(3)
    expected = [weights.copy()]
    for step in range(STEPS):
        g = noisy_gradient(weights, step)
        v = 0.99 * v + 0.01 * g * g
        weights = weights - 0.01 * g / (1 + alpha * np.sqrt(v / (1 - 0.99 ** (step + 1))))
        expected.append(weights.copy())
    actual = run(plain(ro.phi.activity(decay=0.99), alpha), noisy_gradient)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_activity_is_optax_rmsprop_at_every_alpha(alpha):
    known = optax.rmsprop(0.01 / alpha, decay=0.99, eps=1 / alpha, eps_in_sqrt=False, bias_correction=True)
    np.testing.assert_allclose(
        run(plain(ro.phi.activity(decay=0.99), alpha), noisy_gradient), run(known, noisy_gradient), rtol=1e-9
    )


@pytest.mark.parametrize("memory", [1.0, 0.98])
def test_accumulated_activity_replays_adagrad(memory):
    """Duchi, Hazan and Singer, Figure 1: H = delta + diag(s), s the root of the sum of squares."""
    alpha, learning_rate = 4.0, 0.5
    delta, eta = 1 / alpha, learning_rate / alpha
    weights, total = START.copy(), np.zeros(3)
    expected = [weights.copy()]
    for step in range(STEPS):
        g = noisy_gradient(weights, step)
        total = memory * total + g * g
        weights = weights - eta * g / (delta + np.sqrt(total))
        expected.append(weights.copy())
    actual = run(plain(ro.phi.accumulated_activity(memory=memory), alpha, learning_rate), noisy_gradient)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


def test_bayesian_synapse_replays_adabayes_fixed_point():
    """Aitchison 2020: 1/rate = 1/(2 lr_sgd) + sqrt(v/lr^2 + 1/(4 lr_sgd^2)), on the averaged gradient."""
    lr, lr_sgd, b1, b2 = 1e-3, 0.1, 0.9, 0.999
    weights, m, v = START.copy(), np.zeros(3), np.zeros(3)
    expected = [weights.copy()]
    for step in range(STEPS):
        g = noisy_gradient(weights, step)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        inverse_rate = 0.5 / lr_sgd + np.sqrt(v_hat / lr**2 + (0.5 / lr_sgd) ** 2)
        weights = weights - m_hat / inverse_rate
        expected.append(weights.copy())
    tx = plain(
        ro.phi.bayesian_synapse(learning_rate=lr, learning_rate_sgd=lr_sgd, decay=b2),
        1.0,
        lr_sgd,
        ro.on_gradient(optax.ema(b1)),
    )
    np.testing.assert_allclose(run(tx, noisy_gradient), expected, rtol=RTOL)


def test_bayesian_synapse_limits():
    phi = ro.phi.bayesian_synapse(learning_rate=1e-3, learning_rate_sgd=0.1)
    gradients = jnp.array([1e-9, 1e6])
    values, _ = phi.update(gradients, phi.init(gradients))
    # v -> 0: phi -> (lr_sgd/lr)^2 v, so E -> 1 (a rounding-prone difference in its textbook form).
    np.testing.assert_allclose(values[0], 1e4 * 1e-18, rtol=1e-9)
    np.testing.assert_allclose(1 + values[1], 100 * 1e6, rtol=1e-6)


def presynaptic_replay(
    gradients, form, pmin=0.25, pmax=1.0, up=0.0520, down=0.0516, threshold=1e-3, frozen=0.9353
):
    """Schug, Benzing and Steger: the release probabilities before each step, by scalar code."""
    orbit = []
    p = [pmin] * gradients.shape[1]
    for row in gradients:
        orbit.append(list(p))
        for i, g in enumerate(row):
            if p[i] >= frozen:
                continue
            room = pmax - p[i] if form == "proportional" else 1.0
            p[i] += room * up if abs(g) >= threshold else -room * down
            p[i] = min(max(p[i], pmin), pmax)
    return np.array(orbit)


@pytest.mark.parametrize("form", ["proportional", "constant"])
def test_presynaptic_release_replays_the_orbit_and_moves_with_the_old_probability(form):
    rng = np.random.default_rng(3)
    gradients = 2e-3 * rng.normal(size=(STEPS, 3)) * np.array([0.3, 0.72, 3.0])
    p = presynaptic_replay(gradients, form)
    interior = (p[:, 1] > 0.25) & (p[:, 1] < 0.9353)
    assert np.mean(interior) > 0.1  # the orbit visits the interior, the floor
    assert (p[1:, 0] == 0.25).any()
    assert p[-1, 2] >= 0.9353  # and the frozen end
    expected = START - np.cumsum(0.5 * gradients * (1 - p) / 0.75, axis=0)
    actual = run(plain(ro.phi.presynaptic_release(form=form), 1.0, 0.5), lambda _, step: gradients[step])
    np.testing.assert_allclose(actual[1:] - START, expected - START, rtol=RTOL)


@pytest.mark.parametrize(("form", "stated"), [("proportional", 12.23), ("constant", 59.06)])
def test_presynaptic_release_reaches_the_largest_metric_it_states_and_no_more(form, stated):
    """The supremum of E is one step up from just below the frozen end: derived, then met by a search."""
    left = (1 - 0.9353) * (1 - 0.0520) if form == "proportional" else 1 - 0.9353 - 0.0520
    supremum = 0.75 / left
    starts = np.linspace(0.25, 0.9353, 20_000, endpoint=False)
    phi = ro.phi.presynaptic_release(form=form)
    state = ro.phi.PresynapticReleaseState(jnp.asarray(starts))
    largest = np.zeros_like(starts)
    for _ in range(80):
        values, state = phi.update(jnp.ones_like(state.release_probability), state)
        largest = np.maximum(largest, 1 + np.asarray(values))
    assert largest.max() < supremum
    assert largest.max() > 0.99 * supremum
    np.testing.assert_allclose(supremum, stated, atol=0.005)


def test_a_constant_step_to_the_maximum_is_refused():
    """There E would be infinite."""
    with pytest.raises(ValueError, match=r"^up must be a finite number in \[0, 0.0647\)"):
        ro.phi.presynaptic_release(up=0.07, form="constant")


def test_secant_curvature_replays_running_means_of_secants():
    decay, alpha, learning_rate = 0.9, 10.0, 5.0

    def gradient(weights, _):
        return HESSIAN * (weights - MINIMUM) + (weights - MINIMUM) ** 3

    weights, previous, before = START.copy(), None, None
    numerator, denominator = np.zeros(3), np.zeros(3)
    expected = [weights.copy()]
    for step in range(60):
        g = gradient(weights, step)
        if previous is None:
            phi = np.full(3, 1e4)
        else:
            numerator = decay * numerator + np.abs((g - before) * (weights - previous))
            denominator = decay * denominator + (weights - previous) ** 2
            phi = np.where(denominator > 0, numerator / np.maximum(denominator, 1e-300), 1e4)
        previous, before = weights.copy(), g.copy()
        weights = weights - learning_rate * g / (1 + alpha * phi)
        expected.append(weights.copy())
    actual = run(plain(ro.phi.secant_curvature(decay=decay), alpha, learning_rate), gradient, steps=60)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_secant_curvature_is_exact_after_one_step_on_a_diagonal_quadratic(decay):
    phi = ro.phi.secant_curvature(decay=decay)
    state = phi.init(jnp.zeros(3))
    for weights in (START, START + np.array([1e-4, -2e-3, 0.1])):
        values, state = phi.update(jnp.asarray(HESSIAN * (weights - MINIMUM)), state, jnp.asarray(weights))
    np.testing.assert_allclose(values, HESSIAN, rtol=1e-9)


def test_secant_curvature_with_both_gradients_of_one_batch_is_exact_under_noise():
    """The change of batch cancels; without the second gradient the estimate is far off (checked too)."""
    phi = ro.phi.secant_curvature()
    state = noisy_state = phi.init(jnp.zeros(3))
    weights = previous = START
    for step in range(20):
        batch = 30 * noise()[step]
        gradients = jnp.asarray(HESSIAN * (weights - MINIMUM) + batch)
        same_batch = jnp.asarray(HESSIAN * (previous - MINIMUM) + batch)
        values, state = phi.update(
            gradients, state, jnp.asarray(weights), gradients_at_previous_params=same_batch
        )
        noisy, noisy_state = phi.update(gradients, noisy_state, jnp.asarray(weights))
        previous, weights = weights, weights + 0.01 * noise(seed=1)[step]
    np.testing.assert_allclose(values, HESSIAN, rtol=1e-9)
    assert (np.asarray(noisy) > 5 * HESSIAN).all()


def test_secant_curvature_of_a_weight_that_rests_stays_known():
    """Both means shrank in it, and the smaller one became 0 first: phi was 0, and the next step huge."""
    phi = ro.phi.secant_curvature()
    state = phi.init(jnp.ones(1, jnp.float32))
    for step in range(1200):
        weights = jnp.array([1.0 if step == 0 else 0.9], jnp.float32)
        values, state = phi.update(1e-3 * weights, state, weights)
    np.testing.assert_allclose(values, 1e-3, rtol=1e-5)


def test_secant_curvature_of_a_weight_that_never_moved_is_the_initial_one():
    phi = ro.phi.secant_curvature(initial_phi=77.0)
    state = phi.init(jnp.zeros(2))
    for moving in (0.0, 1.0, 2.0):
        values, state = phi.update(jnp.array([0.0, 3.0 * moving]), state, jnp.array([5.0, moving]))
    np.testing.assert_allclose(values, [77.0, 3.0], rtol=1e-12)


def test_hutchinson_curvature_is_exact_where_the_hessian_is_diagonal():
    phi = ro.phi.hutchinson_curvature()
    params = {"a": jnp.asarray(START), "b": jnp.ones((2, 2))}

    def loss(p):
        return 0.5 * jnp.sum(HESSIAN * (p["a"] - MINIMUM) ** 2) - jnp.sum(p["b"] ** 2)

    state = phi.init(params)
    for _ in range(3):
        values, state = phi.update(jax.grad(loss)(params), state, params, obj_fn=loss)
    np.testing.assert_allclose(values["a"], HESSIAN, rtol=1e-12)
    np.testing.assert_allclose(values["b"], np.full((2, 2), 2.0), rtol=1e-12)  # abs of the diagonal


def test_hutchinson_curvature_averages_to_the_diagonal_of_a_full_hessian():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    hessian = root @ root.T
    phi = ro.phi.hutchinson_curvature(decay=0.999)
    params = jnp.zeros(3)
    loss = lambda w: 0.5 * w @ jnp.asarray(hessian) @ w  # noqa: E731
    update = as_users.jit(lambda s: phi.update(params, s, params, obj_fn=loss))
    state = phi.init(params)
    for _ in range(2000):
        values, state = update(state)
    # Each probe has the variance sum_{j != i} H_ij^2; the running mean holds about 1730 of them.
    deviation = np.sqrt((hessian**2).sum(1) - np.diag(hessian) ** 2)
    assert (np.abs(np.asarray(values) - np.diag(hessian)) < 4 * deviation / np.sqrt(1000)).all()
    one, _ = phi.update(params, phi.init(params), params, obj_fn=loss)
    assert not np.allclose(one, np.diag(hessian), rtol=1e-2)  # one probe alone is not exact here


def test_hutchinson_curvature_replays_its_running_mean():
    """The probes are the code's own; what is replayed is the bias-corrected mean and the absolute value."""
    rng = np.random.default_rng(1)
    hessian = rng.normal(size=(3, 3))
    hessian = hessian + hessian.T
    params = jnp.zeros(3)
    once = ro.phi.hutchinson_curvature(decay=0.0)
    averaged = ro.phi.hutchinson_curvature(decay=0.9)
    loss = lambda w: 0.5 * w @ jnp.asarray(hessian) @ w  # noqa: E731
    once_state, state, mean = once.init(params), averaged.init(params), np.zeros(3)
    signs = set()
    for step in range(50):
        _, once_state = once.update(params, once_state, params, obj_fn=loss)
        estimate = np.asarray(once_state.diagonal)
        candidates = [z * (hessian @ z) for z in np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T]
        matches = [k for k, c in enumerate(candidates) if np.allclose(c, estimate)]
        assert matches, "an estimate that no vector of signs explains"
        signs.add(matches[0])
        values, state = averaged.update(params, state, params, obj_fn=loss)
        mean = 0.9 * mean + 0.1 * estimate
        np.testing.assert_allclose(values, np.abs(mean / (1 - 0.9 ** (step + 1))), rtol=1e-9)
    assert len(signs) > 1  # fresh probes at every update


def test_hutchinson_curvature_in_a_chain_with_activity_replays_adahessian():
    """Yao 2021, Algorithm 1 for a vector: both moments bias-corrected, the second of squares of z * Hz."""
    b1, b2, eps, rate = 0.9, 0.99, 1e-2, 0.05
    rng = np.random.default_rng(4)
    hessian = np.diag(HESSIAN) + rng.normal(size=(3, 3))
    hessian = (hessian + hessian.T) / 2
    loss = lambda w: 0.5 * w @ jnp.asarray(hessian) @ w  # noqa: E731
    once = ro.phi.hutchinson_curvature(decay=0.0)  # whose estimates the test above explains one by one
    weights, first, second, probe = START.copy(), np.zeros(3), np.zeros(3), once.init(jnp.zeros(3))
    expected, modulus_of_mean = [weights], np.zeros(3)
    for step in range(1, STEPS + 1):
        g = noisy_gradient(weights, step - 1)
        _, probe = once.update(jnp.zeros(3), probe, jnp.asarray(weights), obj_fn=loss)
        estimate = np.asarray(probe.diagonal)
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * estimate**2
        modulus_of_mean = b2 * modulus_of_mean + (1 - b2) * estimate
        root = np.sqrt(second / (1 - b2**step))
        weights = weights - rate * (first / (1 - b1**step)) / (root + eps)
        expected.append(weights)
    phi = optax.chain(once, ro.phi.activity(decay=b2))
    tx = plain(phi, 1 / eps, rate / eps, ro.on_gradient(optax.ema(b1)))
    np.testing.assert_allclose(run(tx, noisy_gradient, obj_fn=loss), expected, rtol=1e-9)
    assert np.any(root > 1.5 * abs(modulus_of_mean / (1 - b2**step)))  # the other mean is another rule


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_maintenance_energy_replays(power):
    weights = START.copy()
    expected = [weights.copy()]
    for step in range(STEPS):
        weights = weights - 0.01 * noisy_gradient(weights, step) / (1 + 3.0 * np.abs(weights) ** power)
        expected.append(weights.copy())
    actual = run(plain(ro.phi.maintenance_energy(power=power), 3.0), noisy_gradient)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.parametrize("decay", [None, 0.0, 0.9])
def test_modification_energy_replays(decay):
    """The applied changes by hand: their sum, or their weighted mean written out term by term."""
    weights, changes = START.copy(), []
    expected = [weights.copy()]
    for step in range(STEPS):
        if not changes:
            phi = np.zeros(3)
        elif decay is None:
            phi = np.sum(changes, axis=0)
        else:
            ages = decay ** np.arange(len(changes), dtype=float)[::-1]
            phi = np.tensordot(ages / ages.sum(), np.array(changes), axes=1)
        new = weights - 0.01 * noisy_gradient(weights, step) / (1 + 5.0 * phi)
        changes.append(np.abs(new - weights))
        weights = new
        expected.append(weights.copy())
    actual = run(plain(ro.phi.modification_energy(decay=decay), 5.0), noisy_gradient)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


def test_the_change_of_narrow_weights_is_exact():
    """``1 - 2**-9`` is no bfloat16 number, and the difference was rounded to 1."""
    phi = ro.phi.modification_energy()
    one, small = (jnp.full(1, value, jnp.bfloat16) for value in (1.0, 2.0**-9))
    _, state = phi.update(one, phi.init(one), small)
    values, _ = phi.update(one, state, one)
    np.testing.assert_array_equal(values, 1 - 2.0**-9)


def test_release_begins_at_a_phi_of_0_in_a_narrow_state_too():
    """The minimum rounded to bfloat16 lies below it, and phi was negative."""
    phi = ro.phi.presynaptic_release(minimum=0.35, state_dtype=jnp.bfloat16)
    weights = jnp.zeros(1, jnp.float32)
    np.testing.assert_array_equal(phi.update(weights, phi.init(weights), weights)[0], 0)

"""Metric noise: the laws it must sample, each to within four standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .. import as_users

STANDARD_ERRORS = 4


def langevin(metric, learning_rate, temperature, field=None, seed=0):
    """The chain that samples, with ``E = metric(w)``."""
    return optax.chain(
        ro.compute_metric(ro.phi.from_weights(lambda w: metric(w) - 1)),
        ro.add_metric_noise(learning_rate, temperature, seed, field),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(learning_rate),
    )


def sample(tx, start, gradient, steps):
    """Run one independent chain per entry of ``start``."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return (params + updates, state), None

    (params, _), _ = as_users.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=steps))()
    return np.asarray(params, np.float64)


def assert_variance(samples, expected):
    """Compare with the exact variance of a Gaussian, whose estimate has the standard error v sqrt(2/n)."""
    n = samples.shape[0]
    error = np.abs(samples.var(0) - expected)
    assert np.all(error < STANDARD_ERRORS * expected * np.sqrt(2 / n)), (samples.var(0), expected)


def test_one_step_has_covariance_2_t_lr_over_e():
    metric, learning_rate, temperature = np.array([1.0, 4.0, 100.0]), 0.3, 0.7
    params = jnp.zeros((200_000, 3))
    tx = langevin(lambda w: jnp.broadcast_to(jnp.asarray(metric), w.shape), learning_rate, temperature)
    updates = np.asarray(tx.update(params, tx.init(params), params)[0], np.float64)
    assert_variance(updates, 2 * temperature * learning_rate / metric)
    assert np.all(np.abs(updates.mean(0)) < STANDARD_ERRORS * updates.std(0) / np.sqrt(len(updates)))
    correlations = np.corrcoef(updates.T) - np.eye(3)
    assert np.all(np.abs(correlations) < STANDARD_ERRORS / np.sqrt(len(updates)))


def test_constant_metric_samples_the_exact_gaussian():
    """Stationary variance T/h, for each E; of the chain itself T/h / (1 - lr h / (2 E))."""
    curvature, metric = np.array([1.0, 2.0, 10.0]), np.array([1.0, 3.0, 30.0])
    learning_rate, temperature = 0.1, 0.5
    chain_variance = temperature / curvature / (1 - learning_rate * curvature / (2 * metric))
    tx = langevin(
        lambda w: jnp.broadcast_to(jnp.asarray(metric, w.dtype), w.shape), learning_rate, temperature
    )
    samples = sample(tx, jnp.zeros((40_000, 3)), lambda w: jnp.asarray(curvature, w.dtype) * w, 400)
    assert_variance(samples, chain_variance)


def quartic_metric(w):
    return 1 + 4 * w**2


def test_a_metric_of_the_weights_samples_the_exact_gaussian():
    """E = 1 + 4 w**2 and f = w**2/2 at T = 1: variance 1, fourth moment 3, in the limit of small steps.

    The Euler step is off by a multiple of the learning rate, which two rates cancel: 2 m(lr/2) - m(lr).
    """
    chains = 100_000
    start = jax.random.normal(jax.random.key(7), (2, chains))
    runs = [
        sample(langevin(quartic_metric, rate, 1.0, quartic_metric, seed), start[seed], lambda w: w, steps)
        for seed, (rate, steps) in enumerate([(0.01, 2000), (0.02, 1000)])
    ]
    for moment, exact, spread in ((2, 1, np.sqrt(2)), (4, 3, np.sqrt(96))):
        fine, coarse = (np.mean(run**moment) for run in runs)
        standard_error = np.sqrt(5) * spread / np.sqrt(chains)
        assert abs(2 * fine - coarse - exact) < STANDARD_ERRORS * standard_error


def test_without_the_drift_it_samples_another_law():
    """That law is E exp(-f), whose second moment is (1 + 4 * 3) / (1 + 4) = 13/5 and fourth 63/5."""
    chains = 20_000
    start = jax.random.normal(jax.random.key(7), (chains,))
    samples = sample(langevin(quartic_metric, 0.01, 1.0), start, lambda w: w, 6000)
    standard_error = np.sqrt((63 / 5 - (13 / 5) ** 2) / chains)
    assert abs(samples.var() - 13 / 5) < STANDARD_ERRORS * standard_error


def test_the_drift_is_the_derivative_of_the_inverse_metric():
    """Mean displacement of a step without a gradient: lr T d(1/E)/dw, and of no other factor of E."""
    learning_rate, temperature = 0.01, 0.3
    params = jnp.array([0.5, -1.0, 0.0, 2.0], jnp.float32)
    expected = (
        learning_rate * temperature * np.asarray(jax.vmap(jax.grad(lambda w: 1 / quartic_metric(w)))(params))
    )
    for field in (quartic_metric, lambda w: 100 * quartic_metric(w)):
        noisy, still = (langevin(quartic_metric, learning_rate, temperature, f, 5) for f in (field, None))
        first, _ = noisy.update(jnp.zeros(4), noisy.init(params), params)
        second, _ = still.update(jnp.zeros(4), still.init(params), params)
        np.testing.assert_allclose(first - second, expected, rtol=1e-3, atol=1e-8)


def test_a_separable_field_is_a_field():
    field = ro.fields.Quadratic(4.0)
    params = jnp.array([0.5, -1.0])
    tx = langevin(field, 0.01, 0.3, field)
    other = langevin(field, 0.01, 0.3, lambda w: field.metric(w))
    np.testing.assert_array_equal(
        tx.update(params, tx.init(params), params)[0], other.update(params, other.init(params), params)[0]
    )


def test_the_step_converges_to_the_law_at_first_order():
    """Exact variance of the chain of a constant metric: error T lr / (2 E), checked at two rates."""
    errors = []
    for learning_rate in (0.4, 0.1):
        samples = sample(
            langevin(lambda w: 1 + 0 * w, learning_rate, 1.0), jnp.zeros(400_000), lambda w: w, 150
        )
        errors.append(samples.var() - 1)
    expected = [1 / (1 - lr / 2) - 1 for lr in (0.4, 0.1)]
    np.testing.assert_allclose(errors, expected, atol=STANDARD_ERRORS * 1.25 * np.sqrt(2 / 400_000))


def test_idle_noise_has_its_size_over_the_root_of_the_metric_at_every_rate():
    metric = np.array([1.0, 4.0, 100.0])
    params = jnp.zeros((100_000, 3))
    for learning_rate in (0.01, 100.0, optax.linear_schedule(5.0, 1.0, 10)):
        tx = optax.chain(
            ro.compute_metric(
                ro.phi.from_weights(lambda w: jnp.broadcast_to(jnp.asarray(metric - 1), w.shape))
            ),
            ro.add_idle_noise(learning_rate, 0.07, 3),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(learning_rate),
        )
        updates, _ = tx.update(params, tx.init(params), params)
        assert_variance(np.asarray(updates, np.float64), 0.07**2 / metric)


def test_idle_noise_is_metric_noise_of_another_temperature():
    learning_rate, scale = 0.2, 0.07
    params = jnp.array([1.0, -2.0])
    stage_1 = ro.compute_metric(ro.phi.maintenance_energy(), 3.0)
    covectors, _ = stage_1.update(params, stage_1.init(params), params)
    idle = ro.add_idle_noise(learning_rate, scale, 9)
    langevin_noise = ro.add_metric_noise(learning_rate, scale**2 / (2 * learning_rate), 9)
    first, second = (ro.split(tx.update(covectors, tx.init(params))[0])[0] for tx in (idle, langevin_noise))
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_each_update_and_each_leaf_has_noise_of_its_own_and_a_seed_repeats():
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    tx = langevin(jnp.ones_like, 0.1, 1.0)
    state = tx.init(params)
    first, state = tx.update(params, state, params)
    second, _ = tx.update(params, state, params)
    again, _ = tx.update(params, tx.init(params), params)
    assert not np.any(first["a"] == first["b"])
    assert not np.any(first["a"] == second["a"])
    np.testing.assert_array_equal(first["a"], again["a"])


def test_frozen_synapses_and_a_rate_of_zero_get_no_noise_and_no_nan():
    params = jnp.array([1.0, 2.0])
    inverse = ro.phi.from_weights(lambda w: jnp.array([-1.0, 0.0]) + 0 * w)
    for noise in (ro.add_metric_noise(0.1, 1.0), ro.add_idle_noise(0.1, 1.0)):
        tx = optax.chain(
            ro.compute_metric(inverse, role="inverse_metric"), noise, ro.scale_by_inverse_metric()
        )
        updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
        assert updates[0] == 0
        assert updates[1] != 0
    for noise in (ro.add_metric_noise(0.0, 1.0), ro.add_idle_noise(0.0, 1.0)):
        tx = optax.chain(ro.compute_metric(ro.phi.activity()), noise, ro.scale_by_inverse_metric())
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates, params / (1 + params))


def test_real_and_imaginary_parts_are_two_weights():
    params = jnp.zeros(100_000, jnp.complex64)
    tx = langevin(lambda w: jnp.full(w.shape, 4.0), 0.1, 0.2)
    updates, _ = tx.update(params, tx.init(params), params)
    assert_variance(np.stack([updates.real, updates.imag], -1).astype(float), np.full(2, 0.01))


def test_schedules_of_rate_and_temperature():
    """Temperature falling to 0: the noise of the third update is gone."""
    params = jnp.zeros(1000)
    rate = optax.linear_schedule(0.1, 0.4, 1)
    tx = langevin(jnp.ones_like, rate, optax.linear_schedule(1.0, 0.0, 2))
    state, sizes = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        sizes.append(float(updates.std()))
    np.testing.assert_allclose(sizes, [np.sqrt(0.2), np.sqrt(2 * 0.5 * 0.4), 0.0], rtol=0.1)


def test_what_cannot_be_meant_is_an_error():
    params = jnp.ones(2)
    noise = ro.add_metric_noise(0.1, 1.0)
    with pytest.raises(ValueError, match="no leaf carries a metric"):
        noise.update(params, noise.init(params), params)
    for build in (ro.add_metric_noise, ro.add_idle_noise):
        with pytest.raises(ValueError, match="learning_rate must be a finite number"):
            build(-0.1, 1.0)
    with pytest.raises(ValueError, match="temperature must be a finite number"):
        ro.add_metric_noise(0.1, -1.0)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        ro.add_idle_noise(0.1, -1.0)
    with pytest.raises(TypeError, match="field must be a function"):
        ro.add_metric_noise(0.1, 1.0, field=4.0)
    tx = optax.chain(ro.compute_metric(ro.phi.activity()), ro.add_metric_noise(0.1, 1.0, field=jnp.cosh))
    with pytest.raises(ValueError, match="add_metric_noise with a field"):
        tx.update(params, tx.init(params))
    imaginary = params * 1j
    with pytest.raises(ValueError, match="params are complex"):
        tx.update(imaginary, tx.init(imaginary), imaginary)


def noisy(field):
    return optax.chain(
        ro.compute_metric(ro.phi.from_weights(jnp.square)),
        ro.add_metric_noise(1e12, 1.0, field=field),  # so long a step leaves the drift alone
        ro.scale_by_inverse_metric(),
    )


def test_the_drift_of_a_weight_does_not_depend_on_other_leaves():
    """The drift is T E'/E**2 = 1/2 at w = 1 for E = 1 + w**2, the step of the weights' own sign."""
    whole = {"a_steps": jnp.array([1000, 3]), "w": jnp.array([1.0, 1.0])}
    part = {"a_steps": None, "w": whole["w"]}
    gradients = {"a_steps": None, "w": jnp.zeros(2)}
    tx = noisy(lambda w: 1 + w**2)
    for params in (part, whole):
        updates, _ = tx.update(gradients, tx.init(part), params)
        np.testing.assert_allclose(updates["w"], [0.5, 0.5], atol=1e-5)


def test_a_leaf_without_a_metric_has_no_drift():
    tx = optax.chain(
        optax.masked(ro.compute_metric(ro.phi.from_weights(jnp.square)), {"k": True, "b": False}),
        ro.add_metric_noise(1e12, 1.0, field=lambda w: 1 + w**2),
        ro.scale_by_inverse_metric(),
    )
    params = {"k": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["k"], 0.5, atol=1e-5)
    np.testing.assert_allclose(updates["b"], 0.0, atol=1e-5)


def test_a_weight_with_infinite_stiffness_has_neither_noise_nor_drift():
    """E = 1/|w| is infinite at 0, where a bias begins."""
    field = ro.fields.Multiplicative()
    tx = optax.chain(
        ro.compute_metric(ro.phi.activity(), alpha=0.0),
        ro.multiply_metric(field),
        ro.add_metric_noise(0.1, 0.2, field=field),
        ro.scale_by_inverse_metric(),
    )
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.zeros(2)}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["bias"], [0.0, 0.0])
    assert np.isfinite(updates["kernel"]).all()
    assert updates["kernel"].all()

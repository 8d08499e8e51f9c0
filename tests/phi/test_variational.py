"""Bayesian gradient descent and MESU against NumPy replays of their papers and exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from .replay import RTOL, STEPS, plain, walk

CURVATURE = np.array([0.2, 3.0, 40.0])
MINIMUM = np.array([1.0, -2.0, 0.5])
START = np.array([0.3, 0.1, -0.4])
SAMPLES = 10


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def perturbed_gradient(weights, step):
    """Gradient of a quadratic with a quartic part, at one or many places, under minibatch noise."""
    offset = weights - MINIMUM + 0.1 * np.random.default_rng(100 + step).normal(size=3)
    return CURVATURE * offset + 0.3 * offset**3


def perturbations(step):
    return np.random.default_rng(step).normal(size=(SAMPLES, 3))


class Loop:
    """Evaluates the samples around the deviations in the state, as a training loop does."""

    def __init__(self, noise=perturbations):
        self.noise = noise
        self.deviations = []

    def extra_args(self, weights, state, step):
        (variational,) = [
            node
            for node in jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, ro.phi.VariationalState))
            if isinstance(node, ro.phi.VariationalState)
        ]
        s = np.asarray(variational.deviation)
        self.deviations.append(s)
        eps = self.noise(step)
        return {"perturbed_gradients": perturbed_gradient(weights + s * eps, step), "perturbations": eps}


def mean_of_samples(tx):
    """Feed the mean of the perturbed gradients to ``tx``, as the docstring asks of the loop."""

    def update(updates, state, params=None, *, perturbed_gradients, **extra_args):
        del updates
        mean = jnp.mean(perturbed_gradients, axis=0)
        return tx.update(mean, state, params, perturbed_gradients=perturbed_gradients, **extra_args)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def follow(tx):
    loop = Loop()
    path = walk(mean_of_samples(tx), START, lambda w, step: np.zeros(3), loop.extra_args)
    return path, np.stack(loop.deviations)


def test_bayesian_gradient_descent_replays_its_algorithm():
    """Zeno et al 2018, Algorithm 1, in their order: the mean moves first, with the old deviation."""
    eta, s0 = 1.5, 0.06
    mean, s = START.copy(), np.full(3, s0)
    means, deviations = [mean.copy()], []
    for step in range(STEPS):
        deviations.append(s.copy())
        g_sum, g_eps_sum = np.zeros(3), np.zeros(3)
        for eps in perturbations(step):
            g = perturbed_gradient(mean + s * eps, step)
            g_sum += g
            g_eps_sum += g * eps
        g_mean, g_eps = g_sum / SAMPLES, g_eps_sum / SAMPLES
        mean = mean - eta * s**2 * g_mean
        s = s * np.sqrt(1 + (0.5 * s * g_eps) ** 2) - 0.5 * s**2 * g_eps
        means.append(mean.copy())
    path, actual = follow(plain(ro.phi.bayesian_gradient_descent(initial_deviation=s0), 1.0, eta * s0**2))
    np.testing.assert_allclose(path, means, rtol=RTOL)
    np.testing.assert_allclose(actual, deviations, rtol=RTOL)
    assert np.any(np.diff(np.stack(deviations), axis=0) > 0)  # both signs of G occur
    assert np.any(np.diff(np.stack(deviations), axis=0) < 0)


def exact_slope(curvature):
    """Two antithetic samples give the mean over the Gaussian exactly: G = h * s on a quadratic."""
    signs = np.array([[1.0] * 3, [-1.0] * 3])

    def extra_args(state):
        s = np.asarray(state.deviation)
        return {
            "perturbed_gradients": jnp.asarray(curvature * s * signs),
            "perturbations": jnp.asarray(signs),
        }

    return extra_args


def deviations_on_a_quadratic(phi, curvature, steps):
    extra_args, state = exact_slope(curvature), phi.init(jnp.zeros(3))
    result = [np.asarray(state.deviation)]
    update = jax.jit(phi.update)
    for _ in range(steps):
        _, state = update(jnp.zeros(3), state, None, **extra_args(state))
        result.append(np.asarray(state.deviation))
    return np.stack(result)


def test_bayesian_gradient_descent_solves_its_fixed_point_equation():
    """The new s is stationary for the free energy: G + s'/s**2 - 1/s' = 0 (their Eq. 12, G held)."""
    s = deviations_on_a_quadratic(ro.phi.bayesian_gradient_descent(initial_deviation=0.5), CURVATURE, 50)
    old, new = s[:-1], s[1:]
    np.testing.assert_allclose(CURVATURE * old + new / old**2, 1 / new, rtol=1e-9)


def test_bayesian_gradient_descent_adds_the_curvature_to_the_precision():
    """Each batch adds its Hessian to 1/s**2, up to h**2 s**2 / 2, which dies out: Bayes' rule."""
    precision = (
        1
        / deviations_on_a_quadratic(ro.phi.bayesian_gradient_descent(initial_deviation=0.5), CURVATURE, 3000)
        ** 2
    )
    np.testing.assert_allclose(np.diff(precision, axis=0)[-1], CURVATURE, rtol=2e-3)
    flat = deviations_on_a_quadratic(ro.phi.bayesian_gradient_descent(initial_deviation=0.5), np.zeros(3), 10)
    np.testing.assert_allclose(flat, 0.5, rtol=1e-12)  # without curvature s stays


@pytest.mark.parametrize(
    ("ratio", "c_mean", "c_deviation"), [(0.99, 1.0, 0.5), (0.5, 1.0, 0.5), (0.05, 1.0, 0.5), (0.1, 3.0, 0.2)]
)
def test_mesu_replays_its_update(ratio, c_mean, c_deviation):
    """Bonnet et al 2025, both equations, prior mean 0, with the clamps of their program."""
    window, s0, start = 40.0, 0.7, 0.1
    mean, s, clamped = START.copy(), np.full(3, start), 0
    means, deviations = [mean.copy()], []
    for step in range(STEPS):
        deviations.append(s.copy())
        samples = [(perturbed_gradient(mean + s * eps, step), eps) for eps in perturbations(step)]
        d_mean = sum(g for g, _ in samples) / SAMPLES
        d_s = sum(g * eps for g, eps in samples) / SAMPLES
        mean_step = c_mean * (-(s**2) * d_mean + s**2 / (window * s0**2) * (0.0 - mean))
        s_step = c_deviation * (-(s**2) * d_s + s / (window * s0**2) * (s0**2 - s**2))
        clamped += np.sum(abs(mean_step) > ratio * s)
        mean = mean + np.clip(mean_step, -ratio * s, ratio * s)
        s = s + np.clip(s_step, -ratio * s, ratio * s)
        means.append(mean.copy())
    leak = optax.add_decayed_weights(1 / (window * s0**2))
    phi = ro.phi.mesu(
        window=window,
        prior_deviation=s0,
        initial_deviation=start,
        largest_change=ratio,
        mean_rate=c_mean,
        deviation_rate=c_deviation,
    )
    path, actual = follow(plain(phi, 1.0, s0**2, before=[leak]))
    assert clamped > (0 if ratio > 0.9 else 3)
    np.testing.assert_allclose(path, means, rtol=RTOL)
    np.testing.assert_allclose(actual, deviations, rtol=RTOL)


def test_mesu_without_data_relaxes_to_the_prior_at_the_stated_rate():
    """u = s**2 follows du/dt = u (s0**2 - u) / (N s0**2): a logistic curve with time constant N."""
    window, s0, start, steps = 2000.0, 0.7, 0.2, 6000
    phi = ro.phi.mesu(window=window, prior_deviation=s0, initial_deviation=start)
    s = deviations_on_a_quadratic(phi, np.zeros(3), steps)[:, 0]
    time = np.arange(steps + 1)
    logistic = s0**2 / (1 + (s0**2 / start**2 - 1) * np.exp(-time / window))
    np.testing.assert_allclose(s**2, logistic, rtol=1e-3)  # Euler's error at step 1/N
    near = ro.phi.mesu(window=window, prior_deviation=s0, initial_deviation=0.9999 * s0)
    distance = s0 - deviations_on_a_quadratic(near, np.zeros(3), 1)[:, 0]
    np.testing.assert_allclose(np.log(distance[0] / distance[1]), 1 / window, rtol=1e-3)  # the linear rate


def test_mesu_settles_at_the_posterior_of_its_memory():
    """At the fixed point 1/s**2 = 1/s0**2 + N h: the precision that N batches of curvature h give."""
    window, s0 = 25.0, 0.7
    phi = ro.phi.mesu(window=window, prior_deviation=s0)
    s = deviations_on_a_quadratic(phi, CURVATURE, 2000)[-1]
    np.testing.assert_allclose(1 / s**2, 1 / s0**2 + window * CURVATURE, rtol=1e-9)


def test_a_huge_gradient_leaves_a_positive_finite_metric():
    for phi in (ro.phi.bayesian_gradient_descent(initial_deviation=0.1), ro.phi.mesu()):
        for dtype, huge in ((jnp.float32, 1e30), (jnp.float64, 1e150)):
            for sign in (1.0, -1.0):
                params = jnp.zeros(2, dtype)
                state = phi.init(params)
                noise = jnp.ones((1, 2), dtype)
                for _ in range(40):
                    values, state = phi.update(
                        params, state, perturbed_gradients=sign * huge * noise, perturbations=noise
                    )
                    assert np.all(1 + values > 0)
                    assert np.all(np.isfinite(1 + values))


def test_samples_are_gaussian_fresh_at_every_update_and_a_function_of_the_state():
    phi = ro.phi.bayesian_gradient_descent(initial_deviation=0.5, key=7)
    params = {"w": jnp.full((50, 40), 3.0), "b": jnp.full(3, 2.0, jnp.float32)}
    state = phi.init(params)
    places, noise = ro.phi.draw_perturbations(state, params, samples=20)
    again, _ = ro.phi.draw_perturbations(state, params, samples=20)
    np.testing.assert_array_equal(places["w"], again["w"])
    np.testing.assert_allclose(places["w"], 3.0 + 0.5 * noise["w"], rtol=1e-12)
    assert places["b"].dtype == jnp.float32
    assert places["b"].shape == (20, 3)
    for moment, expected in ((1, 0.0), (2, 1.0), (4, 3.0)):
        np.testing.assert_allclose(np.mean(noise["w"] ** moment), expected, atol=0.1)
    assert len(np.unique(noise["w"])) == noise["w"].size
    nothing = jax.tree.map(jnp.zeros_like, noise)
    _, state = phi.update(params, state, perturbed_gradients=nothing, perturbations=noise)
    later, _ = ro.phi.draw_perturbations(state, params, samples=20)
    assert not np.any(later["w"] == places["w"])


def test_complex_weights_are_perturbed_in_both_parts():
    phi = ro.phi.bayesian_gradient_descent(initial_deviation=0.5)
    params = jnp.zeros(20_000, jnp.complex128)
    state = phi.init(params)
    places, noise = ro.phi.draw_perturbations(state, params, samples=1)
    for part in (np.real(noise), np.imag(noise)):
        np.testing.assert_allclose(np.var(part), 1.0, rtol=0.05)
    _, state = phi.update(params, state, perturbed_gradients=3.0 * places, perturbations=noise)
    # A curvature of 3 in each of the two directions: on average the s of a real weight of curvature 3.
    slope = 1.5 * np.mean(np.abs(noise[0]) ** 2) / 2
    np.testing.assert_allclose(slope, 1.5, rtol=0.02)
    each = 1.5 * np.abs(noise[0]) ** 2 / 2
    np.testing.assert_allclose(state.deviation, 0.5 * np.sqrt(1 + (each / 4) ** 2) - each * 0.125, rtol=1e-9)


def test_a_flax_loop_learns():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(model, nnx.Param)
    tx = riemannian_sgd(0.06**2, phi=ro.phi.bayesian_gradient_descent(initial_deviation=0.06))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)))
    y = x @ jnp.array([[1.0], [-2.0], [0.5]])

    def loss(params):
        return 0.5 * jnp.sum((nnx.merge(graph, params)(x) - y) ** 2)

    @nnx.jit
    def step(model, optimizer):
        params = nnx.state(model, nnx.Param)
        places, noise = ro.phi.draw_perturbations(optimizer.opt_state, params)
        gradients = jax.vmap(jax.grad(loss))(places)
        mean = jax.tree.map(lambda g: g.mean(0), gradients)
        optimizer.update(model, mean, perturbed_gradients=gradients, perturbations=noise)

    before = loss(nnx.state(model, nnx.Param))
    for _ in range(100):
        step(model, optimizer)
    assert loss(nnx.state(model, nnx.Param)) < 0.05 * before


@pytest.mark.parametrize("make_phi", [ro.phi.bayesian_gradient_descent, ro.phi.mesu])
@pytest.mark.parametrize("missing", ["perturbed_gradients", "perturbations"])
def test_a_missing_extra_argument_is_named(make_phi, missing):
    phi = make_phi()
    arguments = {"perturbed_gradients": jnp.zeros((2, 3)), "perturbations": jnp.zeros((2, 3))}
    del arguments[missing]
    with pytest.raises(ValueError, match=f"{make_phi.__name__} needs the extra argument {missing}"):
        phi.update(jnp.zeros(3), phi.init(jnp.zeros(3)), **arguments)


def test_samples_without_a_leading_axis_are_refused():
    phi = ro.phi.mesu()
    with pytest.raises(ValueError, match="one sample of perturbed_gradients has shape"):
        phi.update(
            jnp.zeros(3), phi.init(jnp.zeros(3)), perturbed_gradients=jnp.zeros(3), perturbations=jnp.zeros(3)
        )


@pytest.mark.parametrize(("gradient", "noise"), [((2, 3), (1, 3)), ((), ())])
def test_sample_counts_must_agree(gradient, noise):
    phi, params = ro.phi.mesu(), jnp.zeros(gradient[1:])
    with pytest.raises(ValueError, match="same number of samples"):
        phi.update(
            params, phi.init(params), perturbed_gradients=jnp.zeros(gradient), perturbations=jnp.zeros(noise)
        )


def test_drawing_needs_one_state_of_the_same_parameters():
    params = jnp.zeros(3)
    state = ro.phi.mesu().init(params)
    with pytest.raises(ValueError, match="holds 0 states"):
        ro.phi.draw_perturbations(optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match="holds 2 states"):
        ro.phi.draw_perturbations((state, state), params)
    with pytest.raises(ValueError, match="params differ"):
        ro.phi.draw_perturbations(state, jnp.zeros(4))
    with pytest.raises(ValueError, match="samples"):
        ro.phi.draw_perturbations(state, params, samples=0)


def test_drawing_in_an_eigenbasis_is_refused():
    """The deviations there belong to eigenvectors; they were applied to single weights."""
    params = {"kernel": jnp.zeros([2, 2])}
    tx = optax.chain(ro.in_eigenbasis(ro.scale_by_metric(ro.phi.mesu())), optax.scale(-1.0))
    with pytest.raises(ValueError, match="keep it outside of in_eigenbasis"):
        ro.phi.draw_perturbations(tx.init(params), params)
    beside = optax.chain(ro.in_eigenbasis(optax.trace(0.9)), ro.scale_by_metric(ro.phi.mesu()))
    ro.phi.draw_perturbations(beside.init(params), params)


@pytest.mark.parametrize(
    "arguments",
    [{"window": 0.0}, {"prior_deviation": -1.0}, {"initial_deviation": 0.0}, {"largest_change": 1.0}],
)
def test_mesu_checks_its_arguments(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        ro.phi.mesu(**arguments)


@pytest.mark.parametrize("prior", [0.01, 10.0])
def test_deviations_stay_between_a_millionth_and_a_hundred_times_the_prior(prior):
    """However large a slope: beyond, a single bad batch would make a weight forget its prior for good."""
    phi = ro.phi.mesu(prior_deviation=prior, window=1.0)
    params = jnp.zeros(2)
    state = phi.init(params)
    for _ in range(60):
        noise = jnp.full((1, 2), 1.0)
        gradients = jnp.array([[1.0, -1.0]]) * 1e30
        _, state = phi.update(params, state, params, perturbed_gradients=gradients, perturbations=noise)
    assert np.all(np.asarray(state.deviation) >= 0.999e-6 * prior)
    assert np.all(np.asarray(state.deviation) <= 1.001e2 * prior)
    assert np.asarray(state.deviation).max() == pytest.approx(100 * prior)

"""Factored, per-neuron and sliding-threshold phis against NumPy replays of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

from .replay import RTOL, STEPS, plain, walk


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


ROWS, COLUMNS = 4, 3
START = np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
CURVATURE = np.exp(np.random.default_rng(1).normal(size=(ROWS, COLUMNS)))


def gradient(weights, step):
    return CURVATURE * weights + np.random.default_rng(100 + step).normal(size=(ROWS, COLUMNS))


@pytest.mark.parametrize(("alpha", "power"), [(0.5, 0.5), (30.0, 0.5), (2.0, 1.0)])
def test_factored_activity_replays_adafactors_second_moment(alpha, power):
    """Shazeer and Stern 2018, Algorithm 2: V = R C / (1^T R), from sums over columns and rows."""
    decay, rate = 0.95, 0.02
    weights, r, c = START.copy(), np.zeros(ROWS), np.zeros(COLUMNS)
    expected = [weights.copy()]
    for step in range(STEPS):
        g = gradient(weights, step)
        r = decay * r + (1 - decay) * (g**2) @ np.ones(COLUMNS)
        c = decay * c + (1 - decay) * np.ones(ROWS) @ (g**2)
        v = np.outer(r, c) / r.sum() / (1 - decay ** (step + 1))
        weights = weights - rate * g / (1 + alpha * v**power)
        expected.append(weights.copy())
    actual = walk(plain(ro.phi.factored_activity(decay=decay, power=power), alpha, rate), START, gradient)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


def test_rank_one_squares_make_it_activity_exactly():
    a, b = np.array([0.1, 1.0, 30.0]), np.array([2.0, 0.5])
    signs = np.random.default_rng(2).choice([-1.0, 1.0], size=(50, 3, 2))
    scales = np.exp(np.random.default_rng(3).normal(size=50))
    factored, full = ro.phi.factored_activity(decay=0.9), ro.phi.activity(decay=0.9)
    one, other = factored.init(jnp.zeros((3, 2))), full.init(jnp.zeros((3, 2)))
    for sign, scale in zip(signs, scales, strict=True):
        g = jnp.asarray(scale * sign * np.outer(a, b))
        values, one = factored.update(g, one)
        expected, other = full.update(g, other)
        np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_fewer_than_two_axes_fall_back_to_activity(shape):
    factored, full = ro.phi.factored_activity(decay=0.9), ro.phi.activity(decay=0.9)
    one, other = factored.init(jnp.zeros(shape)), full.init(jnp.zeros(shape))
    for g in np.random.default_rng(4).normal(size=(20, *shape)):
        values, one = factored.update(jnp.asarray(g), one)
        expected, other = full.update(jnp.asarray(g), other)
        np.testing.assert_array_equal(values, expected)


def test_leading_axes_are_matrices_side_by_side():
    """As the caller reads them: by itself an array of four axes is read as a convolution's."""
    stacked = ro.phi.factored_activity(axes=ro.MatrixAxes((2,), (3,)))
    single = ro.phi.factored_activity()
    gradients = np.random.default_rng(5).normal(size=(10, 2, 3, 4, 5))
    state = stacked.init(jnp.zeros((2, 3, 4, 5)))
    assert state.rows.shape == (2, 3, 4, 1)
    assert state.columns.shape == (2, 3, 1, 5)
    alone = single.init(jnp.zeros((4, 5)))
    for g in gradients:
        values, state = stacked.update(jnp.asarray(g), state)
        expected, alone = single.update(jnp.asarray(g[1, 2]), alone)
        np.testing.assert_allclose(values[1, 2], expected, rtol=1e-12)


def test_dead_rows_and_columns_have_no_phi():
    phi = ro.phi.factored_activity()
    g = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(phi.update(g, phi.init(g))[0], g, rtol=1e-15, atol=0)  # zeros exactly
    np.testing.assert_array_equal(phi.update(0 * g, phi.init(g))[0], 0 * g)


def test_per_neuron_replays_adam_mini():
    """Zhang et al 2024, Algorithm 1: v_b = b2 v_b + (1 - b2) mean(g_b * g_b), a block per output neuron."""
    b1, b2, eps, rate = 0.9, 0.95, 0.1, 0.02
    weights, m, v = START.copy(), np.zeros((ROWS, COLUMNS)), np.zeros(COLUMNS)
    expected = [weights.copy()]
    for step in range(STEPS):
        g = gradient(weights, step)
        m = (1 - b1) * g + b1 * m
        for neuron in range(COLUMNS):
            block = g[:, neuron]
            v[neuron] = (1 - b2) * np.mean(block * block) + b2 * v[neuron]
            m_hat = m[:, neuron] / (1 - b1 ** (step + 1))
            v_hat = v[neuron] / (1 - b2 ** (step + 1))
            weights[:, neuron] = weights[:, neuron] - rate * m_hat / (np.sqrt(v_hat) + eps)
        expected.append(weights.copy())
    tx = plain(ro.phi.per_neuron(decay=b2), 1 / eps, rate / eps, ro.on_gradient(optax.ema(b1)))
    np.testing.assert_allclose(walk(tx, START, gradient), expected, rtol=RTOL)


def test_per_neuron_takes_a_convolution_window_as_fan_in():
    g = jnp.asarray(np.random.default_rng(6).normal(size=(3, 3, 2, 4)))
    phi = ro.phi.per_neuron(power=1.0)
    values, state = phi.update(g, phi.init(g))
    assert state.second_moment.shape == (1, 1, 1, 4)
    expected = np.broadcast_to(np.mean(np.square(g), axis=(0, 1, 2)), g.shape)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    vector = jnp.array([1.0, 7.0])
    np.testing.assert_allclose(phi.update(vector, phi.init(vector))[0], [25.0, 25.0])


class TestSlidingThreshold:
    """Law and Cooper 1994: dw = eta y (y - theta) x / theta, theta the running mean of y**2."""

    decay, rate = 0.95, 0.01
    patterns = np.random.default_rng(7).uniform(0.2, 1.0, size=(STEPS, ROWS))
    start = np.random.default_rng(8).uniform(0.1, 0.6, size=(ROWS, COLUMNS))

    def test_replays_law_and_cooper(self):
        weights, total, mass = self.start.copy(), np.zeros(COLUMNS), 0.0
        thresholds, expected = [], [weights.copy()]
        for x in self.patterns:
            y = x @ weights
            total = self.decay * total + (1 - self.decay) * y**2
            mass = self.decay * mass + (1 - self.decay)
            theta = total / mass
            thresholds.append(theta)
            for j in range(COLUMNS):
                weights[:, j] += self.rate * y[j] * (y[j] - theta[j]) * x / theta[j]
            expected.append(weights.copy())
        assert np.ptp(np.stack(thresholds), axis=0).min() > 0.1  # the threshold slides

        def bcm_gradient(w, step):
            x = self.patterns[step]
            y = x @ w
            return -np.outer(x, y * (y - thresholds[step]))

        tx = plain(
            ro.phi.activity(), 0.0, self.rate, ro.multiply_metric(ro.phi.sliding_threshold(decay=self.decay))
        )
        actual = walk(
            tx, self.start, bcm_gradient, lambda w, _, step: {"activities": self.patterns[step] @ w}
        )
        np.testing.assert_allclose(actual, expected, rtol=RTOL)

    def test_batches_and_biases(self):
        y = np.random.default_rng(9).normal(size=(5, 6, 3))
        params = {"kernel": jnp.zeros((2, 4, 3)), "bias": jnp.zeros(3)}
        phi = ro.phi.sliding_threshold(axes={"kernel": ro.MatrixAxes((0, 1), (2,))})
        batch = jnp.asarray(y)
        values, state = phi.update(params, phi.init(params), activities={"kernel": batch, "bias": batch})
        mean = np.mean(y**2, axis=(0, 1))
        np.testing.assert_allclose(values["bias"], mean, rtol=1e-12)
        np.testing.assert_allclose(values["kernel"], np.broadcast_to(mean, (2, 4, 3)), rtol=1e-12)
        assert state.threshold["kernel"].shape == (1, 1, 3)

    @pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3)], ids=["Equinox's convolutions", "Haiku's norms"])
    def test_axes_of_length_1_of_a_bias_are_not_its_neurons(self, shape):
        phi = ro.phi.sliding_threshold(axes="equinox")
        bias = jnp.zeros(shape)
        y = jnp.arange(2 * 5 * 4 * 3.0).reshape(2, 5, 4, 3)  # examples, places, neurons
        values, _ = phi.update({"bias": bias}, phi.init({"bias": bias}), activities={"bias": y})
        expected = np.mean(np.arange(120.0).reshape(40, 3) ** 2, axis=0).reshape(shape)
        np.testing.assert_allclose(values["bias"], expected, rtol=1e-6)

    def test_missing_or_misshapen_activities(self):
        phi, kernel = ro.phi.sliding_threshold(), jnp.zeros((2, 3))
        with pytest.raises(ValueError, match="sliding_threshold needs the extra argument activities"):
            phi.update(kernel, phi.init(kernel))
        with pytest.raises(ValueError, match=r"activities has shape \(2,\)"):
            phi.update(kernel, phi.init(kernel), activities=jnp.zeros(2))


@pytest.mark.parametrize("make_phi", [ro.phi.factored_activity, ro.phi.per_neuron])
def test_huge_gradients_leave_finite_state(make_phi):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        g = jnp.full((64, 64), jnp.finfo(dtype).max, dtype)
        phi = make_phi()
        values, state = phi.update(g, phi.init(g))
        assert all(np.all(np.isfinite(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves((values, state)))
        assert values.dtype == jnp.float32


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("make_phi", [ro.phi.factored_activity, ro.phi.per_neuron])
def test_sharded_matrices_are_reduced_where_they_are(make_phi, axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    sharding = NamedSharding(mesh, P("x", "y"))
    plain_gradients = jnp.asarray(np.random.default_rng(10).normal(size=(8, 16)))
    tx = plain(make_phi())
    expected, expected_state = tx.update(plain_gradients, tx.init(plain_gradients))
    gradients = jax.device_put(plain_gradients, sharding)
    state = tx.init(gradients)
    update = jax.jit(tx.update)
    updates, new_state = update(gradients, state)
    assert updates.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(updates, expected, rtol=1e-12)
    for leaf, other in zip(jax.tree.leaves(new_state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-12)
    compiled = update.lower(gradients, state).compile().as_text()
    assert "all-gather" not in compiled
    assert "all-reduce" in compiled
    # The state of a sharded matrix is sharded too.
    matrix_state = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert matrix_state
    assert not any(leaf.sharding.is_fully_replicated for leaf in matrix_state)


def test_the_product_of_the_largest_factors_is_finite():
    """One column holds everything: its factor is ``columns**power``, on top of the largest row."""
    gradient = jnp.zeros((3, 9), jnp.float32).at[:, 0].set(1e18)
    phi = ro.phi.factored_activity(power=2.0)
    values, _ = phi.update(gradient, phi.init(gradient), gradient)
    np.testing.assert_allclose(values[:, 0], 2.0**126, rtol=1e-5)
    np.testing.assert_array_equal(values[:, 1:], 0)


def test_a_high_power_stays_finite():
    phi = ro.phi.factored_activity(power=9.0)
    gradients = jnp.full([3, 4], 1e3)
    values, _ = phi.update(gradients, phi.init(gradients))
    assert np.isfinite(values).all()


def test_a_leaf_without_weights_changes_nothing_in_the_others():
    weights = {"kernel": jnp.asarray(START), "none": jnp.zeros([0, 3]), "nothing": jnp.zeros([2, 0])}
    alone = {"kernel": weights["kernel"]}
    tx = ro.riemannian_adamw(0.1)
    found, _ = tx.update(weights, tx.init(weights), weights)
    expected, _ = tx.update(alone, tx.init(alone), alone)
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])

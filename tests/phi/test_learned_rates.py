"""IDBD and Autostep against NumPy replays of linear regression, as their papers state them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

from .replay import RTOL, STEPS, plain, walk

INPUTS = np.random.default_rng(0).normal(size=(STEPS, 4)) * np.array([0.3, 1.0, 1.0, 2.0])
START = np.array([0.5, -0.5, 0.2, 0.0])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def target(step):
    """The first two inputs matter, and change sign now and then; the others never do."""
    sign = 1.0 if (step // 60) % 2 == 0 else -1.0
    noise = 0.2 * np.random.default_rng(step).normal()
    return sign * (2.0 * INPUTS[step, 0] - INPUTS[step, 1]) + noise


def gradient(weights, step):
    """Of half the squared error of one example."""
    return -(target(step) - weights @ INPUTS[step]) * INPUTS[step]


def inputs_of(weights, state, step):
    return {"inputs": INPUTS[step]}


def replay_idbd(theta, initial_rate, smallest=-np.inf, largest_change=np.inf):
    """Sutton 1992, Figure 2, one scalar at a time."""
    w, h, beta = START.copy(), np.zeros(4), np.full(4, np.log(initial_rate))
    path = [w.copy()]
    for step in range(STEPS):
        delta = target(step) - w @ INPUTS[step]
        for i, x in enumerate(INPUTS[step]):
            beta[i] += np.clip(theta * delta * x * h[i], -largest_change, largest_change)
            beta[i] = max(beta[i], smallest)
            a = np.exp(beta[i])
            w[i] = w[i] + a * delta * x
            h[i] = h[i] * max(1 - a * x**2, 0) + a * delta * x
        path.append(w.copy())
    return np.stack(path), beta


def test_idbd_replays_linear_regression():
    path, beta = replay_idbd(0.02, 0.05)
    assert np.ptp(beta) > 0.5  # rates have parted
    tx = plain(ro.phi.idbd(meta_rate=0.02), 1.0, 1.0)
    np.testing.assert_allclose(walk(tx, START, gradient, inputs_of), path, rtol=RTOL)


def test_idbd_bounds_bind_as_the_paper_advises():
    bounds = {"smallest": np.log(0.04), "largest_change": 0.05}
    path, _ = replay_idbd(0.05, 0.05, **bounds)
    free, _ = replay_idbd(0.05, 0.05)
    assert not np.allclose(path, free, rtol=1e-2)
    phi = ro.phi.idbd(meta_rate=0.05, smallest_log_rate=np.log(0.04), largest_change=0.05)
    np.testing.assert_allclose(walk(plain(phi, 1.0, 1.0), START, gradient, inputs_of), path, rtol=RTOL)


def test_idbd_trace_is_cut_where_a_step_overshoots():
    """[1 - a x**2]+ is 0 at large inputs: the trace then holds the last step alone."""
    phi = ro.phi.idbd(initial_rate=0.5)
    state = phi.init(jnp.zeros(1))
    _, state = phi.update(jnp.array([-1.0]), state, inputs=jnp.array([1.0]))
    _, state = phi.update(jnp.array([-3.0]), state, inputs=jnp.array([2.0]))
    np.testing.assert_allclose(state.trace, 3.0 * np.exp(state.log_rate), rtol=1e-12)


def test_idbd_without_meta_learning_is_sgd():
    tx = plain(ro.phi.idbd(meta_rate=0.0, initial_rate=0.05), 1.0, 1.0)
    np.testing.assert_allclose(
        walk(tx, START, gradient, inputs_of), walk(optax.sgd(0.05), START, gradient), rtol=1e-12
    )


def replay_autostep(mu, tau, initial_rate):
    """Mahmood et al 2012, Table 1."""
    w, h, v, a = START.copy(), np.zeros(4), np.zeros(4), np.full(4, initial_rate)
    path, overshoots = [w.copy()], 0
    for step in range(STEPS):
        x = INPUTS[step]
        delta = target(step) - w @ x
        for i in range(4):
            dxh = delta * x[i] * h[i]
            v[i] = max(abs(dxh), v[i] + (1 / tau) * a[i] * x[i] ** 2 * (abs(dxh) - v[i]))
            if v[i] != 0:
                a[i] = a[i] * np.exp(mu * dxh / v[i])
        overshoot = max(np.sum(a * x**2), 1)
        overshoots += overshoot > 1
        for i in range(4):
            a[i] = a[i] / overshoot
            w[i] = w[i] + a[i] * delta * x[i]
            h[i] = h[i] * (1 - a[i] * x[i] ** 2) + a[i] * delta * x[i]
        path.append(w.copy())
    return np.stack(path), overshoots


@pytest.mark.parametrize("window", [1e4, 20.0])
def test_autostep_replays_linear_regression(window):
    path, overshoots = replay_autostep(0.05, window, 0.3)
    assert 3 < overshoots < STEPS  # the normalisation of the rates is at work, and not always
    tx = plain(ro.phi.autostep(meta_rate=0.05, window=window, initial_rate=0.3), 1.0, 1.0)
    np.testing.assert_allclose(walk(tx, START, gradient, inputs_of), path, rtol=RTOL)


def test_autostep_window_matters():
    short, _ = replay_autostep(0.05, 20.0, 0.3)
    long, _ = replay_autostep(0.05, 1e4, 0.3)
    assert not np.allclose(short, long, rtol=1e-3)


@pytest.mark.parametrize("make_phi", [ro.phi.idbd, ro.phi.autostep])
def test_the_units_of_a_layer_are_linear_units_side_by_side(make_phi):
    """A kernel of shape (inputs, units) is one published learner per column."""
    generator = np.random.default_rng(3)
    batch, targets = generator.normal(size=(STEPS, 4)), generator.normal(size=(STEPS, 2))

    def kernel_gradient(kernel, step):
        return np.outer(batch[step], batch[step] @ kernel - targets[step])

    def unit_gradient(unit):
        return lambda w, step: batch[step] * (batch[step] @ w - targets[step, unit])

    def extra_args(weights, state, step):
        return {"inputs": batch[step]}

    start = generator.normal(size=(4, 2))
    tx = plain(make_phi(meta_rate=0.05, initial_rate=0.1), 1.0, 1.0)
    layer = walk(tx, start, kernel_gradient, extra_args, steps=100)
    for unit in range(2):
        alone = walk(tx, start[:, unit], unit_gradient(unit), extra_args, steps=100)
        np.testing.assert_allclose(layer[:, :, unit], alone, rtol=1e-9)


@pytest.mark.parametrize("make_phi", [ro.phi.idbd, ro.phi.autostep])
def test_batches_of_inputs_enter_by_their_mean_square(make_phi):
    phi = make_phi(initial_rate=0.1)
    kernel = jnp.ones((3, 2))
    batch = np.random.default_rng(1).normal(size=(5, 7, 3))
    states = []
    for inputs in (jnp.asarray(batch), jnp.sqrt(jnp.mean(jnp.square(batch), axis=(0, 1)))):
        state = phi.init(kernel)
        for _ in range(3):
            _, state = phi.update(kernel, state, inputs=inputs)
        states.append(state)
    np.testing.assert_allclose(states[0].trace, states[1].trace, rtol=1e-12)
    assert len(np.unique(np.round(states[0].trace[:, 0], 12))) == 3  # inputs differ, and are told apart


@pytest.mark.parametrize("make_phi", [ro.phi.idbd, ro.phi.autostep])
def test_the_gradient_form_takes_the_squared_gradient_for_the_squared_input(make_phi):
    gradients = np.random.default_rng(2).normal(size=(20, 3))
    by_inputs, by_gradients = make_phi(initial_rate=0.3), make_phi(initial_rate=0.3, form="gradients")
    one, other = by_inputs.init(jnp.zeros(3)), by_gradients.init(jnp.zeros(3))
    for g in gradients:
        values, one = by_inputs.update(jnp.asarray(g), one, inputs=jnp.asarray(g))
        same, other = by_gradients.update(jnp.asarray(g), other)
        np.testing.assert_allclose(values, same, rtol=1e-12)


def test_autostep_biases_are_not_summed_over():
    """With the number 1 for the inputs each bias is the only input of its unit."""
    phi = ro.phi.autostep(meta_rate=0.0, initial_rate=0.6)
    bias = jnp.zeros(3)
    values, _ = phi.update(bias, phi.init(bias), inputs=1.0)
    np.testing.assert_allclose(1 / (1 + values), 0.6)
    values, _ = phi.update(bias, phi.init(bias), inputs=jnp.ones(3))
    np.testing.assert_allclose(1 / (1 + values), 0.6 / 1.8)


@pytest.mark.parametrize("make_phi", [ro.phi.idbd, ro.phi.autostep])
def test_complex_weights_learn_as_their_two_parts_do(make_phi):
    """A complex weight whose gradients are real is a real weight."""
    gradients = np.random.default_rng(4).normal(size=(30, 2))
    phi = make_phi(meta_rate=0.1, initial_rate=0.2)
    real, turned = phi.init(jnp.zeros(2)), phi.init(jnp.zeros(2, jnp.complex128))
    for g in gradients:
        values, real = phi.update(jnp.asarray(g), real, inputs=jnp.ones(2))
        same, turned = phi.update(jnp.asarray(g) * jnp.exp(0.5j), turned, inputs=jnp.ones(2))
        np.testing.assert_allclose(values, same, rtol=1e-9)


def test_a_flax_loop_supplies_the_inputs():
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ro.riemannian_sgd(1.0, phi=ro.phi.idbd(meta_rate=0.01)), wrt=nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 4)))
    y = x @ jnp.array([[2.0], [-1.0], [0.0], [0.0]]) + 0.5

    @nnx.jit
    def step(model, optimizer, x, y):
        loss, gradients = nnx.value_and_grad(lambda m: 0.5 * jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, gradients, inputs={"kernel": x, "bias": 1.0})
        return loss

    losses = [float(step(model, optimizer, x, y)) for _ in range(100)]
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize("make_phi", [ro.phi.idbd, ro.phi.autostep])
class TestRefusals:
    def test_missing_inputs(self, make_phi):
        phi = make_phi()
        with pytest.raises(ValueError, match=f"{make_phi.__name__} needs the extra argument inputs"):
            phi.update(jnp.zeros(3), phi.init(jnp.zeros(3)))

    @pytest.mark.parametrize("shape", [(2,), (3, 2), (5, 2)])
    def test_wrong_shapes(self, make_phi, shape):
        phi, kernel = make_phi(), jnp.zeros((3, 2))
        with pytest.raises(ValueError, match="inputs has shape"):
            phi.update(kernel, phi.init(kernel), inputs=jnp.zeros(shape))

    def test_other_trees(self, make_phi):
        phi, params = make_phi(), {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
        with pytest.raises(ValueError, match=r"differs at leaf \['bias'\]"):
            phi.update(params, phi.init(params), inputs={"kernel": jnp.zeros(3)})

    @pytest.mark.parametrize("arguments", [{"initial_rate": 0.0}, {"meta_rate": -1.0}, {"form": "g"}])
    def test_arguments(self, make_phi, arguments):
        (name,) = arguments
        with pytest.raises(ValueError, match=name):
            make_phi(**arguments)

    def test_rates_stay_finite(self, make_phi):
        for dtype in (jnp.float32, jnp.bfloat16):
            phi = make_phi(meta_rate=10.0)
            state = phi.init(jnp.zeros(2, dtype))
            for sign in (1.0, 1.0, -1.0, 1.0, 1.0, 1.0):
                gradients = jnp.array([1e4, -1e4], dtype) * jnp.asarray(sign, dtype)
                values, state = phi.update(gradients, state, inputs=jnp.zeros(2, dtype))
                assert values.dtype == jnp.float32
                assert np.all(np.isfinite(values))
                assert np.all(1 + values > 0)


def log_rates(phi, gradients, **extra_args):
    """Return the log rates of one weight after each of some gradients."""
    state, history = phi.init(jnp.ones(1)), []
    for gradient in gradients:
        _, state = phi.update(jnp.full(1, gradient), state, jnp.ones(1), **extra_args)
        history.append(float(state.log_rate[0]))
    return history


# One step that leaves a trace, and small ones that disagree with it.
DISAGREEING = [-1.0] + [1e-3] * 20


def test_log_rates_stay_where_float32_can_tell_one_plus_phi():
    """Between -30 and 9, however strongly steps agree or disagree."""
    eager = {"meta_rate": 1e20, "form": "gradients", "smallest_log_rate": -30.0, "largest_change": 5.0}
    assert log_rates(ro.phi.idbd(**eager), [1.0] * 20)[-1] == 9
    assert log_rates(ro.phi.idbd(**eager), DISAGREEING)[-1] == -30
    with pytest.raises(ValueError, match="smallest_log_rate"):
        ro.phi.idbd(smallest_log_rate=-30.1)


def test_limits_of_idbd_are_those_published():
    """Sutton, Adapting bias by gradient descent, AAAI, 1992: beta >= -10, and no change by more than 2."""
    rates = log_rates(ro.phi.idbd(meta_rate=1e20), DISAGREEING, inputs=jnp.full(1, 0.1))
    assert rates[-1] == -10
    assert np.max(np.abs(np.diff(rates))) == pytest.approx(2)


def test_a_first_rate_below_the_smallest_is_refused():
    """It became the smallest at the first update, without a word."""
    with pytest.raises(ValueError, match="initial_rate"):
        ro.phi.idbd(initial_rate=1e-6)
    ro.phi.idbd(initial_rate=1e-6, smallest_log_rate=-20.0)

"""Metaplasticity and the utility gate against NumPy replays of their papers."""

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


SHAPES = {"a": (3,), "b": (2, 2)}


def start(seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def target(step):
    """A minimum that moves back and forth, so that weights grow and shrink."""
    return 2.0 * np.sin(0.05 * step + np.arange(3)), 1.5 * np.cos(0.07 * step + np.arange(4)).reshape(2, 2)


def gradient(weights, step):
    noise = np.random.default_rng(1000 + step)
    a, b = target(step)
    return {
        "a": weights["a"] - a + 0.3 * noise.normal(size=3),
        "b": 2.0 * (weights["b"] - b) + 0.3 * noise.normal(size=(2, 2)),
    }


def test_metaplasticity_replays_the_binarised_network_optimiser():
    """Laborieux 2021, Eq. 1-3: U -= eta * f_meta(m, W) * U_W where sign(W) * U_W > 0, else U -= eta * U_W."""
    m, rate, b1, b2, eps = 1.35, 0.05, 0.9, 0.999, 1e-8
    weights = start()
    first = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    second = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    expected = [{name: w.copy() for name, w in weights.items()}]
    consolidated = 0
    for step in range(STEPS):
        g = gradient(weights, step)
        for name, w in weights.items():
            first[name] = b1 * first[name] + (1 - b1) * g[name]
            second[name] = b2 * second[name] + (1 - b2) * g[name] ** 2
            adam = first[name] / (1 - b1 ** (step + 1))
            adam = adam / (np.sqrt(second[name] / (1 - b2 ** (step + 1))) + eps)
            for index in np.ndindex(w.shape):
                towards_zero = np.sign(w[index]) * first[name][index] > 0
                consolidated += towards_zero
                factor = 1 - np.tanh(m * abs(w[index])) ** 2 if towards_zero else 1.0
                w[index] -= rate * factor * adam[index]
        expected.append({name: w.copy() for name, w in weights.items()})
    assert 0.2 < consolidated / (7 * STEPS) < 0.8  # both branches are at work
    tx = plain(ro.phi.metaplasticity(strength=m), 1.0, rate, before=[optax.scale_by_adam(b1, b2, eps)])
    actual = walk(tx, start(), gradient)
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], [e[name] for e in expected], rtol=RTOL)


@pytest.mark.parametrize("strength", [0.5, 1.35])
def test_metaplasticity_rate_is_one_minus_tanh_squared_towards_zero_only(strength):
    weights = jnp.linspace(-3.0, 3.0, 12)
    phi = ro.phi.metaplasticity(strength=strength)
    shrinking, _ = phi.update(weights, phi.init(weights), weights)
    np.testing.assert_allclose(1 / (1 + shrinking), 1 - np.tanh(strength * weights) ** 2, rtol=1e-9)
    growing, _ = phi.update(-weights, phi.init(weights), weights)
    assert not np.any(growing)


def test_metaplasticity_stays_finite_for_huge_weights():
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16):
        weights = jnp.array([1e30, -1e30], dtype)
        phi = ro.phi.metaplasticity()
        values, _ = phi.update(weights, phi.init(weights), weights)
        assert np.all(np.isfinite(values.astype(jnp.float64)))
        assert np.all(values > 1e20)


def maximum(utility, over):
    """Return the largest utility of each group, by name of the leaf."""
    if over == "tree":
        return dict.fromkeys(utility, max(u.max() for u in utility.values()))
    return {name: u.max() for name, u in utility.items()}


@pytest.mark.parametrize("over", ["tree", "leaf"])
def test_utility_gate_replays_upgd_with_its_noise_and_decay(over):
    """Elsayed and Mahmood 2024, Algorithm 1 with scaled utility, mean and maximum corrected alike."""
    rate, decay, weight_decay = 0.02, 0.99, 0.1
    noise = {n: 0.1 * np.random.default_rng(5).normal(size=(STEPS, *s)) for n, s in SHAPES.items()}
    weights = start()
    utility = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    expected = [{name: w.copy() for name, w in weights.items()}]
    for step in range(STEPS):
        g = gradient(weights, step)
        for name in SHAPES:
            utility[name] = decay * utility[name] + (1 - decay) * (-g[name] * weights[name])
        corrected = {name: u / (1 - decay ** (step + 1)) for name, u in utility.items()}
        largest = maximum(corrected, over)
        for name in SHAPES:
            useful = largest[name] > 0
            share = np.where(useful, corrected[name] / np.where(useful, largest[name], 1), 0)
            gate = 1 - 1 / (1 + np.exp(-share))
            shrunk = weights[name] * (1 - rate * weight_decay)
            weights[name] = shrunk - 2 * rate * (g[name] + noise[name][step]) * gate
        expected.append({name: w.copy() for name, w in weights.items()})

    def add_noise(updates, count):
        return jax.tree.map(lambda u, n: u + jnp.asarray(n)[count], updates, noise)

    noisy = optax.GradientTransformation(
        lambda params: jnp.zeros([], jnp.int32),
        lambda updates, count, params=None: (add_noise(updates, count), count + 1),
    )
    decayed = optax.add_decayed_weights(weight_decay)
    tx = plain(ro.phi.utility_gate(decay=decay, over=over), 0.5, rate, ro.on_gradient(noisy), after=[decayed])
    actual = walk(tx, start(), gradient)
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], [e[name] for e in expected], rtol=RTOL)


def test_a_maximum_without_its_correction_closes_the_gate_at_the_start():
    """The authors' program corrects the mean alone: at first U is 1 / (1 - decay) times as large."""
    params, gradients = jnp.array([1.0, 1.0, 2.0]), jnp.array([-2.0, 0.0, 0.5])
    phi = ro.phi.utility_gate(decay=0.999)
    values, _ = phi.update(gradients, phi.init(params), params)
    ours = 1 / (1 + 0.5 * np.asarray(values))
    utility = np.array([2.0, 0.0, -1.0])
    sigmoid = lambda x: np.exp(-np.logaddexp(0, -x))  # noqa: E731
    np.testing.assert_allclose(ours, 2 * (1 - sigmoid(utility / 2.0)), rtol=1e-9)
    theirs = 2 * (1 - sigmoid(utility / ((1 - 0.999) * 2.0)))
    np.testing.assert_allclose(theirs, [0, 1, 2], atol=1e-9)
    np.testing.assert_allclose(ours, [0.538, 1, 1.245], atol=1e-3)


def test_utility_gate_is_a_gate_not_a_lock():
    params = {"a": jnp.array([1.0, 3.0, -2.0]), "b": jnp.array([[0.5]])}
    gradients = {"a": jnp.array([-1.0, 1e2, 4.0]), "b": jnp.array([[-1.0]])}
    phi = ro.phi.utility_gate(decay=0.0)
    values, _ = phi.update(gradients, phi.init(params), params)
    u = np.array([1.0, -3e2, 8.0]) / 8.0
    np.testing.assert_allclose(1 / (1 + 0.5 * values["a"]), 2 * (1 - 1 / (1 + np.exp(-u))), rtol=1e-9)
    np.testing.assert_allclose(1 + 0.5 * values["a"].max(), (1 + np.e) / 2)  # the most useful: 1.86
    np.testing.assert_allclose(values["b"], np.expm1(0.5 / 8.0))  # one maximum for the whole tree


@pytest.mark.parametrize("gradients", [[1.0, 2.0], [0.0, 0.0], [0.0, 1.0]])
def test_utility_gate_is_open_where_nothing_is_useful(gradients):
    params = jnp.array([1.0, 1.0])
    phi = ro.phi.utility_gate()
    values, _ = phi.update(jnp.array(gradients), phi.init(params), params)
    np.testing.assert_array_equal(values, [0.0, 0.0])


def test_utility_gate_shows_a_nan_instead_of_opening():
    params = jnp.ones(2)
    phi = ro.phi.utility_gate()
    values, _ = phi.update(jnp.array([jnp.nan, -1.0]), phi.init(params), params)
    assert np.all(np.isnan(values))


@pytest.mark.parametrize("make_phi", [ro.phi.metaplasticity, ro.phi.utility_gate])
def test_gates_need_params_and_say_so(make_phi):
    phi = make_phi()
    with pytest.raises(ValueError, match=make_phi.__name__):
        phi.update(jnp.ones(2), phi.init(jnp.ones(2)))


@pytest.mark.parametrize("make_phi", [ro.phi.metaplasticity, ro.phi.utility_gate])
def test_gates_see_real_and_imaginary_part_alike(make_phi):
    weights = np.array([1.0 + 2.0j, -0.5 + 0.25j])
    gradients = np.array([0.5 - 1.0j, -1.0 + 3.0j])
    phi = make_phi()
    values, _ = phi.update(jnp.array(gradients), phi.init(jnp.array(weights)), jnp.array(weights))
    # Multiplying both by a phase turns the plane, which may change nothing.
    phase = np.exp(0.7j)
    turned, _ = phi.update(
        jnp.array(gradients * phase), phi.init(jnp.array(weights)), jnp.array(weights * phase)
    )
    np.testing.assert_allclose(values, turned, rtol=1e-9)
    assert values.dtype == jnp.float64
    assert len(np.unique(np.round(values, 9))) == 2


@pytest.mark.parametrize("strength", [0.0, -1.0, np.inf])
def test_metaplasticity_checks_its_strength(strength):
    with pytest.raises(ValueError, match="strength"):
        ro.phi.metaplasticity(strength=strength)


def test_where_no_weight_is_useful_no_nan_is_made_and_thrown_away():
    phi = ro.phi.utility_gate()
    params = jnp.ones(2)
    with jax.debug_nans(True):
        values, _ = phi.update(jnp.zeros(2), phi.init(params), params)
    np.testing.assert_array_equal(values, 0)


def test_a_gate_that_can_be_minus_one_has_a_greatest_alpha():
    """E = 1 - alpha reaches 0 at alpha = 1: a weight would leap to infinity."""
    params, gradients = jnp.array([1.0, 1.0]), jnp.array([1.0, -1e-8])
    for alpha in (1.0, 2.0):
        with pytest.raises(ValueError, match=r"^alpha: utility_gate .* give alpha below 1, such as 0\.5"):
            ro.riemannian_sgd(0.1, phi=ro.phi.utility_gate(), alpha=alpha)
    with pytest.raises(ValueError, match=r"^conformal: utility_gate can be as low as -1"):
        ro.riemannian_adamw(0.1, phi=ro.phi.utility_gate())
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.utility_gate(), alpha=0.5)
    assert jnp.isfinite(tx.update(gradients, tx.init(params), params)[0]).all()
    ro.compute_metric(ro.phi.utility_gate(), 1.0, "inverse_metric")  # 1/E = exp(U) is never negative
    with pytest.raises(ValueError, match="falls to -1 at alpha=2"):
        ro.compute_metric(ro.phi.utility_gate(), 2.0, "inverse_metric")
    with pytest.raises(ValueError, match=r"^alpha: utility_gate"):  # its values in fewer bits are its values
        ro.riemannian_sgd(0.1, phi=ro.low_precision_state(ro.phi.utility_gate()))


@pytest.mark.parametrize(
    ("phi", "limit"),
    [
        (ro.phi.permuted(ro.phi.utility_gate()), "1"),
        (ro.phi.leaf_mean(ro.phi.utility_gate()), "1"),
        (ro.phi.weighted_sum(ro.phi.utility_gate(), ro.phi.activity(), weights=[0.25, 3.0]), "4"),
        (ro.phi.weighted_sum(*[ro.phi.utility_gate()] * 2), "0.5"),
    ],
    ids=["permuted", "leaf_mean", "quarter", "twice"],
)
def test_what_is_made_of_a_gate_has_a_greatest_alpha_too(phi, limit):
    with pytest.raises(ValueError, match=rf"^alpha: .*utility_gate.* give alpha below {limit},"):
        ro.compute_metric(phi, float(limit))
    ro.compute_metric(phi, 0.99 * float(limit))


@pytest.mark.parametrize(
    "make",
    [
        ro.phi.unit_mean,
        lambda phi: ro.phi.limited_mean(phi, limit=1.0),
        lambda phi: ro.phi.power(phi, 2.0),
    ],
    ids=["unit_mean", "limited_mean", "power"],
)
def test_a_mean_or_a_power_of_what_can_be_negative_is_refused(make):
    with pytest.raises(ValueError, match=r"^phi must be nowhere negative, but utility_gate .* as low as -1"):
        make(ro.phi.utility_gate())


@pytest.mark.parametrize("name", ["idbd", "autostep", "mesu", "bayesian_gradient_descent"])
def test_a_phi_above_minus_one_takes_alpha_up_to_one(name):
    """``E = 1 + alpha * phi`` is positive up to there, and where phi is -0.5 it is 0 at alpha = 2."""
    phi = getattr(ro.phi, name)()
    ro.compute_metric(phi, 1.0)
    with pytest.raises(ValueError, match=rf"^alpha: {name} .* give alpha of at most 1\."):
        ro.compute_metric(phi, 1.5)
    with pytest.raises(ValueError, match=rf"^conformal: {name} can be as low as -1"):
        ro.riemannian_adamw(0.003, phi=phi)
    with pytest.raises(ValueError, match=rf"nowhere negative, but {name}"):
        ro.phi.unit_mean(phi)


@pytest.mark.parametrize(
    "phi",
    [
        ro.phi.product(ro.phi.utility_gate(), ro.phi.activity()),
        ro.phi.weighted_sum(ro.phi.activity(), weights=[-1.0]),
    ],
    ids=["product", "negative weight"],
)
def test_what_is_negative_without_a_limit_is_warned_of(phi):
    """At a gradient of 30 the product is -15 and the sum -30: with ``E < 0`` the step would ascend."""
    for alpha in (1e-3, 1.0):
        with pytest.warns(UserWarning, match=r"can be negative without a limit, and so can 1 \+ alpha\*phi"):
            ro.compute_metric(phi, alpha)
    ro.compute_metric(phi, 0.0)
    with pytest.raises(ValueError, match=r"^conformal: .* can be negative without a limit"):
        ro.compute_metric(phi, 1.0, conformal="tree")
    with pytest.raises(ValueError, match=r"nowhere negative, but .* can be negative without a limit"):
        ro.phi.unit_mean(phi)

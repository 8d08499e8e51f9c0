"""The two stages and the edits of a metric, against the formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

PARAMS = {"a": jnp.array([[0.0, 1.0, -2.0], [3.0, 0.5, 1.5]]), "b": jnp.array([4.0, -1.0])}
GRADIENTS = {"a": jnp.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]), "b": jnp.array([2.0, -6.0])}
ENERGY = {name: np.abs(np.asarray(leaf)) for name, leaf in PARAMS.items()}


def one_update(*stages, gradients=GRADIENTS, params=PARAMS):
    tx = optax.chain(*stages)
    return tx.update(gradients, tx.init(params), params)[0]


def energy_metric(alpha=2.0, role="metric", **options):
    return ro.compute_metric(ro.phi.maintenance_energy(), alpha, role, **options)


@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
def test_equation_2_with_equation_3_and_the_other_reading(role):
    tangent = one_update(energy_metric(2.0, role), ro.scale_by_inverse_metric())
    for name, gradient in GRADIENTS.items():
        factor = 1 + 2.0 * ENERGY[name]
        expected = gradient / factor if role == "metric" else gradient * factor
        np.testing.assert_allclose(tangent[name], expected, rtol=1e-6)


def test_metric_is_evaluated_in_float32_under_bfloat16():
    """In bfloat16 1 + 0.05**2 rounds to 1: the rate of such a weight would silently be Euclidean."""
    params = jnp.full([1], 0.05, jnp.bfloat16)
    _, metric = ro.split(
        one_update(
            ro.compute_metric(ro.phi.maintenance_energy(power=2.0)),
            gradients=jnp.ones_like(params),
            params=params,
        )
    )
    assert metric.dtype == jnp.float32
    np.testing.assert_allclose(metric, 1 + np.float32(params[0]) ** 2, rtol=1e-7)
    assert metric[0] > 1.002


def test_complex_gradient_is_divided_by_a_real_metric():
    params = jnp.array([3.0 + 4.0j])
    gradients = jnp.array([1.0 - 2.0j])
    tangent = one_update(energy_metric(), ro.scale_by_inverse_metric(), gradients=gradients, params=params)
    np.testing.assert_allclose(tangent, gradients / (1 + 2 * 5), rtol=1e-6)
    assert tangent.dtype == jnp.complex64


def test_alpha_follows_a_schedule_of_the_update_count():
    tx = optax.chain(
        ro.compute_metric(ro.phi.maintenance_energy(), optax.linear_schedule(0.0, 3.0, 3)),
        ro.scale_by_inverse_metric(),
    )
    state = tx.init(PARAMS)
    for step in range(5):
        tangent, state = tx.update(GRADIENTS, state, PARAMS)
        expected = GRADIENTS["b"] / (1 + min(step, 3) * ENERGY["b"])
        np.testing.assert_allclose(tangent["b"], expected, rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan, 5.0])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
def test_alpha_zero_gives_one_whatever_phi_is(value, traced, role):
    phi = ro.phi.from_weights(lambda w: jnp.full_like(w, value))

    def update(alpha):
        return one_update(ro.compute_metric(phi, alpha, role), ro.scale_by_inverse_metric())

    tangent = jax.jit(update)(jnp.float32(0)) if traced else update(0.0)
    for name, gradient in GRADIENTS.items():
        np.testing.assert_array_equal(tangent[name], gradient)


@pytest.mark.parametrize("conformal", [None, "tree"])
@pytest.mark.parametrize("edits", [[], [ro.normalize_metric()], [ro.clip_metric(0.1, 10.0)]])
@pytest.mark.parametrize(
    "wrap", [lambda phi: phi, ro.phi.unit_mean, lambda phi: ro.phi.power(phi, 0.5)], ids=["", "mean", "power"]
)
def test_nan_phi_is_not_hidden_at_another_alpha(edits, conformal, wrap):
    phi = wrap(ro.phi.from_weights(lambda w: jnp.full_like(w, jnp.nan)))
    tangent = one_update(ro.scale_by_metric(phi, 1.0, *edits, conformal=conformal))
    assert np.isnan(tangent["a"]).all()


def test_split_gives_components_and_metric_with_one_for_euclidean_leaves():
    stage_1 = optax.masked(energy_metric(), {"a": True, "b": False})
    components, metric = ro.split(one_update(stage_1))
    np.testing.assert_array_equal(components["a"], GRADIENTS["a"])
    np.testing.assert_array_equal(components["b"], GRADIENTS["b"])
    np.testing.assert_allclose(metric["a"], 1 + 2 * ENERGY["a"], rtol=1e-6)
    np.testing.assert_array_equal(metric["b"], [1.0, 1.0])


@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
def test_frame_with_identity_is_stage_2(role):
    direct = one_update(energy_metric(2.0, role), ro.scale_by_inverse_metric())
    framed = one_update(energy_metric(2.0, role), ro.in_orthonormal_frame(optax.identity()))
    for name in PARAMS:
        np.testing.assert_allclose(framed[name], direct[name], rtol=1e-6)


def test_frame_clips_the_riemannian_norm():
    tangent = one_update(energy_metric(), ro.in_orthonormal_frame(optax.clip_by_global_norm(0.5)))
    squared_norm = sum(float(jnp.sum(tangent[n] ** 2 * (1 + 2 * ENERGY[n]))) for n in PARAMS)
    np.testing.assert_allclose(squared_norm, 0.25, rtol=1e-5)


def test_frame_momentum_is_parallel_transport_of_a_separable_metric():
    """In the chart y with dy = sqrt(E(w)) dw the metric is flat: the frame's momentum is momentum there."""
    alpha, learning_rate, beta = 2.0, 1e-4, 0.9
    tx = optax.chain(
        ro.compute_metric(ro.phi.maintenance_energy(power=2.0), alpha),
        ro.in_orthonormal_frame(optax.trace(beta)),
        optax.scale_by_learning_rate(learning_rate),
    )
    params, velocity = jnp.array([1.0]), 0.0
    weight = 1.0
    state = tx.init(params)
    for _ in range(50):
        updates, state = tx.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
        root = np.sqrt(1 + alpha * weight**2)
        velocity = beta * velocity + 2 * weight / root
        weight = weight - learning_rate * velocity / root
    np.testing.assert_allclose(params[0], weight, rtol=1e-6)


def test_on_metric_transforms_the_metric_alone():
    tx = optax.chain(
        energy_metric(), ro.on_metric(optax.ema(0.5, debias=False)), ro.scale_by_inverse_metric()
    )
    state, mean = tx.init(PARAMS), np.zeros(2)
    for scale in (1.0, 3.0, 0.5):
        params = jax.tree.map(lambda p, s=scale: s * p, PARAMS)
        tangent, state = tx.update(GRADIENTS, state, params)
        mean = 0.5 * mean + 0.5 * (1 + 2 * scale * ENERGY["b"])
        np.testing.assert_allclose(tangent["b"], GRADIENTS["b"] / mean, rtol=1e-6)


def test_on_metric_leaves_euclidean_leaves_euclidean():
    stages = [
        optax.masked(energy_metric(), {"a": True, "b": False}),
        ro.on_metric(optax.scale(10.0)),
        ro.scale_by_inverse_metric(),
    ]
    tangent = one_update(*stages)
    np.testing.assert_array_equal(tangent["b"], GRADIENTS["b"])
    np.testing.assert_allclose(tangent["a"], GRADIENTS["a"] / (10 * (1 + 2 * ENERGY["a"])), rtol=1e-6)


def test_on_gradient_transforms_the_gradient_alone_and_phi_sees_it_raw():
    tx = optax.chain(
        ro.compute_metric(ro.phi.activity(decay=0.0), 1.0),
        ro.on_gradient(optax.trace(0.9)),
        ro.scale_by_inverse_metric(),
    )
    state, momentum = tx.init(PARAMS), np.zeros(2)
    for scale in (1.0, 3.0, 0.5):
        gradients = jax.tree.map(lambda g, s=scale: s * g, GRADIENTS)
        tangent, state = tx.update(gradients, state, PARAMS)
        momentum = 0.9 * momentum + np.asarray(gradients["b"])
        np.testing.assert_allclose(tangent["b"], momentum / (1 + np.abs(gradients["b"])), rtol=1e-6)


@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
def test_multiply_metric_multiplies_e(role):
    factor = lambda w: 1 / (jnp.abs(w) + 0.5)  # noqa: E731
    tangent = one_update(energy_metric(2.0, role), ro.multiply_metric(factor), ro.scale_by_inverse_metric())
    for name, gradient in GRADIENTS.items():
        metric = (1 + 2 * ENERGY[name]) ** (1 if role == "metric" else -1) / (ENERGY[name] + 0.5)
        np.testing.assert_allclose(tangent[name], gradient / metric, rtol=1e-6)


def test_multiply_metric_takes_a_phi_that_sees_the_gradient():
    tangent = one_update(
        energy_metric(), ro.multiply_metric(ro.phi.activity(decay=0.0)), ro.scale_by_inverse_metric()
    )
    metric = (1 + 2 * ENERGY["b"]) * np.abs(GRADIENTS["b"])
    np.testing.assert_allclose(tangent["b"], GRADIENTS["b"] / metric, rtol=1e-6)


@pytest.mark.parametrize("over", ["tree", "leaf", "neuron"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
def test_conformal(over, alpha, role):
    tangent = one_update(energy_metric(alpha, role, conformal=over), ro.scale_by_inverse_metric())
    for name, gradient in GRADIENTS.items():
        mu = {
            "tree": np.concatenate([leaf.ravel() for leaf in ENERGY.values()]).mean(),
            "leaf": ENERGY[name].mean(),
            "neuron": ENERGY[name].mean(0) if ENERGY[name].ndim > 1 else ENERGY[name].mean(),
        }[over]
        scale = mu * (1 + alpha * ENERGY[name] / mu) / (1 + alpha)
        expected = gradient / scale if role == "metric" else gradient * scale
        np.testing.assert_allclose(tangent[name], expected, rtol=2e-6)


def test_conformal_keeps_the_ratios_of_the_unit_mean_metric_and_the_mean_of_phi():
    metric = ro.split(one_update(energy_metric(7.0, conformal="tree")))[1]
    unit = ro.compute_metric(ro.phi.unit_mean(ro.phi.maintenance_energy()), 7.0)
    reference = ro.split(one_update(unit))[1]
    ratios = np.concatenate([np.ravel(metric[n] / reference[n]) for n in PARAMS])
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
    everything = np.concatenate([np.ravel(metric[n]) for n in PARAMS])
    np.testing.assert_allclose(
        everything.mean(), np.concatenate([v.ravel() for v in ENERGY.values()]).mean(), rtol=1e-6
    )


def test_conformal_without_any_phi_is_one():
    metric = ro.split(
        one_update(
            ro.compute_metric(ro.phi.activity(), 3.0, conformal="tree"),
            gradients=jax.tree.map(jnp.zeros_like, GRADIENTS),
        )
    )[1]
    np.testing.assert_array_equal(metric["a"], np.ones((2, 3)))


@pytest.mark.parametrize("over", ["tree", "leaf", "neuron"])
def test_normalize_metric_has_mean_one_and_keeps_ratios(over):
    metric = ro.split(one_update(energy_metric(), ro.normalize_metric(over)))[1]
    if over == "tree":
        np.testing.assert_allclose(
            np.concatenate([np.ravel(m) for m in metric.values()]).mean(), 1, rtol=1e-6
        )
    elif over == "leaf":
        np.testing.assert_allclose([np.mean(m) for m in metric.values()], 1, rtol=1e-6)
    else:
        np.testing.assert_allclose(np.mean(metric["a"], axis=0), 1, rtol=1e-6)
    ratio = np.asarray(metric["a"]) / (1 + 2 * ENERGY["a"])
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-6)


@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
def test_clip_metric(role):
    metric = ro.split(one_update(energy_metric(2.0, role), ro.clip_metric(0.3, 4.0)))[1]
    plain = (1 + 2 * ENERGY["a"]) ** (1.0 if role == "metric" else -1.0)
    np.testing.assert_allclose(metric["a"], np.clip(plain, 0.3, 4.0), rtol=1e-6)
    with pytest.raises(ValueError, match="low must not exceed high"):
        ro.clip_metric(2.0, 1.0)
    with pytest.raises(ValueError, match="low must be a finite number"):
        ro.clip_metric(low=0.0)


def test_decay_in_and_outside_of_the_metric():
    common = {"phi": ro.phi.maintenance_energy(), "alpha": 2.0, "weight_decay": 0.1}
    outside = one_update(riemannian_sgd(1.0, **common))
    inside = one_update(riemannian_sgd(1.0, **common, decay_in_metric=True))
    metric = 1 + 2 * ENERGY["b"]
    np.testing.assert_allclose(outside["b"], -(GRADIENTS["b"] / metric + 0.1 * PARAMS["b"]), rtol=1e-6)
    np.testing.assert_allclose(inside["b"], -(GRADIENTS["b"] + 0.1 * PARAMS["b"]) / metric, rtol=1e-6)


def test_decay_outside_and_inside_of_the_frame():
    adam, decay = optax.scale_by_adam(), optax.add_decayed_weights(0.1)
    outside = one_update(energy_metric(2.0), ro.in_orthonormal_frame(adam), decay)
    inside = one_update(energy_metric(2.0), ro.in_orthonormal_frame(optax.chain(adam, decay)))
    root = np.sqrt(1 + 2 * ENERGY["b"])
    np.testing.assert_allclose(outside["b"], np.sign(GRADIENTS["b"]) / root + 0.1 * PARAMS["b"], rtol=1e-5)
    np.testing.assert_allclose(inside["b"], (np.sign(GRADIENTS["b"]) + 0.1 * PARAMS["b"]) / root, rtol=1e-5)


def test_weight_decay_mask():
    tx = riemannian_sgd(1.0, phi=ro.phi.maintenance_energy(), weight_decay=0.1, mask={"a": False, "b": True})
    updates = one_update(tx)
    np.testing.assert_allclose(updates["a"], -GRADIENTS["a"] / (1 + ENERGY["a"]), rtol=1e-6)
    np.testing.assert_allclose(
        updates["b"], -(GRADIENTS["b"] / (1 + ENERGY["b"]) + 0.1 * PARAMS["b"]), rtol=1e-6
    )


def test_state_dtype_of_the_aliases():
    tx = riemannian_sgd(0.1, momentum=0.9, state_dtype=jnp.bfloat16)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(tx.init(PARAMS)) if leaf.ndim}
    assert dtypes == {jnp.dtype("bfloat16")}

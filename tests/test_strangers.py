"""What strangers ran into: arguments and trees of theirs, each against a closed form or a plain loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro


def test_a_bias_beside_the_norm_of_another_layer_of_a_list_is_a_bias():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(2, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
    )
    kinds = ro.parameter_kinds(nnx.to_pure_dict(nnx.state(model, nnx.Param)))["layers"]
    assert [kinds[layer]["bias"] for layer in range(3)] == ["bias", "norm", "bias"]
    layers = [{"kernel": jnp.ones([2, 3]), "bias": jnp.ones(3)}, {"scale": jnp.ones(3), "bias": jnp.ones(3)}]
    assert [layer["bias"] for layer in ro.parameter_kinds(layers)] == ["bias", "norm"]
    assert ro.parameter_kinds({"bias": [1.0, 2.0], "a": 1.0}) == {"bias": ["bias", "bias"], "a": "vector"}


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


def test_averaging_around_a_jump_is_refused():
    restarting = ro.restart_at_boundary(optax.sgd(0.1), ro.anchor.initial_weights())
    with pytest.raises(ValueError, match=r"schedule_free: restart_at_boundary puts weights in a place"):
        ro.schedule_free(restarting).init(jnp.ones(2))
    around = ro.restart_at_boundary(ro.schedule_free(optax.sgd(0.1)), ro.anchor.initial_weights())
    start = jnp.array([1.0, 2.0])
    _, state = around.update(jnp.ones(2), around.init(start), start, task_boundary=False)
    updates, _ = around.update(jnp.ones(2), state, start + 3, task_boundary=True)
    np.testing.assert_allclose(start + 3 + updates, start)


def test_what_is_given_by_name_is_not_made():
    batch = {"x": jnp.eye(2), "y": jnp.ones(2)}

    def loss(w, batch):
        return 0.5 * jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

    def mine(w, **kwargs):
        return jnp.sum(100 * w**2)

    tx = optax.chain(ro.compute_metric(ro.phi.hutchinson_curvature()), ro.scale_by_inverse_metric())
    _, _, extra = ro.value_and_grad(loss, needs=(tx, "value_fn"))(jnp.ones(2), batch, obj_fn=mine)
    assert extra["obj_fn"] is mine
    assert extra["value_fn"] is not mine
    assert ro.value_and_grad(loss, needs="value")(jnp.ones(2), batch, value=7.0)[2] == {"value": 7.0}


@pytest.mark.parametrize("jitted", [False, True])
def test_injected_numbers_may_be_donated_with_the_state(jitted):
    tx = optax.inject_hyperparams(ro.riemannian_schedule_free)(learning_rate=0.1)
    params = jnp.ones(3)
    state = tx.init(params)
    if jitted:
        state = jax.jit(tx.update)(params, state, params)[1]
    updates, _ = jax.jit(tx.update, donate_argnums=1)(params, state, params)
    assert np.isfinite(updates).all()


def test_the_weight_of_a_step_is_float32_whatever_the_power_is():
    with jax.enable_x64(True):
        params = jnp.ones(2, jnp.float64)
        tx = ro.schedule_free(optax.sgd(0.1), power=np.float64(2))
        state = tx.init(params)
        new = tx.update(params, state, params)[1]
        assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [
            leaf.dtype for leaf in jax.tree.leaves(state)
        ]


METRIC = ro.compute_metric(ro.phi.activity())
INVERSE = ro.scale_by_inverse_metric()
OF_WHOLE_MODELS = {
    "frame": optax.chain(METRIC, ro.in_orthonormal_frame(optax.trace(0.9))),
    "gradient": optax.chain(METRIC, ro.on_gradient(optax.trace(0.9)), INVERSE),
    "product": optax.chain(METRIC, ro.multiply_metric(jnp.exp), INVERSE),
    "pull": optax.chain(METRIC, INVERSE, ro.add_anchored_weights(0.1, ro.anchor.initial_weights())),
    "isometry": optax.chain(METRIC, INVERSE, ro.add_isometry_pull(0.1, axes="equinox")),
    "spectrum": optax.chain(METRIC, INVERSE, ro.add_spectral_pull(0.1, axes="equinox")),
    "noise": optax.chain(METRIC, ro.add_metric_noise(0.1, 1.0, field=jnp.cosh), INVERSE),
    "master": ro.master_weights(ro.riemannian_sgd(0.1)),
    "restart": ro.restart_at_boundary(ro.riemannian_sgd(0.1), ro.anchor.initial_weights()),
}


@pytest.mark.parametrize("name", OF_WHOLE_MODELS)
def test_a_whole_model_of_equinox_passes_for_its_parameters(name):
    tx = OF_WHOLE_MODELS[name]
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    gradients = jax.tree.map(jnp.ones_like, params)
    expected, _ = tx.update(gradients, tx.init(params), params)
    found, _ = tx.update(gradients, tx.init(params), model)
    assert eqx.tree_equal(found, expected)


def test_a_decay_that_is_1_in_float32_is_refused():
    for phi in (ro.phi.activity, ro.phi.factored_activity):
        with pytest.raises(ValueError, match=r"decay is 0\.99999999, which float32 rounds to 1"):
            phi(decay=1 - 1e-8)
    with jax.enable_x64(True):
        phi = ro.phi.activity(decay=1 - 1e-8)
        ones = jnp.ones(1, jnp.float64)
        np.testing.assert_allclose(phi.update(ones, phi.init(ones), ones)[0], 1.0, rtol=1e-6)


def test_extra_arguments_of_any_name_are_ignored():
    w = jnp.ones(2)
    tx = ro.scale_by_metric(ro.phi.maintenance_energy(), 1.0)
    for name in ("phi", "over", "other"):
        np.testing.assert_array_equal(tx.update(w, tx.init(w), w, **{name: 1})[0], [0.5, 0.5])
    pull = ro.add_anchored_weights(1.0, ro.anchor.initial_weights(), precision=ro.phi.maintenance_energy())
    np.testing.assert_array_equal(pull.update(w, pull.init(w), w, precision=1)[0], w)


def test_a_matrix_without_rows_is_its_own_isometry():
    anchor, empty = ro.anchor.nearest_isometry(), jnp.zeros([0, 3])
    assert anchor.update(empty, anchor.init(empty), empty)[0].shape == (0, 3)

"""Dtypes that meet seldom: complex weights, two kinds of 16 bits, numbers that are not arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_momentum_of_complex_weights_keeps_its_imaginary_part(dtype, nesterov):
    tx = ro.riemannian_sgd(1.0, momentum=0.5, nesterov=nesterov, alpha=0.0, state_dtype=dtype)
    known = optax.sgd(1.0, momentum=0.5, nesterov=nesterov)
    weights, gradient = jnp.array([1 + 1j]), jnp.array([1j - 2])
    state, other = tx.init(weights), known.init(weights)
    for _ in range(3):
        updates, state = tx.update(gradient, state, weights)
        wanted, other = known.update(gradient, other, weights)
        np.testing.assert_allclose(updates, wanted, rtol=1e-6)


@pytest.mark.parametrize(("weights", "momentum"), [("float16", "bfloat16"), ("bfloat16", "float16")])
def test_the_two_kinds_of_sixteen_bits_meet_in_float32(weights, momentum):
    tx = ro.riemannian_adamw(0.1, mu_dtype=momentum, weight_decay=0.0)
    wide = ro.riemannian_adamw(0.1, weight_decay=0.0)
    narrow, gradient = jnp.ones(2, weights), jnp.array([1.0, -0.5])
    state, other = tx.init(narrow), wide.init(jnp.ones(2))
    for _ in range(3):
        updates, state = tx.update(gradient.astype(weights), state, narrow)
        wanted, other = wide.update(gradient, other, jnp.ones(2))
    assert updates.dtype == weights
    np.testing.assert_allclose(updates.astype(jnp.float32), wanted, rtol=2e-2)


@pytest.mark.parametrize(
    ("tx", "extra"),
    [
        (ro.riemannian_adamw(0.1, multiply_by_parameter_scale=True), {}),
        (
            ro.reset_units(optax.sgd(0.1), ro.dormant_units(), outgoing={"a": "b"}),
            {"activities": {"a": jnp.ones([1, 3]), "b": jnp.ones([1, 2]), "rate": None}},
        ),
    ],
    ids=["relative", "reset_units"],
)
def test_a_number_in_a_model_that_is_not_trained_is_left_alone(tx, extra):
    """An Equinox model has the rate of its dropout among its leaves, whose gradient is None."""
    model = {"a": jnp.ones([4, 3]), "b": jnp.ones([3, 2]), "rate": 0.5}
    gradients = {"a": jnp.ones([4, 3]), "b": jnp.ones([3, 2]), "rate": None}
    updates, _ = tx.update(gradients, tx.init(gradients), model, **extra)
    assert updates["rate"] is None
    assert np.isfinite(updates["a"]).all()


def test_averaging_in_float64_is_exact_to_float64():
    """Step by step in NumPy: x moves towards z by a share of (t + 1)^2."""
    with jax.enable_x64(True):
        tx, b1 = ro.schedule_free(optax.sgd(0.1), b1=0.9), np.float64(0.9)
        y = jnp.array([1.0, -2.0])
        state = tx.init(y)
        assert y.dtype == jnp.float64
        own = z = x = np.asarray(y)
        total = 0.0
        for number in range(300):
            updates, state = tx.update(jnp.sin(3 * y), state, y)
            y = optax.apply_updates(y, updates)
            z = z - 0.1 * np.sin(3 * own)
            total += (number + 1) ** 2
            x = x + (number + 1) ** 2 / total * (z - x)
            own = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(y, own, rtol=1e-12)
        np.testing.assert_allclose(ro.eval_params(state, y), x, rtol=1e-11)


def test_an_array_of_one_number_is_that_number():
    """Optax takes a schedule that returns one; a weight without axes must not get one."""
    weight = jnp.asarray(2.0, jnp.float32)
    wanted = ro.riemannian_sgd(0.1, alpha=3.0)
    for alpha in (jnp.array([3.0]), lambda count: jnp.full([1], 3.0)):
        tx = ro.riemannian_sgd(0.1, alpha=alpha)
        found, _ = tx.update(weight, tx.init(weight), weight)
        np.testing.assert_allclose(found, wanted.update(weight, wanted.init(weight), weight)[0])
        assert found.shape == ()


@pytest.mark.parametrize("alpha", [np.ones([2, 1]), jnp.ones([2, 1]), jnp.array([2.0, 3.0])])
def test_an_array_in_the_place_of_a_number_is_refused(alpha):
    """It would broadcast, and give the weights another shape."""
    with pytest.raises(ValueError, match=r"^alpha must be a single number, got an array of shape"):
        ro.riemannian_sgd(0.1, alpha=alpha)
    tx = ro.riemannian_sgd(0.1, alpha=lambda count: jnp.ones([2, 1]) * count)
    weights = jnp.ones(3)
    with pytest.raises(ValueError, match="a schedule must return a single number"):
        tx.update(weights, tx.init(weights), weights)


@pytest.mark.parametrize(
    "tx",
    [
        ro.riemannian_adamw(0.1),
        ro.riemannian_eigenbasis(0.1),
        ro.riemannian_schedule_free(0.1),
        ro.riemannian_sgd(0.1, momentum=0.9),
        ro.soap(0.1),
    ],
    ids=["adamw", "eigenbasis", "schedule_free", "sgd", "soap"],
)
def test_the_types_of_a_state_stay_of_a_weakly_typed_weight(tx):
    """``jnp.asarray(1.0)`` is one; a state whose types change is compiled for anew, and refused by a scan."""
    params = {"scale": jnp.asarray(1.0), "kernel": jnp.ones([3, 2])}
    gradients = {"scale": jnp.ones([]), "kernel": jnp.ones([3, 2])}
    state = tx.init(params)
    _, new = tx.update(gradients, state, params)
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


def test_complex_matrices_in_bases_by_the_remedy_that_the_error_names():
    tx, params = ro.riemannian_eigenbasis(0.1), {"kernel": jnp.ones([3, 2], jnp.complex64)}
    with pytest.raises(TypeError, match=r"put optax\.contrib\.split_real_and_imaginary around"):
        tx.init(params)
    split = optax.contrib.split_real_and_imaginary(tx)
    updates, _ = split.update(params, split.init(params), params)
    assert updates["kernel"].dtype == jnp.complex64
    assert np.isfinite(updates["kernel"]).all()

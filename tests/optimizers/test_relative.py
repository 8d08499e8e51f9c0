"""Steps relative to the size of the weights: NumPy in float64, and Optax's rule."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

RNG = np.random.default_rng(5)
START = {"w": 0.1 * RNG.standard_normal([4, 3]), "zero": np.zeros(3), "scale": np.ones(3)}
SCALES = {"w": 3.0, "zero": 0.5, "scale": 1.0}


def gradient(params, step):
    noise = np.random.default_rng(100 + step)
    drawn = {name: noise.standard_normal(START[name].shape) for name in START}
    return {name: SCALES[name] * params[name] + drawn[name] for name in START}


def walk(tx, steps=30):
    params, path = jax.tree.map(jnp.asarray, START), [START]
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        gradients = jax.tree.map(jnp.asarray, gradient(path[-1], step))
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        path.append(jax.tree.map(np.asarray, params))
    return path


def test_the_step_is_that_of_the_alias_times_the_root_mean_square_of_the_weights():
    """The metric by hand, of an activity without a memory: E = |g|, so that a step is a mean of signs."""
    rate, b1, decay, eps = 0.05, 0.8, 0.1, 1e-3
    params = {name: leaf.copy() for name, leaf in START.items()}
    means = {name: np.zeros_like(leaf) for name, leaf in START.items()}
    expected = [START]
    for t in range(1, 31):
        g = gradient(params, t - 1)
        total = np.concatenate([np.abs(leaf).ravel() for leaf in g.values()]).mean()
        for name in START:
            u = g[name] / ((total + 10 * np.abs(g[name])) / 11 + eps)
            means[name] = b1 * means[name] + (1 - b1) * u
            step = b1 * means[name] / (1 - b1 ** (t + 1)) + (1 - b1) * u / (1 - b1**t)
            size = max(np.sqrt(np.mean(params[name] ** 2)), 1e-3)
            params[name] = params[name] - rate * (size * step + decay * params[name])
        expected.append({name: leaf.copy() for name, leaf in params.items()})
    with jax.enable_x64(True):
        tx = ro.riemannian_adamw(
            *(rate, b1, 0.9, eps),
            phi=ro.phi.activity(decay=0.0),
            alpha=10.0,
            weight_decay=decay,
            multiply_by_parameter_scale=True,
        )
        found = walk(tx)
    for ours, theirs in zip(found, expected, strict=True):
        for name in START:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-8)


def test_it_is_the_rule_of_optax_after_the_same_steps():
    with jax.enable_x64(True):
        ours = ro.riemannian_adamw(0.05, weight_decay=0.0, multiply_by_parameter_scale=True)
        theirs = optax.chain(ro.riemannian_adamw(0.05, weight_decay=0.0), optax.scale_by_param_block_rms())
        found, expected = walk(ours), walk(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)


def test_a_scale_common_to_weights_and_gradients_does_not_change_the_relative_change():
    """Of weights k times as large, whose gradients are 1/k as large, each update is k times as large."""
    params = {"w": jnp.asarray(START["w"], jnp.float32)}
    gradients = {"w": jnp.asarray(RNG.standard_normal([4, 3]), jnp.float32)}
    tx = ro.riemannian_adamw(0.05, multiply_by_parameter_scale=True)
    found = []
    for factor in (1.0, 8.0):
        wide = jax.tree.map(lambda w, k=factor: k * w, params)
        updates, _ = tx.update(jax.tree.map(lambda g, k=factor: g / k, gradients), tx.init(wide), wide)
        found.append(np.asarray(updates["w"]) / factor)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_narrow_weights_have_a_wide_root_mean_square():
    """In float16 the square of 300 is infinite, and in bfloat16 a mean of squares has two digits."""
    for dtype in (jnp.float16, jnp.bfloat16):
        params = {"w": jnp.full([4, 3], 300.0, dtype)}
        gradients = {"w": jnp.ones([4, 3], dtype)}
        tx = ro.riemannian_adamw(0.01, weight_decay=0.0, multiply_by_parameter_scale=True)
        updates, _ = tx.update(gradients, tx.init(params), params)
        assert updates["w"].dtype == dtype
        one = ro.riemannian_adamw(0.01, weight_decay=0.0)
        plain, _ = one.update(gradients, one.init(params), params)
        ratio = np.asarray(updates["w"], np.float64) / np.asarray(plain["w"], np.float64)
        np.testing.assert_allclose(ratio, 300.0, rtol=1e-2)


def test_it_is_never_the_default_and_needs_the_weights():
    default = inspect.signature(ro.riemannian_adamw).parameters["multiply_by_parameter_scale"].default
    assert default is False
    params = jax.tree.map(jnp.asarray, START)
    tx = ro.riemannian_adamw(0.05, weight_decay=0.0, multiply_by_parameter_scale=True)
    with pytest.raises(ValueError, match="multiply_by_parameter_scale: "):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("value", [1e-3, "no", None, 1])
def test_what_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(TypeError, match="multiply_by_parameter_scale must be True or False"):
        ro.riemannian_adamw(0.1, multiply_by_parameter_scale=value)

"""The slowly-changing regression: its nets, its online steps and ours by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.continual import regression
from benchmarks.continual.methods import OURS
from benchmarks.continual.slow_bits import BITS, HIDDEN, draw_learner, draw_target


def test_target_is_the_published_net():
    target = draw_target(jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 2, BITS).astype(np.float32)
    expected = float(target.output_bias)
    for unit in range(100):
        w, b = np.asarray(target.weights[:, unit]), float(target.bias[unit])
        assert set(np.unique(w)) == {-1.0, 1.0}
        threshold = 0.7 * (BITS + 1) - (BITS - w.sum() + b) / 2
        expected += float(target.output[unit]) * (w @ x + b > threshold)
    assert float(target(jnp.asarray(x))) == expected


def test_fast_bits_are_fair():
    own, _, _ = regression.draw_own(jnp.asarray(1))
    _, inputs, _, which = regression.next_task(own, 4000, flip=False)
    seen = np.asarray(inputs)[np.asarray(which)][:, -regression.FAST :]
    assert set(np.unique(seen)) == {0.0, 1.0}
    assert np.all(np.abs(seen.mean(0) - 0.5) < 4 * 0.5 / np.sqrt(4000))


def test_learner_is_20_5_1_and_its_steps_are_online():
    params = draw_learner(jax.random.key(0))
    assert params.shape == (BITS * HIDDEN + HIDDEN + HIDDEN + 1,)
    hidden, bias = params[: BITS * HIDDEN].reshape(BITS, HIDDEN), params[BITS * HIDDEN : (BITS + 1) * HIDDEN]
    output, output_bias = params[-HIDDEN - 1 : -1], params[-1]
    assert 0 < np.abs(hidden).max() <= np.sqrt(6 / BITS)
    assert not np.any(bias)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, BITS), jnp.float32)

    def half_square(params, target):
        hidden, bias = params[: BITS * HIDDEN].reshape(BITS, HIDDEN), params[BITS * HIDDEN :][:HIDDEN]
        return (jnp.maximum(x @ hidden + bias, 0) @ params[-HIDDEN - 1 : -1] + params[-1] - target) ** 2 / 2

    by_hand = np.maximum(x @ hidden + bias, 0) @ output + output_bias
    inputs, targets, which = jnp.stack([x, x]), jnp.array([1.0, 2.0]), jnp.array([0, 1])
    tx = optax.with_extra_args_support(optax.sgd(0.01))
    end, _, error = regression.learn(
        lambda values, key: tx, {}, params, tx.init(params), (inputs, targets, which)
    )
    middle = params - 0.01 * jax.grad(half_square)(params, 1.0)
    np.testing.assert_allclose(end, middle - 0.01 * jax.grad(half_square)(middle, 2.0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(error, (by_hand - 1.0) ** 2 / 2 + half_square(middle, 2.0), rtol=1e-5)


def test_every_subset_of_the_three_parts_is_there_once():
    """With the metric or with its mean, times pull, noise, both or neither."""
    directions = ("metric", "leaf-mean phi")
    axes = {
        name: frozenset(method.axes) - {"rate"}
        for name, method in regression.METHODS.items()
        if name.startswith(directions)
    }
    wanted = {frozenset(), frozenset({"pull"}), frozenset({"noise"}), frozenset({"pull", "noise"})}
    for direction in directions:
        found = [own for name, own in axes.items() if name.startswith(direction)]
        assert len(found) == 4
        assert set(found) == wanted


def test_full_chain_is_the_recipe():
    """The first step by hand: -100 g / E with noise of 0.07 / sqrt(E), where E = 1 + 12500 |g|."""
    values, gradient = {"rate": 100.0, "pull": 5e-4, "noise": 0.07}, jnp.array([0.0, 0.3])

    @jax.jit
    @jax.vmap
    def first_step(seed):
        tx = regression.METHODS[OURS].make(values, jax.random.key(seed))
        params = jnp.ones(2)
        return tx.update(gradient, tx.init(params), params)[0]

    means = np.asarray(first_step(jnp.arange(200)))
    metric = 1 + 12_500 * np.asarray(gradient)
    size = 0.07 / np.sqrt(metric)
    np.testing.assert_array_less(
        np.abs(means.mean(0) + 100 * np.asarray(gradient) / metric), 4 * size / np.sqrt(200)
    )
    np.testing.assert_allclose(means.std(0), size, rtol=4 / np.sqrt(2 * 200))

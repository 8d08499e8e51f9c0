"""Lanes one after the other are the lanes side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.shared import lanes


def learn(build, values, params, state, own):
    """Take three steps down a parabola, with noise whose key the state keeps."""
    tx = build(values, jax.random.key(0))

    def step(carry, target):
        params, state = carry
        updates, state = tx.update(params - target, state, params)
        return (optax.apply_updates(params, updates), state), jnp.abs(updates).sum()

    (params, state), moved = jax.lax.scan(step, (params, state), own)
    return params, state, moved


def build(values, key):
    return optax.chain(optax.add_noise(0.1, 0.5, key), optax.sgd(values["rate"]))


def test_one_after_the_other_is_side_by_side():
    points = [{"rate": 0.1}, {"rate": 0.2}, {"rate": 0.4}]
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    values = lanes.values_of(points)
    targets = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)

    def run(in_turn):
        params, state, axes = lanes.start(build, values, jnp.ones((2, 4)), keys)
        found = lanes.mapped(learn, build, axes, in_turn)(values, params, state, targets)
        noise = found[1][0]
        # The key belongs to a seed, not to a point, and so it has the seeds as its only axis.
        assert jax.random.key_data(noise.rng_key).shape[0] == 2
        return jax.tree.leaves((found[0], noise.count, jax.random.key_data(noise.rng_key), found[2]))

    for side_by_side, in_turn in zip(run(False), run(True), strict=True):
        np.testing.assert_allclose(in_turn, side_by_side, rtol=1e-6)
    assert np.ptp(run(True)[-1], axis=0).min() > 0

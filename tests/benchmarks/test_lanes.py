"""Lanes one after the other are the lanes side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.shared import lanes

POINTS = [{"rate": 0.1}, {"rate": 0.2}, {"rate": 0.4}]


def learn(build, values, params, state, own):
    """Take three steps down a parabola."""
    tx = build(values, jax.random.key(0))

    def step(carry, target):
        params, state = carry
        updates, state = tx.update(params - target, state, params)
        return (optax.apply_updates(params, updates), state), jnp.abs(updates).sum()

    (params, state), moved = jax.lax.scan(step, (params, state), own)
    return params, state, moved


def run(build, in_turn, told=True):
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    targets = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    values = lanes.values_of(POINTS)
    params, state, axes = lanes.start(
        build, values, jnp.ones((2, 4)), keys, in_turn if told is None else told
    )
    return lanes.mapped(learn, build, axes, in_turn)(values, params, state, targets)


def momentum(values, key):
    return optax.sgd(values["rate"], momentum=0.9)


def noisy(values, key):
    return optax.chain(optax.add_noise(0.1, 0.5, key), optax.sgd(values["rate"]))


def test_one_after_the_other_is_side_by_side():
    side_by_side, in_turn = run(momentum, False), run(momentum, True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), in_turn, side_by_side)
    # Points, seeds and steps: each moves another way.
    moved = np.asarray(in_turn[2])
    assert moved.shape == (3, 2, 3)
    assert len(np.unique(moved)) == moved.size


def test_points_that_share_a_random_key_are_refused_in_turn():
    run(noisy, False)
    with pytest.raises(ValueError, match="out_axes"):
        run(noisy, True, told=False)


def test_lanes_in_turn_have_the_noise_of_their_seed():
    side_by_side, in_turn = run(noisy, False), run(noisy, True)
    for x, y in zip(in_turn[::2], side_by_side[::2], strict=True):  # parameters and what was measured
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_what_all_seeds_have_is_given_to_each():
    targets = jnp.arange(6.0).reshape(1, 2, 3)  # tasks, seeds and steps

    def of_both(build, values, params, state, given):
        own, shared = given
        return learn(build, values, params, state, own[:, None] * shared)

    for in_turn in (False, True):
        own = [
            lanes.learned(of, momentum, POINTS, jnp.ones((2, 4)), None, tasks, **given)
            for of, tasks, given in (
                (of_both, targets, {"shared": jnp.full(4, 2.0), "in_turn": in_turn}),
                (learn, 2 * jnp.broadcast_to(targets[..., None], (1, 2, 3, 4)), {}),
            )
        ]
        np.testing.assert_allclose(*map(list, own), rtol=1e-6)

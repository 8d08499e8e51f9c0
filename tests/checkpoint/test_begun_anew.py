"""What transplant is told to begin anew."""

import chex
import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro


def test_one_of_two_states_of_a_kind_begins_anew():
    params = jnp.ones(3)
    tx = optax.chain(optax.trace(0.9), optax.trace(0.5))
    _, state = tx.update(params, tx.init(params), params)
    moved, report = ro.checkpoint.transplant(state, tx, params, anew=["[1]"])
    assert list(report.begun_anew) == ["[1].trace"]
    chex.assert_trees_all_equal(moved, (state[0], tx.init(params)[1]))


def test_what_begins_anew_takes_no_part_in_the_match():
    """Of AdamW's aliases the order of momentum and metric differs, and so no match is the only one."""
    params = {"d": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
    before, here = ro.riemannian_adamw(optax.constant_schedule(0.003)), ro.riemannian_eigenbasis(0.003)
    _, state = before.update(params, before.init(params), params)
    with pytest.raises(
        ValueError, match=r"order of the states has changed: here \[0\].*, in the old state \[0"
    ):
        ro.checkpoint.transplant(state, here, params)
    moved, report = ro.checkpoint.transplant(state, here, params, anew=["[0]"])
    chex.assert_trees_all_equal(moved, here.init(params))
    assert set(report.begun_anew.values()) == {"asked for"}
    scheduled = ro.riemannian_eigenbasis(optax.constant_schedule(0.003))
    moved, report = ro.checkpoint.transplant(state, scheduled, params, anew=["[0]"])
    assert int(moved[-1].count) == 1
    assert len(report.kept) == 1

"""Dtypes in are dtypes out, and the state keeps the type it was born with, at every precision."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from . import problem

WIDE = {jnp.float64, jnp.complex128}


def precision(*dtypes):
    """64-bit types need x64, which the other tests run without."""
    return jax.enable_x64(bool(WIDE.intersection(dtypes)))


@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64], ids=lambda dtype: dtype.__name__
)
def test_types_are_stable_in_scan_and_cond(entry, dtype):
    with precision(dtype):
        assert_types_are_stable(entry, problem.params(dtype))


def test_complex_weights_are_kept_or_refused(entry):
    weights = problem.params(jnp.complex64)
    if entry.real_only:
        with pytest.raises((TypeError, ValueError), match="real"):
            assert_types_are_stable(entry, weights)
    else:
        assert_types_are_stable(entry, weights)


def assert_types_are_stable(entry, start):
    """``scan`` and ``cond`` demand that one update leaves every shape and dtype as it was."""
    tx = entry.build()
    update = functools.partial(tx.update, **entry.extra_args(problem.real_loss))
    start_state = tx.init(start)

    def step(carry, take):
        params, state = carry
        gradients = problem.gradients(params)
        updates, state = jax.lax.cond(
            take,
            lambda: update(gradients, state, params),
            lambda: (jax.tree.map(jnp.zeros_like, params), state),
        )
        return (jax.tree.map(jnp.add, params, updates), state), updates

    # Types are checked as the loop is traced; there is nothing in it that would have to be compiled for that.
    jax.eval_shape(
        lambda carry, takes: jax.lax.scan(step, carry, takes), (start, start_state), jnp.ones(3, bool)
    )
    gradients = problem.gradients(start)
    run = jax.jit(update) if entry.loops else update
    updates, state = run(gradients, start_state, start)
    assert problem.types(updates) == problem.types(start)
    assert problem.types(state) == problem.types(start_state)
    chex.assert_tree_all_finite(updates)
    if not entry.rounds_weights:  # a step may be too small for a narrow weight to show
        assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_mixed_dtypes_in_one_tree(entry):
    """Each leaf keeps its own dtype; narrow leaves get what the same weights get in float32."""
    dtypes = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
    with precision(*dtypes):
        tx = entry.build()
        weights = np.array([0.5, -1.0, 2.0])
        params = {f"{index}": jnp.asarray(weights, dtype) for index, dtype in enumerate(dtypes)}
        gradients = problem.gradients(params)
        state = tx.init(params)
        update = problem.jitted(tx, entry.extra_args(problem.loss))
        updates, new_state = update(gradients, state, params)
        assert problem.types(updates) == problem.types(gradients)
        assert problem.types(new_state) == problem.types(state)
        wide = np.asarray(updates["3"])
        assert np.all(wide != 0)
        if entry.rounds_weights:
            updates = jax.tree.map(jnp.add, params, updates)
            wide = wide + weights
        for leaf in updates.values():
            tolerance = (1 if entry.rounds_weights else 20) * float(jnp.finfo(leaf.dtype).eps)
            np.testing.assert_allclose(np.asarray(leaf, np.float64), wide, rtol=max(tolerance, 1e-6))


def test_wide_gradients_beside_narrow_weights_change_no_type(entry):
    """Gradients accumulated in float32 for bfloat16 weights: the state stays what ``init`` made it."""
    tx = entry.build()
    start = problem.params(jnp.bfloat16)
    update = functools.partial(tx.update, **entry.extra_args(problem.real_loss))
    state = jax.eval_shape(tx.init, start)
    gradients = jax.eval_shape(problem.gradients, problem.params(jnp.float32))
    for _ in range(2):
        updates, new = jax.eval_shape(update, gradients, state, start)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert shapes(new) == shapes(state)
        state = new
        assert set(updates) == set(start)


def shapes(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def test_small_gradients_of_float16_are_finite(entry):
    """Floors that float32 has, 1e-8 or the square of a gradient, are 0 there: 0 / 0 would be NaN."""
    smallest = 6e-8
    params = {name: jnp.array([0.5, -1.0, 2.0], jnp.float16) for name in ("none", "small", "mixed")}
    sizes = {"none": 0.0, "small": smallest, "mixed": np.array([0.0, smallest, 1.0])}
    gradients = {name: jnp.asarray(sizes[name] * np.ones(3), jnp.float16) for name in params}
    tx = entry.build()
    state = tx.init(params)
    update = problem.updater(entry, tx)
    for step in range(3):
        updates, state = update(gradients, state, params)
        for leaf in jax.tree.leaves((updates, problem.readable(state))):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                assert np.isfinite(np.asarray(leaf, np.float64)).all(), step

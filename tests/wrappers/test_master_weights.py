"""Narrow weights that train as wide ones do: ``master_weights`` beside the same run in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro


def train(tx, params, steps=200):
    """Descend a noisy quadratic; return the weights and the state."""
    noise = np.random.default_rng(0).normal(size=(steps, 8)).astype(np.float32)

    def step(carry, noise):
        params, state = carry
        gradients = jax.tree.map(lambda p: (p - 1 + 0.1 * noise).astype(p.dtype), params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), noise)[0])(params)


def test_master_weights_are_those_of_float32():
    """Bit for bit, given the gradients that the narrow weights have."""
    tx = ro.riemannian_sgd(2e-3, momentum=0.9, weight_decay=1e-4)
    params = jnp.linspace(-2, 2, 8, dtype=jnp.bfloat16)
    mixed = ro.master_weights(tx)
    state, wide = mixed.init(params), params.astype(jnp.float32)
    wide_state = tx.init(wide)
    noise = np.random.default_rng(0).normal(size=(200, 8))

    @jax.jit
    def step(params, state, wide, wide_state, noise):
        gradients = params - 1 + noise.astype(params.dtype)
        moves, state = mixed.update(gradients, state, params)
        steps, wide_state = tx.update(gradients.astype(jnp.float32), wide_state, wide)
        return (
            optax.apply_updates(params, moves),
            state,
            optax.apply_updates(wide, steps),
            wide_state,
        )

    for row in noise:
        params, state, wide, wide_state = step(params, state, wide, wide_state, jnp.asarray(row, jnp.float32))
        assert params.dtype == jnp.bfloat16
        # As weights + remainder is how the master weight is read, so it is compared; XLA may fuse a product
        # and a sum differently in the two programs, so the last bits may differ.
        np.testing.assert_allclose(params.astype(jnp.float32) + state.remainder, wide, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(params.astype(jnp.float32), wide, rtol=2.0**-8, atol=2.0**-9)


def test_master_weights_move_where_narrow_ones_stand_still():
    start = jnp.full(8, 4.0, jnp.bfloat16)
    still, _ = train(optax.sgd(1e-3), start)
    np.testing.assert_array_equal(still, start)
    moved, _ = train(ro.master_weights(optax.sgd(1e-3)), start)
    expected, _ = train(optax.sgd(1e-3), start.astype(jnp.float32))
    np.testing.assert_allclose(moved.astype(jnp.float32), expected, rtol=0.01)


def test_wide_weights_are_left_alone():
    params = {"narrow": jnp.ones(8, jnp.bfloat16), "wide": jnp.ones(8)}
    tx = ro.master_weights(optax.adam(1e-2))
    mixed, state = train(tx, params)
    assert state.remainder["wide"] == optax.MaskedNode()
    plain, _ = train(optax.adam(1e-2), params["wide"])
    np.testing.assert_array_equal(mixed["wide"], plain)


def test_an_optimiser_that_keeps_weights_gets_the_wide_ones():
    """Schedule-free AdamW starts from a copy of the weights: zeros would be another start."""
    params = jnp.linspace(-2, 2, 8, dtype=jnp.bfloat16)
    state = ro.master_weights(optax.contrib.schedule_free_adamw(1e-2)).init(params)
    start = optax.tree.get(state, "z")
    assert start.dtype == jnp.float32
    np.testing.assert_array_equal(start, params.astype(jnp.float32))


def test_master_weights_respect_changes_by_others():
    tx = ro.master_weights(optax.sgd(0.0))
    params = jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    updates, _ = tx.update(params, state, params + 5)
    np.testing.assert_array_equal(updates, 0)


def test_a_dtype_that_is_no_real_number_is_refused():
    with pytest.raises(ValueError, match="dtype must be a real floating-point dtype"):
        ro.master_weights(optax.sgd(0.1), jnp.int32)


def averaging(rate):
    return ro.riemannian_schedule_free(rate, b1=0.1, warmup_steps=0)


# It cannot be told from a stage that does change updates.
@pytest.mark.filterwarnings("ignore:eval_params. a stage without a state")
@pytest.mark.parametrize(
    "around",
    [
        ro.master_weights,
        lambda tx: optax.chain(ro.master_weights(tx), optax.identity()),
        lambda tx: ro.low_precision_state(ro.master_weights(tx)),
        lambda tx: ro.partition_by_kind(ro.master_weights(tx), bias=optax.sgd(0.01)),
        lambda tx: optax.partition({"a": ro.master_weights(tx), "b": tx}, {"kernel": "a", "bias": "b"}),
    ],
    ids=["alone", "in a chain", "few bits", "beside another", "beside its like"],
)
def test_the_average_is_that_of_the_wide_weights(around):
    """The rounding of a narrow weight, over a b1 of 0.1, would be ten times that of its average."""
    narrow = {"kernel": jax.random.normal(jax.random.key(0), (32, 16)).astype(jnp.bfloat16)}
    narrow["bias"] = jnp.ones(4)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    tx, twin = around(averaging(0.01)), around(averaging(0.01))
    state, twin_state = tx.init(narrow), twin.init(wide)
    for step in range(60):
        gradients = jax.tree.map(
            lambda leaf, s=step: jax.random.normal(jax.random.key(s), leaf.shape).astype(jnp.bfloat16), narrow
        )
        updates, state = jax.jit(tx.update)(
            jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, narrow), state, narrow
        )
        narrow = optax.apply_updates(narrow, updates)
        updates, twin_state = jax.jit(twin.update)(
            jax.tree.map(lambda g: g.astype(jnp.float32), gradients), twin_state, wide
        )
        wide = optax.apply_updates(wide, updates)
    found, expected = ro.eval_params(state, narrow), ro.eval_params(twin_state, wide)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, narrow)
    rounded = expected["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    error = jnp.abs(found["kernel"].astype(jnp.float32) - rounded)
    assert jnp.mean(error > 0) < 0.05  # what lies between two numbers may be rounded to the other
    one_step = 0.01  # the state is bfloat16, and rounds one way here and the other way there
    assert jnp.all(error <= 2.0**-7 * jnp.abs(rounded) + one_step / 10)
    np.testing.assert_allclose(found["bias"], expected["bias"], rtol=1e-5)

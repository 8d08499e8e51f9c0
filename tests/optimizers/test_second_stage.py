"""Momentum as the second stage: the same as the two in a row, without their temporary."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

RNG = np.random.default_rng(0)
STREAM = [{"w": RNG.standard_normal([3, 4]), "b": RNG.standard_normal(5)} for _ in range(12)]


def float64(step):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), STREAM[step])


def history(tx, stream=float64, steps=12):
    state, found = tx.init(stream(0)), []
    for step in range(steps):
        updates, state = tx.update(stream(step), state)
        found.append(updates)
    return found


def test_nesterov_by_hand():
    decay, mean = 0.8, np.zeros([3, 4])
    with jax.enable_x64(True):
        for step, updates in enumerate(history(ro.ema(decay, nesterov=True)), 1):
            u = STREAM[step - 1]["w"]
            mean = decay * mean + (1 - decay) * u
            expected = decay * mean / (1 - decay ** (step + 1)) + (1 - decay) * u / (1 - decay**step)
            np.testing.assert_allclose(updates["w"], expected, rtol=1e-12)


STAGE_1 = {
    "metric": lambda: [ro.compute_metric(ro.phi.activity(), 3.0)],
    "inverse_metric": lambda: [ro.compute_metric(ro.phi.activity(), 3.0, "inverse_metric")],
    "edited": lambda: [ro.compute_metric(ro.phi.activity(), 3.0), ro.clip_metric(1.5, 2.5)],
    "a Euclidean leaf": lambda: [
        optax.masked(ro.compute_metric(ro.phi.activity(), 3.0), {"w": True, "b": False})
    ],
}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("name", STAGE_1)
def test_in_the_place_of_stage_2_it_is_stage_2_and_the_mean(name, nesterov):
    with jax.enable_x64(True):
        short = optax.chain(*STAGE_1[name](), ro.ema(0.9, nesterov))
        both = optax.chain(*STAGE_1[name](), ro.scale_by_inverse_metric(), ro.ema(0.9, nesterov))
        chex.assert_trees_all_close(history(short), history(both), rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_complex_covectors(nesterov):
    def stream(step):
        return jax.tree.map(lambda leaf: leaf * (1 - 2j), float64(step))

    with jax.enable_x64(True):
        short = optax.chain(*STAGE_1["metric"](), ro.ema(0.9, nesterov))
        both = optax.chain(*STAGE_1["metric"](), ro.scale_by_inverse_metric(), ro.ema(0.9, nesterov))
        chex.assert_trees_all_close(history(short, stream), history(both, stream), rtol=1e-12)


def test_metric_at_sees_the_metric_that_it_uses():
    tx = optax.chain(*STAGE_1["metric"](), ro.ema(0.9, nesterov=True))
    gradients = {"w": jnp.array([[1.0, -2.0]])}
    metric = ro.metric_at(tx, gradients, tx.init(gradients), gradients)
    np.testing.assert_allclose(metric["w"], [[4.0, 7.0]], rtol=1e-6)


def test_no_second_stage_may_follow():
    tx = optax.chain(*STAGE_1["metric"](), ro.ema(0.9), ro.scale_by_inverse_metric())
    gradients = jnp.ones(2)
    with pytest.raises(ValueError, match="scale_by_inverse_metric: no leaf carries a metric"):
        tx.update(gradients, tx.init(gradients))


def test_a_steady_update_keeps_its_size():
    with jax.enable_x64(True):
        for nesterov in (False, True):
            last = history(ro.ema(0.9, nesterov), lambda step: jnp.ones(1, jnp.float64), steps=400)[-1]
            np.testing.assert_allclose(last, 1.0, rtol=1e-12)


def test_narrow_updates_have_a_wide_mean():
    """In bfloat16 a mean with decay 0.999 of the constant 1 would stall at 0.5."""
    ones = jnp.ones([2], jnp.bfloat16)
    tx = ro.ema(0.999)
    state = tx.init(ones)
    _, state = jax.lax.scan(lambda s, _: (tx.update(ones, s)[1], None), state, length=8000)[::-1]
    assert state.ema.dtype == jnp.float32
    np.testing.assert_allclose(state.ema, 1 - 0.999**8000, rtol=1e-3)


def temporary_bytes(tx, params):
    def step(gradients, params, state):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(params, params, tx.init(params)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2),
    reason="XLA up to JAX 0.10.1 keeps two arrays of the matrix between loops",
)
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_recommended_optimiser_keeps_no_temporary_of_the_size_of_a_matrix(nesterov):
    """On a CPU fresh memory at every step would cost more than the whole update."""
    params = {"kernel": jnp.ones([512, 256])}
    largest = params["kernel"].nbytes
    tx = ro.riemannian_adamw(0.1, nesterov=nesterov)
    assert temporary_bytes(tx, params) < largest / 10
    apart = optax.chain(
        ro.scale_by_metric(ro.phi.factored_activity(), 100.0, conformal="tree"), ro.ema(0.9, nesterov=True)
    )
    assert temporary_bytes(apart, params) >= largest  # the measure does see one

"""metric_at shows the metric of the next update through wrappers, and changes nothing."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

PARAMS = {"bias": jnp.array([3.0, -1.0]), "kernel": jnp.array([[1.0, -2.0], [0.5, 4.0]])}
MASK = {"bias": False, "kernel": True}
ENERGY = jax.tree.map(lambda p: 1 + 2 * np.abs(p), PARAMS)
MASKED = {"bias": np.ones(2), "kernel": ENERGY["kernel"]}


def rule(**options):
    return riemannian_sgd(0.1, phi=ro.phi.maintenance_energy(), alpha=2.0, **options)


CASES = {
    "alias": (rule(momentum=0.9), ENERGY),
    "chain": (optax.chain(optax.clip(0.1), rule(), optax.trace(0.9)), ENERGY),
    "named_chain": (optax.named_chain(("clip", optax.clip(0.1)), ("metric", rule())), ENERGY),
    "masked": (optax.masked(rule(), MASK), MASKED),
    "masked stage 1": (
        optax.chain(
            optax.masked(ro.compute_metric(ro.phi.maintenance_energy(), 2.0), MASK),
            ro.scale_by_inverse_metric(),
        ),
        MASKED,
    ),
    "partition": (
        optax.partition({"metric": rule(), "plain": optax.sgd(0.1)}, {"bias": "plain", "kernel": "metric"}),
        MASKED,
    ),
    "two in a partition": (
        optax.partition(
            {"metric": rule(), "inverse": rule(role="inverse_metric")},
            {"bias": "inverse", "kernel": "metric"},
        ),
        {"bias": 1 / ENERGY["bias"], "kernel": ENERGY["kernel"]},
    ),
    "partition_by_kind": (ro.partition_by_kind(rule(), bias=optax.sgd(0.1)), MASKED),
    "inject_hyperparams": (
        optax.inject_hyperparams(
            lambda alpha: riemannian_sgd(0.1, phi=ro.phi.maintenance_energy(), alpha=alpha)
        )(alpha=2.0),
        ENERGY,
    ),
    "frame": (
        optax.chain(
            ro.compute_metric(ro.phi.maintenance_energy(), 2.0),
            ro.in_orthonormal_frame(optax.scale_by_adam()),
        ),
        ENERGY,
    ),
    "edited": (
        optax.chain(
            ro.compute_metric(ro.phi.maintenance_energy(), 2.0),
            ro.clip_metric(high=4.0),
            ro.multiply_metric(lambda w: jnp.full_like(w, 3.0)),
            ro.scale_by_inverse_metric(),
        ),
        jax.tree.map(lambda e: 3 * np.minimum(e, 4.0), ENERGY),
    ),
    "two pairs of stages": (optax.chain(rule(), rule()), jax.tree.map(np.square, ENERGY)),
    "schedule_free": (optax.contrib.schedule_free(rule(), 0.1), ENERGY),
    "mechanize": (optax.contrib.mechanize(rule()), ENERGY),
    "skip_nonfinite": (ro.skip_nonfinite(rule()), ENERGY),
}
BRANCHING = {
    "multi_steps": optax.MultiSteps(rule(), 1).gradient_transformation(),
    "multi_steps around masked": optax.MultiSteps(optax.masked(rule(), True), 1).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(rule(), 2),
}


def metric_at(tx):
    return ro.metric_at(tx, PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("case", CASES)
def test_through_wrappers(case, jit):
    tx, expected = CASES[case]
    state = tx.init(PARAMS)
    call = functools.partial(ro.metric_at, tx)
    metric = (jax.jit(call) if jit else call)(PARAMS, state, PARAMS)
    chex.assert_trees_all_close(metric, expected, rtol=1e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(metric))


@pytest.mark.parametrize("name", BRANCHING)
def test_through_wrappers_that_branch(name):
    """Outside of jit the branch taken is run, under jit the error says what to do."""
    tx = BRANCHING[name]
    chex.assert_trees_all_close(metric_at(tx), ENERGY, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"^metric_at: tx applies its metric inside a branch or loop.*outside of jit"
    ):
        jax.jit(lambda g: ro.metric_at(tx, g, tx.init(PARAMS), PARAMS))(PARAMS)


def test_multi_steps_in_the_middle_of_an_accumulation():
    """The metric is that of the mean gradient so far, and at the end that of the whole mean."""
    tx = optax.MultiSteps(riemannian_sgd(0.1), 2).gradient_transformation()
    state = tx.init(PARAMS)
    one = jax.tree.map(lambda p: 1 + abs(p), PARAMS)
    chex.assert_trees_all_close(ro.metric_at(tx, PARAMS, state, PARAMS), one, rtol=1e-5)
    _, state = tx.update(PARAMS, state, PARAMS)
    metric = ro.metric_at(tx, jax.tree.map(lambda p: 3 * p, PARAMS), state, PARAMS)
    chex.assert_trees_all_close(metric, jax.tree.map(lambda p: 1 + 2 * abs(p), PARAMS), rtol=1e-5)


def test_an_update_that_is_skipped_has_no_metric():
    tx = optax.apply_if_finite(rule(), 2)
    bad = jax.tree.map(lambda p: p * jnp.nan, PARAMS)
    with pytest.raises(ValueError, match=r"^metric_at: this update of tx applied no metric.*must not skip"):
        ro.metric_at(tx, bad, tx.init(PARAMS), PARAMS)


def test_is_the_metric_of_the_next_update_and_changes_nothing():
    tx = riemannian_sgd(0.5, alpha=3.0, conformal="leaf")
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(3):
        gradients = jax.tree.map(lambda p, s=step: p * (s + 1.0), params)
        before = jax.tree.map(jnp.copy, state)
        metric = ro.metric_at(tx, gradients, state, params)
        chex.assert_trees_all_equal(state, before)
        updates, state = tx.update(gradients, state, params)
        by_hand = jax.tree.map(lambda g, e: -0.5 * g / e, gradients, metric)
        chex.assert_trees_all_close(updates, by_hand, rtol=1e-5)
        params = optax.apply_updates(params, updates)


def test_extra_arguments_reach_phi():
    tx = riemannian_sgd(0.1, phi=ro.phi.hutchinson_curvature())
    metric = ro.metric_at(
        tx, PARAMS, tx.init(PARAMS), PARAMS, obj_fn=lambda p: 1.5 * optax.tree.norm(p, squared=True)
    )
    chex.assert_trees_all_close(metric, jax.tree.map(lambda p: np.full(p.shape, 4.0), PARAMS), rtol=1e-5)


def test_nothing_is_left_behind_by_an_error():
    """An update after a failed metric_at reports to nobody, and the next metric_at works."""
    tx = rule()
    with pytest.raises(ValueError, match="params"):
        ro.metric_at(tx, PARAMS, tx.init(PARAMS))
    jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(metric_at(tx), ENERGY, rtol=1e-6)


def test_inside_of_a_jitted_training_step():
    """E beside the update: it is the E the update divides by, step after step."""
    tx = riemannian_sgd(0.1, alpha=2.0)

    @jax.jit
    def step(params, state):
        metric = ro.metric_at(tx, params, state, params)
        updates, state = tx.update(params, state, params)
        return updates, state, metric

    state = tx.init(PARAMS)
    for _ in range(2):
        updates, state, metric = step(PARAMS, state)
        chex.assert_trees_all_close(
            updates, jax.tree.map(lambda p, e: -0.1 * p / e, PARAMS, metric), rtol=1e-6
        )
        chex.assert_trees_all_close(metric, ENERGY, rtol=1e-5)  # the gradient is the weight: rms = abs(w)


def test_what_has_no_values_is_refused_by_name():
    tx, params = ro.riemannian_adamw(0.1), {"w": jnp.ones([3, 2])}
    abstract = jax.eval_shape(lambda: params)
    with pytest.raises(TypeError, match=r"metric_at: .*\['w'\] is abstract"):
        ro.metric_at(tx, abstract, tx.init(params), params)

"""Optax's wrappers do to both stages what they do to the same rule written out in one piece."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from .by_hand import riemannian_sgd_by_hand

STEPS = 6
TARGET = {"bias": jnp.array([0.3, -0.2]), "kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
SCALE = {"bias": jnp.array([1.0, 4.0]), "kernel": jnp.array([[0.5, 2.0], [1.0, 0.1]])}
MASK = {"bias": False, "kernel": True}


def loss(params):
    terms = jax.tree.map(lambda p, t, s: jnp.sum(s * (p - t) ** 2), params, TARGET, SCALE)
    return optax.tree.sum(terms)


def ours(learning_rate=0.1, **options):
    return riemannian_sgd(learning_rate, phi=ro.phi.activity(decay=0.9), **options)


def by_hand(learning_rate=0.1, conformal=None, **options):
    return riemannian_sgd_by_hand(learning_rate, conformal=conformal is not None, **options)


def steps(tx, jit=True, params=None, gradients_of=None, extra_args=None):
    """Return the parameters after each step of training on the loss."""
    tx = optax.with_extra_args_support(tx)
    params = jax.tree.map(jnp.zeros_like, TARGET) if params is None else params
    gradients_of = jax.grad(loss) if gradients_of is None else gradients_of
    state = tx.init(params)

    def step(params, state):
        updates, state = tx.update(gradients_of(params), state, params, **(extra_args or {}))
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    history = []
    for _ in range(STEPS):
        params, state = step(params, state)
        history.append(params)
    return history


def every_second_gradient_bad(tx):
    """A stage before ``tx`` that turns every second gradient into NaN."""

    def update(updates, state, params=None):
        del params
        bad = jax.tree.map(lambda u: jnp.where(state % 2 == 1, jnp.nan, u), updates)
        return bad, state + 1

    return optax.chain(optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update), tx)


WRAPPERS = {
    "nothing": lambda make: make(),
    "chain": lambda make: optax.chain(optax.clip(0.5), make(), optax.scale(2.0)),
    "named_chain": lambda make: optax.named_chain(("clip", optax.clip(0.5)), ("metric", make())),
    "masked": lambda make: optax.masked(make(), MASK),
    "masked by a function": lambda make: optax.masked(
        make(), lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    ),
    "partition": lambda make: optax.partition(
        {"metric": make(), "plain": optax.sgd(0.05)}, {"bias": "plain", "kernel": "metric"}
    ),
    "two metrics in a partition": lambda make: optax.partition(
        {"slow": make(0.01, alpha=3.0), "fast": make(0.2, alpha=0.5)}, {"bias": "slow", "kernel": "fast"}
    ),
    "multi_steps": lambda make: optax.MultiSteps(make(), 2).gradient_transformation(),
    "multi_steps around masked": lambda make: optax.MultiSteps(
        optax.masked(make(), MASK), 3
    ).gradient_transformation(),
    "apply_if_finite": lambda make: every_second_gradient_bad(optax.apply_if_finite(make(), 5)),
    "skip_nonfinite": lambda make: every_second_gradient_bad(ro.skip_nonfinite(make())),
    "conditionally_transform": lambda make: optax.conditionally_transform(
        make(), lambda step, **_: step % 3 != 1
    ),
    "conditionally_mask": lambda make: optax.conditionally_mask(make(), lambda step, **_: step % 3 != 1),
    "freeze around": lambda make: optax.chain(
        make(), optax.transforms.freeze({"bias": True, "kernel": False})
    ),
    "schedule_free": lambda make: optax.contrib.schedule_free(make(), learning_rate=0.1),
    "mechanize": lambda make: optax.contrib.mechanize(make(1.0)),
    "sam": lambda make: optax.contrib.sam(make(), make(0.05), sync_period=2),
    "sam without reset": lambda make: optax.contrib.sam(
        make(), optax.chain(optax.contrib.normalize(), make(0.05)), sync_period=3, reset_state=False
    ),
    "reduce_on_plateau": lambda make: optax.chain(make(), optax.contrib.reduce_on_plateau(patience=1)),
    "inject_hyperparams": lambda make: optax.inject_hyperparams(make)(
        learning_rate=optax.linear_schedule(0.0, 0.2, 4), alpha=optax.linear_schedule(0.0, 4.0, 4)
    ),
    "inject_hyperparams in multi_steps": lambda make: optax.MultiSteps(
        optax.inject_hyperparams(make)(learning_rate=0.1, alpha=2.0), 2
    ).gradient_transformation(),
}
OPTIONS = {
    "alpha": {"alpha": 2.0},
    "conformal, momentum": {"alpha": 5.0, "conformal": "tree", "momentum": 0.5},
}


EXTRA_ARGS = {"reduce_on_plateau": {"value": jnp.ones([])}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapper_around_both_stages(name, options):
    def trajectory(rule):
        def make(learning_rate=0.1, alpha=options["alpha"]):
            return rule(learning_rate, **{**options, "alpha": alpha})

        return steps(WRAPPERS[name](make), extra_args=EXTRA_ARGS.get(name))

    expected = trajectory(by_hand)
    chex.assert_tree_all_finite(expected)
    chex.assert_trees_all_close(trajectory(ours), expected, rtol=2e-5, atol=1e-6)
    with pytest.raises(AssertionError):  # the metric does matter here
        chex.assert_trees_all_close(
            trajectory(lambda learning_rate, **_: optax.sgd(learning_rate)), expected, rtol=1e-3
        )


@pytest.mark.parametrize("reset_state", [False, True])
def test_lookahead(reset_state):
    start = optax.LookaheadParams.init_synced(jax.tree.map(jnp.zeros_like, TARGET))

    def trajectory(fast):
        tx = optax.lookahead(fast, sync_period=2, slow_step_size=0.5, reset_state=reset_state)
        return steps(tx, params=start, gradients_of=lambda params: jax.grad(loss)(params.fast))

    expected = trajectory(by_hand(alpha=2.0))
    chex.assert_trees_all_close(trajectory(ours(alpha=2.0)), expected, rtol=2e-5, atol=1e-6)
    assert not np.allclose(expected[-2].fast["kernel"], expected[-2].slow["kernel"])


def test_sam_in_opaque_mode():
    def trajectory(rule):
        tx = optax.contrib.sam(rule(alpha=2.0), rule(0.05, alpha=1.0), sync_period=2, opaque_mode=True)
        return steps(tx, extra_args={"grad_fn": lambda params, _: jax.grad(loss)(params)})

    chex.assert_trees_all_close(trajectory(ours), trajectory(by_hand), rtol=2e-5, atol=1e-6)


def test_schedule_free_evaluation_parameters():
    """The parameters to evaluate at come from the state, and training brings them to the minimum."""
    tx = optax.contrib.schedule_free(ours(alpha=1.0), learning_rate=0.1)
    params = jax.tree.map(jnp.zeros_like, TARGET)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=2000))((params, tx.init(params)))
    evaluated = optax.contrib.schedule_free_eval_params(state, params)
    chex.assert_trees_all_close(evaluated, TARGET, rtol=1e-2, atol=1e-2)


def test_mechanize_finds_a_rate():
    """From a rate of 1e-6 mechanize reaches the minimum; the metric alone, at that rate, does not move."""

    def final_loss(tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jax.tree.map(jnp.zeros_like, TARGET)
        (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=3000))((params, tx.init(params)))
        return loss(params)

    start = loss(jax.tree.map(jnp.zeros_like, TARGET))
    assert final_loss(ours(1e-6)) > 0.9 * start
    assert final_loss(optax.contrib.mechanize(ours(1.0))) < 1e-3 * start


def test_hyperparameters_are_set_in_the_state():
    """A rate and an alpha written into the state of inject_hyperparams hold from the next update on."""
    tx = optax.inject_hyperparams(lambda learning_rate, alpha: ours(learning_rate, alpha=alpha))(0.1, 0.0)
    gradients = {"kernel": jnp.array([3.0, -4.0])}
    state = tx.init(gradients)
    updates, state = tx.update(gradients, state)
    np.testing.assert_allclose(updates["kernel"], [-0.3, 0.4], rtol=1e-6)
    state.hyperparams["alpha"] = jnp.array(2.0)
    state.hyperparams["learning_rate"] = jnp.array(0.5)
    updates, state = tx.update(gradients, state)
    # The gradient has been the same twice, so that phi is its size: E = 1 + 2*3 and 1 + 2*4.
    np.testing.assert_allclose(updates["kernel"], [-0.5 * 3 / 7, 0.5 * 4 / 9], rtol=1e-6)
    state = optax.tree.set(state, alpha=jnp.array(1.0))
    updates, _ = tx.update(gradients, state)
    np.testing.assert_allclose(updates["kernel"], [-0.5 * 3 / 4, 0.5 * 4 / 5], rtol=1e-6)


def test_named_chain_gives_the_state_by_name():
    tx = optax.named_chain(
        ("metric", ro.compute_metric(ro.phi.activity(decay=0.5), alpha=2.0)),
        ("edit", ro.clip_metric(high=5.0)),
        ("tangent", ro.scale_by_inverse_metric()),
        ("rate", optax.scale_by_learning_rate(0.1)),
    )
    gradients = {"kernel": jnp.array([1.0, -4.0])}
    updates, state = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(updates["kernel"], [-0.1 / 3, 0.4 / 5], rtol=1e-6)
    assert list(state) == ["metric", "edit", "tangent", "rate"]
    np.testing.assert_allclose(state["metric"].phi.second_moment["kernel"], [0.5, 8.0])


NESTED = {
    "chain": lambda tx: optax.chain(optax.clip(100.0), tx),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
    "partition": lambda tx: optax.partition(
        {"metric": tx, "plain": optax.sgd(0.1)}, {"kernel": "metric", "bias": "plain"}
    ),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "schedule_free": lambda tx: optax.contrib.schedule_free(tx, learning_rate=0.1),
    "skip_nonfinite": ro.skip_nonfinite,
}


@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
def test_tree_get_finds_and_map_params_maps_the_state(nest):
    tx = nest(ours(alpha=1.0, record=True))
    params = {"bias": jnp.ones(3), "kernel": jnp.full([2, 4], 2.0)}
    _, state = tx.update(params, tx.init(params), params)
    moment = optax.tree.get(state, "second_moment")["kernel"]
    np.testing.assert_allclose(moment, 0.1 * 2.0**2, rtol=1e-5)
    assert isinstance(optax.tree.get(state, "RecordMetricState"), ro.RecordMetricState)
    assert optax.tree.get(state, "ComputeMetricState").count == 1

    narrow = optax.tree.map_params(tx, lambda leaf: leaf.astype(jnp.bfloat16), state)
    assert optax.tree.get(narrow, "second_moment")["kernel"].dtype == jnp.bfloat16
    assert optax.tree.get(narrow, "metric_max").dtype == jnp.float32  # one number per leaf is no parameter
    other = optax.tree.map_params(
        tx, lambda leaf: jnp.full_like(leaf, 7.0), state, transform_non_params=lambda leaf: leaf * 0
    )
    assert np.all(optax.tree.get(other, "second_moment")["kernel"] == 7.0)
    assert optax.tree.get(other, "ComputeMetricState").count == 0


def stage_1(phi=None):
    return ro.compute_metric(ro.phi.activity() if phi is None else phi)


HOLDERS = {
    "compute_metric": lambda inner: optax.chain(stage_1(inner), ro.scale_by_inverse_metric()),
    "on_gradient": lambda inner: optax.chain(stage_1(), ro.on_gradient(inner), ro.scale_by_inverse_metric()),
    "on_metric": lambda inner: optax.chain(stage_1(), ro.on_metric(inner), ro.scale_by_inverse_metric()),
    "multiply_metric": lambda inner: optax.chain(
        stage_1(), ro.multiply_metric(inner), ro.scale_by_inverse_metric()
    ),
    "in_orthonormal_frame": lambda inner: optax.chain(stage_1(), ro.in_orthonormal_frame(inner)),
    "skip_nonfinite": ro.skip_nonfinite,
    "partition_by_kind": lambda inner: ro.partition_by_kind(optax.sgd(0.1), matrix=inner),
    "phi.weighted_sum": lambda inner: ro.phi.weighted_sum(ro.phi.activity(), inner),
    "phi.product": lambda inner: ro.phi.product(ro.phi.activity(), inner),
    "phi.power": lambda inner: ro.phi.power(inner, 2.0),
    "phi.unit_mean": lambda inner: ro.phi.unit_mean(inner),
    "phi.limited_mean": lambda inner: ro.phi.limited_mean(inner, limit=1.0),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_parameters_and_extra_arguments_reach_what_is_inside(hold):
    seen = []

    def look(updates, state, params=None, **extra_args):
        seen.append((params, extra_args))
        return jax.tree.map(jnp.abs, updates), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, look)
    tx = optax.with_extra_args_support(hold(inner))
    params = {"kernel": jnp.array([[1.0, 2.0]])}
    tx.update(params, tx.init(params), params, obj_fn=loss, value=3.0)
    ((seen_params, extra_args),) = seen
    assert seen_params["kernel"] is params["kernel"]
    assert extra_args == {"obj_fn": loss, "value": 3.0}

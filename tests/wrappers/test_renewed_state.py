"""What an optimiser forgets of a unit that is drawn anew, and where the weights of the unit end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


PARAMS = {
    "head": {"bias": np.ones(2), "kernel": np.full((3, 2), 2.0)},
    "hidden": {"bias": np.ones(3), "kernel": np.arange(1.0, 13.0).reshape(4, 3)},
}
SEEN = {
    "head": {"bias": np.ones((1, 2)), "kernel": np.ones((1, 2))},
    "hidden": {"bias": np.array([[1.0, 0.0, 1.0]]), "kernel": np.array([[1.0, 0.0, 1.0]])},
}


def after_a_reset(inner, steps=3, seen=SEEN, resets=1, **arguments):
    """Return parameters and state after some steps and a reset of the middle unit, or without it."""
    tx = ro.reset_units(inner, ro.dormant_units(0.0, every=steps if resets else steps + 1), **arguments)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        own = jax.tree.map(lambda w, step=step: jnp.cos(w + step), params)
        updates, state = update(own, state, params, activities=seen)
        params = optax.apply_updates(params, updates)
    assert state.resets == resets
    return params, state


def own_values(tree):
    """The values of the middle unit, and all others."""
    unit = [tree["hidden"]["kernel"][..., 1], tree["hidden"]["bias"][1], tree["head"]["kernel"][..., 1, :]]
    rest = [
        jnp.delete(tree["hidden"]["kernel"], 1, -1),
        jnp.delete(tree["hidden"]["bias"], 1),
        jnp.delete(tree["head"]["kernel"], 1, -2),
        tree["head"]["bias"],
    ]
    return unit, rest


INNER = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "the metric": lambda: ro.riemannian_sgd(0.1, phi=ro.phi.activity(), conformal=None),
    "accumulated": lambda: optax.chain(
        ro.compute_metric(ro.phi.accumulated_activity()), ro.scale_by_inverse_metric(), optax.scale(-0.1)
    ),
    "masked": lambda: optax.masked(
        optax.adam(0.1), {"head": {"bias": True, "kernel": True}, "hidden": {"bias": False, "kernel": True}}
    ),
    "partitioned": lambda: ro.partition_by_kind(optax.adam(0.1), bias=optax.sgd(0.1, momentum=0.5)),
    "wrapped": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "hyper-parameters": lambda: optax.inject_hyperparams(optax.adam)(0.1),
}


AXES = {("hidden", "kernel"): 1, ("hidden", "bias"): 0, ("head", "kernel"): 0}


@pytest.mark.parametrize("name", INNER)
def test_what_is_kept_of_a_unit_is_forgotten_and_nothing_else(name):
    """Beside the same steps without a reset, which only differ in the values of the unit."""
    (_, state), (_, other) = after_a_reset(INNER[name]()), after_a_reset(INNER[name](), resets=0)
    seen = 0
    with_paths = jax.tree_util.tree_leaves_with_path(state.inner_state)
    for (path, array), before in zip(with_paths, jax.tree.leaves(other.inner_state), strict=True):
        keys = tuple(entry.key for entry in path if hasattr(entry, "key"))[-2:]
        array, before = np.asarray(array, np.float64), np.asarray(before, np.float64)
        if keys in AXES:
            assert not np.take(array, 1, AXES[keys]).any()
            assert np.take(before, 1, AXES[keys]).any()
            array, before = (np.delete(x, 1, AXES[keys]) for x in (array, before))
            seen += 1
        np.testing.assert_array_equal(array, before)
    assert seen >= 3


def test_of_a_factored_state_the_row_or_column_of_the_unit():
    inner = ro.riemannian_sgd(0.1, phi=ro.phi.factored_activity(), momentum=None, conformal=None)
    _, state = after_a_reset(inner)
    _, other = after_a_reset(inner, resets=0)
    (one,), (two,) = (
        [node for node in jax.tree.leaves(s, is_leaf=is_factored) if is_factored(node)]
        for s in (state, other)
    )
    np.testing.assert_array_equal(one.columns["hidden"]["kernel"][0, 1], 0)
    np.testing.assert_array_equal(one.rows["head"]["kernel"][1], 0)
    for shared in (one.rows["hidden"]["kernel"], two.rows["hidden"]["kernel"]):
        assert (shared > 0).all()
    np.testing.assert_array_equal(one.rows["hidden"]["kernel"], two.rows["hidden"]["kernel"])
    np.testing.assert_array_equal(one.columns["head"]["kernel"], two.columns["head"]["kernel"])
    np.testing.assert_array_equal(
        one.columns["hidden"]["kernel"][0, ::2], two.columns["hidden"]["kernel"][0, ::2]
    )


def is_factored(node):
    return isinstance(node, ro.phi.FactoredActivityState)


def test_an_anchor_holds_the_new_weights():
    """So that L2-Init does not pull a new unit to where the old one began."""
    inner = optax.chain(ro.add_anchored_weights(0.1, ro.anchor.initial_weights()), optax.sgd(0.1))
    params, state = after_a_reset(inner)
    anchor = state.inner_state[0].anchor.weights
    unit, _ = own_values(anchor)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), unit, own_values(params)[0])
    np.testing.assert_array_equal(anchor["hidden"]["kernel"][:, 0], PARAMS["hidden"]["kernel"][:, 0])
    _, state = after_a_reset(ro.schedule_free(optax.sgd(0.1)))
    unit, _ = own_values(state.inner_state.iterate)
    assert (unit[1] == 0).all()
    assert (unit[2] == 0).all()


def test_a_reset_ends_at_the_new_weights_where_gradients_are_narrow():
    """The jump was rounded to their dtype: a silent unit went on sending a little."""
    tx = ro.reset_units(optax.sgd(0.1), ro.dormant_units(every=1))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=[2, 3]), jnp.float32)
    params = {"hidden": {"kernel": jnp.ones([4, 2], jnp.float32)}, "out": {"kernel": weights}}
    gradients = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.bfloat16), params)
    activities = {"hidden": {"kernel": jnp.array([[1.0, 0.0]])}, "out": {"kernel": jnp.zeros([1, 3])}}
    updates, _ = tx.update(gradients, tx.init(params), params, activities=activities)
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["out"]["kernel"][1], 0)


def test_without_an_initialiser_new_weights_are_spread_like_the_first():
    generator = np.random.default_rng(0)
    params = {
        "a": {"kernel": jnp.asarray(3.0 * generator.normal(size=(400, 50)))},
        "b": {"kernel": jnp.asarray(generator.normal(size=(50, 7)))},
    }
    tx = ro.reset_units(optax.sgd(0.0), ro.dormant_units(2.0, every=2))
    state, seen = tx.init(params), {"a": {"kernel": np.ones((1, 50))}, "b": {"kernel": np.ones((1, 7))}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, state, params, activities=seen)
    shrunk = jax.tree.map(lambda w: 0.1 * w, params)  # the first weights count, not these
    updates, state = tx.update(zeros, state, shrunk, activities=seen)
    new = optax.apply_updates(shrunk, updates)["a"]["kernel"]
    assert state.resets == 50
    np.testing.assert_allclose(jnp.std(new), jnp.std(params["a"]["kernel"]), rtol=0.02)
    np.testing.assert_allclose(jnp.mean(new), 0.0, atol=0.1)

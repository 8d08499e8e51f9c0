"""A count of updates goes on only where most of what it is the count of does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax.checkpoint import transplant


@pytest.mark.parametrize("wrap", [lambda leaf: leaf, lambda leaf: {"w": leaf}], ids=["one array", "a tree"])
def test_a_count_without_its_averages_begins_anew(wrap):
    """A kept count would divide new averages by almost 1, and the first steps be three times too long."""
    tx, params, grown = optax.scale_by_adam(), wrap(jnp.ones(3)), wrap(jnp.ones(5))
    state = tx.init(params)
    for _ in range(50):
        _, state = tx.update(params, state, params)
    transplanted, report = transplant(state, tx, grown)
    assert report.begun_anew[".count"] == "most of the values of its state do not fit"
    for found, expected in zip(
        *(tx.update(grown, s, grown) for s in (transplanted, tx.init(grown))), strict=True
    ):
        chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ro.riemannian_schedule_free(0.01, sides="smaller"), ro.riemannian_adamw(0.01)),
        (ro.riemannian_adamw(0.01, phi=ro.phi.activity(decay=0.97)), ro.riemannian_eigenbasis(0.01)),
        (ro.riemannian_eigenbasis(0.01), ro.riemannian_eigenbasis(0.01, sides="both")),
    ],
    ids=["to plain", "to bases", "to both sides"],
)
def test_a_count_of_which_only_biases_are_left_begins_anew(before, after):
    """Else the mean squares of the kernel lack the correction of a first update: steps six times too long."""
    weights = {"kernel": jnp.ones([8, 6]), "bias": jnp.ones(6)}
    gradients = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), weights)
    update, state = jax.jit(before.update), before.init(weights)
    for _ in range(200):
        _, state = update(gradients, state, weights)
    moved, _ = transplant(state, after, weights)
    steps = [after.update(gradients, s, weights)[0] for s in (moved, after.init(weights))]
    chex.assert_trees_all_close(*steps, rtol=1e-5)


def test_a_smaller_part_that_does_not_fit_leaves_the_rest_as_it_is():
    weights = {"body": jnp.ones([8, 6]), "head": jnp.ones([6, 2])}
    tx = optax.adam(0.01)
    _, state = tx.update(weights, tx.init(weights), weights)
    moved, report = transplant(state, tx, {**weights, "head": jnp.ones([6, 3])})
    assert set(report.begun_anew) == {"[0].mu['head']", "[0].nu['head']"}
    chex.assert_trees_all_equal(moved[0].nu["body"], state[0].nu["body"])


def test_larger_new_layers_leave_the_old_ones_as_they_are():
    """A new leaf is none that does not fit."""
    weights = {"body": jnp.ones([4, 4])}
    tx = optax.chain(ro.riemannian_sgd(0.1, phi=ro.phi.online_ewc()), optax.scale_by_adam())
    _, state = tx.update(weights, tx.init(weights), weights)
    state = ro.consolidate(state, weights)
    moved, report = transplant(state, tx, {**weights, "head": jnp.ones([4, 20])})
    assert set(report.begun_anew.values()) == {"new"}
    importance = optax.tree.get(moved, "importance")
    np.testing.assert_array_equal(importance["body"], 1.0)
    assert optax.tree.get(moved, "mu")["body"].any()


def test_the_importance_of_tasks_outlives_that_of_matrices_in_other_coordinates():
    """It is no mean that a count corrects: that of biases is right as it is."""
    weights = {"kernel": jnp.ones([4, 4]), "bias": jnp.ones(4)}
    plain = ro.riemannian_sgd(0.1, phi=ro.phi.online_ewc())
    _, state = plain.update(weights, plain.init(weights), weights)
    state = ro.consolidate(state, weights)
    moved, _ = transplant(state, ro.in_eigenbasis(plain, sides="both"), weights)
    np.testing.assert_array_equal(optax.tree.get(moved, "importance")["bias"], 1.0)

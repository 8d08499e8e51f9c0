"""Transplanting into optax.partition and out of it; models of Flax NNX in the place of parameters."""

import ast
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax.checkpoint import check, manifest, target, transplant

PARAMS = {"a": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "b": jnp.ones((4, 2))}
LABELS = {"a": {"kernel": "matrix", "bias": "vector"}, "b": "matrix"}
OPTIMISERS = {
    "adam": lambda: optax.adam(1e-3),
    "riemannian_adamw": lambda: ro.riemannian_adamw(1e-3),
    "riemannian_schedule_free": lambda: ro.riemannian_schedule_free(1e-3),
    "riemannian_eigenbasis": lambda: ro.riemannian_eigenbasis(1e-3),
}


def after_three(tx):
    state = tx.init(PARAMS)
    for step in range(3):
        gradients = jax.tree.map(lambda p, step=step: (0.5 + step) * p, PARAMS)
        _, state = tx.update(gradients, state, PARAMS)
    return state


def in_parts(matrix, vector):
    return optax.partition({"matrix": matrix, "vector": vector}, LABELS)


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_one_optimiser_becomes_several_parts_with_all_of_its_state(make):
    """The state is that of a run that was in parts from the beginning."""
    parts = in_parts(make(), make())
    found, report = transplant(after_three(make()), parts, PARAMS)
    assert not report.begun_anew
    assert not report.dropped
    chex.assert_trees_all_close(found, after_three(parts), rtol=1e-5)


def test_a_part_with_another_optimiser_begins_anew_and_the_other_goes_on():
    parts = in_parts(ro.riemannian_adamw(1e-3), optax.trace(0.9))
    found, report = transplant(after_three(ro.riemannian_adamw(1e-3)), parts, PARAMS)
    assert all(".inner_states['vector']" in path for path in report.begun_anew)
    kept = after_three(parts).inner_states["matrix"]
    chex.assert_trees_all_close(found.inner_states["matrix"], kept, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [lambda: optax.adam(1e-3), lambda: ro.riemannian_adamw(optax.constant_schedule(1e-3))],
    ids=["one state", "several states"],
)
def test_several_parts_that_would_become_one_are_refused_with_a_remedy_that_works(make):
    state = after_three(in_parts(make(), make()))
    with pytest.raises(ValueError, match=r"\['matrix'\].*\['vector'\].* has them all: match one") as refused:
        transplant(state, make(), PARAMS)
    places = ast.literal_eval(re.search(r"places=(\{.*?\});", str(refused.value))[1])
    assert "matrix" in str(places)
    found, report = transplant(state, make(), PARAMS, places=places)
    assert report.begun_anew
    assert all("bias" in path for path in report.begun_anew)
    assert {int(count) for _, count in optax.tree.get_all_with_path(found, "count")} == {3}


class Net(nnx.Module):
    """Parameters, running statistics, and the counts and keys of a dropout."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


@pytest.mark.parametrize(
    "wrt", [nnx.Param, nnx.All(nnx.Param, nnx.PathContains("linear"))], ids=["all", "some"]
)
def test_a_model_of_nnx_stands_for_what_is_trained(wrt):
    model = Net(nnx.Rngs(0))
    tx = ro.riemannian_adamw(1e-3)
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)
    _, report = transplant(optimizer, tx, model)
    assert not report.begun_anew
    assert not report.dropped
    assert report == transplant(optimizer, tx, nnx.state(model, wrt))[1]


def test_a_model_of_nnx_stands_for_its_parameters():
    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    tx = ro.riemannian_adamw(1e-3)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    check(manifest(optimizer.opt_state), target(tx, model))
    chex.assert_trees_all_equal(ro.sharding.init(tx, model), tx.init(params))
    assert ro.sharding.state_shardings(tx, model) == ro.sharding.state_shardings(tx, params)


def test_multi_steps_is_taken_as_it_is():
    several = optax.MultiSteps(ro.riemannian_adamw(1e-3), 2)
    transformation = several.gradient_transformation()
    state = several.init(PARAMS)
    assert transplant(state, several, PARAMS)[1] == transplant(state, transformation, PARAMS)[1]
    assert target(several, PARAMS) == target(transformation, PARAMS)
    assert ro.describe(several, PARAMS) == ro.describe(transformation, PARAMS)


def test_a_target_of_no_parameters_is_refused():
    with pytest.raises(ValueError, match="params must be the parameters of tx, got None"):
        target(optax.adam(1e-3), None)

"""metric_at, metric_statistics and describe through what programs put around an optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

from . import training
from .test_annotated_nnx import Network, as_pure

ALPHA = 3.0


def chain():
    """E is 1 + 3 |g|, by definition."""
    return optax.chain(
        ro.compute_metric(ro.phi.activity(decay=0.0), ALPHA),
        ro.record_metric(),
        ro.scale_by_inverse_metric(),
        optax.scale(-training.RATE),
    )


def gradients_of(params, factor=1.0):
    return jax.tree.map(lambda g: factor * g, jax.grad(training.loss)(params))


def metric_of(gradients):
    return jax.tree.map(lambda g: 1 + ALPHA * np.abs(np.asarray(g)), gradients)


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def assert_statistics(statistics, expected):
    """Compare with the extremes and the mean of E of each leaf; names end in the names of the layers."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    assert len(statistics) == len(leaves)
    for (name, found), (path, metric) in zip(statistics.items(), leaves, strict=True):
        assert name.startswith(jax.tree_util.keystr(path))
        for key, value in (("min", metric.min()), ("mean", metric.mean()), ("max", metric.max())):
            np.testing.assert_allclose(found[f"metric_{key}"], value, rtol=1e-5)


def after_one_step(tx, params, gradients):
    state = tx.init(params)
    return jax.jit(tx.update)(gradients, state, params)[1]


@pytest.mark.parametrize("take", [lambda tree: tree, as_pure], ids=["as they are", "as_pure"])
def test_nnx_optimizer(take):
    """The model's state, the gradients and ``opt_state`` as NNX returns them, or without Variables."""
    tx = chain()
    model = Network(lambda initializer, names: initializer)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradients = nnx.grad(lambda m: training.mean_square(m(training.INPUTS)))(model)
    params = nnx.state(model, nnx.Param)
    metric = ro.metric_at(tx, take(gradients), take(optimizer.opt_state), take(params))
    expected = metric_of(gradients_of(training.weights()))
    assert_close(nnx.to_pure_dict(metric), expected)
    optimizer.update(model, gradients)
    assert_statistics(ro.metric_statistics(take(optimizer.opt_state), take(params)), expected)


def test_nnx_optimizer_is_described():
    model = Network(lambda initializer, names: initializer)
    description = ro.describe(chain(), nnx.state(model, nnx.Param))
    assert [leaf.shape for leaf in description.leaves] == [(16,), (8, 16), (8,), (16, 8)]
    assert all(leaf.metric_min == leaf.metric_max == 1 + ALPHA for leaf in description.leaves)


def test_partition():
    """The first layer has a metric and its record, the second none."""
    tx = optax.partition({"metric": chain(), "plain": optax.sgd(0.1)}, {"first": "metric", "second": "plain"})
    params = training.weights()
    gradients = gradients_of(params)
    expected = metric_of(gradients)
    metric = ro.metric_at(tx, gradients, tx.init(params), params)
    assert_close(metric["first"], expected["first"])
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(metric["second"]))
    statistics = ro.metric_statistics(after_one_step(tx, params, gradients), params)
    assert_statistics(statistics, {"first": expected["first"]})


def test_partition_with_a_record_in_each_part():
    tx = optax.partition({"a": chain(), "b": chain()}, {"first": "a", "second": "b"})
    params = training.weights()
    gradients = gradients_of(params)
    statistics = ro.metric_statistics(after_one_step(tx, params, gradients), params)
    assert_statistics(statistics, metric_of(gradients))


def test_partition_by_kind():
    tx = ro.partition_by_kind(chain(), bias=optax.sgd(0.1))
    params = training.weights()
    gradients = gradients_of(params)
    statistics = ro.metric_statistics(after_one_step(tx, params, gradients), params)
    kernels = {name: {"kernel": layer["kernel"]} for name, layer in metric_of(gradients).items()}
    assert_statistics(statistics, kernels)


def test_multi_steps():
    """At the step that updates, E is that of the mean of the gradients."""
    tx = optax.MultiSteps(chain(), 2).gradient_transformation()
    params = training.weights()
    state = after_one_step(tx, params, gradients_of(params, 3.0))
    expected = metric_of(gradients_of(params, 2.0))  # the mean of factors 3 and 1
    assert_close(ro.metric_at(tx, gradients_of(params), state, params), expected)
    _, state = jax.jit(tx.update)(gradients_of(params), state, params)
    assert_statistics(ro.metric_statistics(state, params), expected)


def test_apply_if_finite():
    tx = optax.apply_if_finite(chain(), 3)
    params = training.weights()
    gradients = gradients_of(params)
    state = after_one_step(tx, params, gradients_of(params, 2.0))
    assert_close(ro.metric_at(tx, gradients, state, params), metric_of(gradients))
    assert_statistics(ro.metric_statistics(state, params), metric_of(gradients_of(params, 2.0)))
    bad = jax.tree.map(lambda g: g * jnp.nan, gradients)
    with pytest.raises(ValueError, match="metric_at"):
        ro.metric_at(tx, bad, state, params)  # no step, so no metric


@pytest.mark.parametrize("inside", ["jit", "eager"])
def test_several_wrappers_at_once(inside):
    """MultiSteps around injected rates around a finite check: still the same E."""
    rule = optax.inject_hyperparams(lambda learning_rate: optax.chain(chain(), optax.scale(learning_rate)))
    tx = optax.MultiSteps(optax.apply_if_finite(rule(learning_rate=0.1), 3), 1).gradient_transformation()
    params = training.weights()
    gradients = gradients_of(params)
    state = tx.init(params)

    def read(gradients, state, params):
        return ro.metric_at(tx, gradients, state, params)

    read = jax.jit(read) if inside == "jit" else read
    if inside == "jit":
        with pytest.raises(ValueError, match="metric_at"):
            read(gradients, state, params)  # the branch is traced: said, not guessed
    else:
        assert_close(read(gradients, state, params), metric_of(gradients))

"""record_metric, metric_statistics and the guard."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

PARAMS = {"a": jnp.array([[0.0, 1.0], [-2.0, 5.0]]), "b": jnp.array([4.0, -1.0])}
NAN = float("nan")


def recording(*stages, quantiles=()):
    return optax.chain(*stages, ro.record_metric(quantiles), ro.scale_by_inverse_metric())


def test_record_metric_keeps_statistics_of_each_leaf():
    tx = recording(ro.compute_metric(ro.phi.maintenance_energy(), 1.0), quantiles=(0.0, 0.5))
    updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    statistics = ro.metric_statistics(state, PARAMS)
    for name, leaf in PARAMS.items():
        metric = 1 + np.abs(leaf)
        row = statistics[f"['{name}']"]
        expected = [metric.min(), metric.mean(), metric.max()]
        expected += [(1 / metric).min(), (1 / metric).mean(), (1 / metric).max()]
        np.testing.assert_allclose(list(row.values())[:6], expected, rtol=1e-6)
        np.testing.assert_allclose(row["metric_quantiles"], np.quantile(metric, [0, 0.5]), rtol=1e-6)
        np.testing.assert_allclose(updates[name], leaf / metric, rtol=1e-6)


def test_record_metric_counts_euclidean_leaves_as_one():
    mask = {"a": True, "b": False}
    tx = recording(optax.masked(ro.compute_metric(ro.phi.maintenance_energy(), 1.0), mask))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    statistics = ro.metric_statistics(state, PARAMS)
    assert set(statistics["['b']"].values()) == {1.0}
    assert statistics["['a']"]["metric_max"] == 6.0


def test_metric_statistics_says_what_it_needs():
    with pytest.raises(ValueError, match="holds no record of a metric"):
        ro.metric_statistics(optax.sgd(0.1).init(PARAMS), PARAMS)
    state = riemannian_sgd(0.1, record=True).init(PARAMS)
    with pytest.raises(ValueError, match="the record has 2 leaves, and number 1 of them is none of params"):
        ro.metric_statistics(state, {"a": PARAMS["a"]})
    with pytest.raises(ValueError, match=r"holds two records of leaf \['a'\]"):
        ro.metric_statistics((state, state), PARAMS)
    with pytest.raises(ValueError, match="quantiles"):
        ro.record_metric(quantiles=(1.5,))


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_skip_nonfinite_changes_neither_state_nor_weights(bad):
    tx = ro.skip_nonfinite(riemannian_sgd(0.1, momentum=0.9))
    update = jax.jit(tx.update)
    good = jax.tree.map(jnp.ones_like, PARAMS)
    poisoned = {"a": good["a"], "b": jnp.array([1.0, bad])}
    _, before = update(good, tx.init(PARAMS), PARAMS)
    state = before
    for count in range(1, 6):
        updates, state = update(poisoned, state, PARAMS)
        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(updates))
        assert int(state.total_notfinite) == count
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, before.inner_state)
    recovered, _ = update(good, state, PARAMS)
    expected, _ = update(good, before, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, recovered, expected)


def test_without_the_guard_a_nan_stays():
    tx = riemannian_sgd(0.1)
    state = tx.init(PARAMS)
    _, state = tx.update({"a": PARAMS["a"], "b": jnp.array([NAN, 1.0])}, state, PARAMS)
    updates, _ = tx.update(PARAMS, state, PARAMS)
    assert np.isnan(updates["b"][0])
    assert np.isfinite(updates["b"][1])


def test_a_huge_finite_gradient_does_not_freeze_its_weight_for_good():
    """The square of 1e38 overflows float32; the saturated mean square fades as any other does."""
    tx = optax.chain(ro.compute_metric(ro.phi.activity(decay=0.5), 1.0), ro.scale_by_inverse_metric())
    update = jax.jit(tx.update)
    params = jnp.zeros([1])
    _, state = update(jnp.array([1e38]), tx.init(params), params)
    for _ in range(200):
        tangent, state = update(jnp.ones([1]), state, params)
    np.testing.assert_allclose(tangent, [0.5], rtol=1e-5)

"""Competitive plasticity against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

STEPS = 300
START = {
    "a": np.random.default_rng(0).normal(size=(4, 5)),
    "b": np.random.default_rng(1).normal(size=10),
}
RATE, FRACTION = 0.1, 0.2


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def gradient(weights, step):
    noise = np.random.default_rng(100 + step)
    return {name: w + 0.5 * noise.normal(size=w.shape) for name, w in sorted(weights.items())}


def competitive(fraction, over, alpha=0.0):
    return optax.chain(
        ro.compute_metric(ro.phi.maintenance_energy(), alpha),
        ro.competitive_plasticity(fraction, over),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(RATE),
        ro.track_energy(),
    )


def test_by_default_each_leaf_competes_by_itself_as_published():
    gradients = {
        "layer": jnp.array([1.0, 2.0, 3.0, 4.0]),
        "steeper layer": 100 * jnp.array([1.0, 2.0, 3.0, 4.0]),
    }
    tx = optax.chain(
        ro.compute_metric(ro.phi.maintenance_energy(), alpha=0.0),
        ro.competitive_plasticity(0.25),
        ro.scale_by_inverse_metric(),
    )
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    assert [np.flatnonzero(u).tolist() for u in updates.values()] == [[3], [3]]


def largest(sizes, fraction):
    """Return which of a flat array are among the largest, by sorting."""
    wins = np.zeros(sizes.size, bool)
    wins[np.argsort(sizes)[::-1][: max(round(fraction * sizes.size), 1)]] = True
    return wins


def winners(sizes, over):
    if over == "tree":
        flat = largest(np.concatenate([s.ravel() for s in sizes.values()]), FRACTION)
        split = np.split(flat, np.cumsum([s.size for s in sizes.values()])[:-1])
        return {name: w.reshape(sizes[name].shape) for name, w in zip(sizes, split, strict=True)}
    if over == "leaf":
        return {name: largest(s.ravel(), FRACTION).reshape(s.shape) for name, s in sizes.items()}
    columns = [largest(column, FRACTION) for column in sizes["a"].T]
    return {"a": np.stack(columns, axis=1), "b": largest(sizes["b"], FRACTION)}


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("over", ["tree", "leaf", "neuron"])
def test_replays_descent_in_which_only_the_largest_steps_happen(over, alpha):
    """van Rossum and Pache 2024: of all abs(dw) only the largest are carried out."""
    params = {name: leaf.copy() for name, leaf in START.items()}
    expected, energy, moved = [], 0.0, []
    for step in range(STEPS):
        change = {n: RATE * g / (1 + alpha * abs(params[n])) for n, g in gradient(params, step).items()}
        wins = winners({name: abs(d) for name, d in change.items()}, over)
        for name in params:
            params[name] = params[name] - np.where(wins[name], change[name], 0.0)
            energy += np.sum(np.where(wins[name], abs(change[name]), 0.0))
        moved.append(sum(w.sum() for w in wins.values()))
        expected.append({name: leaf.copy() for name, leaf in params.items()})
    tx = competitive(FRACTION, over, alpha)
    weights = jax.tree.map(jnp.asarray, START)
    state, update = tx.init(weights), jax.jit(tx.update)
    for step in range(STEPS):
        gradients = jax.tree.map(jnp.asarray, gradient(jax.tree.map(np.asarray, weights), step))
        updates, state = update(gradients, state, weights)
        assert sum(int(jnp.sum(u != 0)) for u in jax.tree.leaves(updates)) == moved[step]  # the L0 count
        weights = optax.apply_updates(weights, updates)
        for name in START:
            np.testing.assert_allclose(weights[name], expected[step][name], rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(state, "TrackEnergyState").modification, energy, rtol=1e-5)
    assert set(moved) == {{"tree": 6, "leaf": 6, "neuron": 7}[over]}


def test_a_fraction_of_one_changes_nothing():
    gradients = jax.tree.map(jnp.asarray, START)
    everything, sgd = competitive(1.0, "tree"), optax.sgd(RATE)
    updates, _ = everything.update(gradients, everything.init(gradients), gradients)
    expected, _ = sgd.update(gradients, sgd.init(gradients))
    for name in START:
        np.testing.assert_array_equal(updates[name], expected[name])


def test_a_loser_has_a_rate_of_exactly_zero_and_nothing_is_nan():
    covectors = ro.compute_metric(ro.phi.maintenance_energy(), 1.0)
    params = jnp.array([1.0, 3.0])
    values, _ = covectors.update(jnp.array([0.1, 5.0]), covectors.init(params), params)
    values, _ = ro.competitive_plasticity(0.5).update(values, optax.EmptyState())
    np.testing.assert_array_equal(values.inverse_metric, [0.0, 0.25])
    np.testing.assert_array_equal(values.raise_index(), [0.0, 1.25])
    np.testing.assert_array_equal(values.to_frame()[0], 0.0)


def test_ties_move_together_and_a_nan_is_seen():
    tx = competitive(0.25, "tree")
    ties = jnp.array([1.0, -1.0, 0.5, 1.0])
    updates, _ = tx.update(ties, tx.init(ties), ties)
    np.testing.assert_array_equal(updates != 0, [True, True, False, True])
    broken = jnp.array([1.0, jnp.nan, 0.5, 1.0])
    updates, _ = tx.update(broken, tx.init(ties), ties)
    assert np.isnan(updates[1])
    nothing = jnp.zeros(4)
    np.testing.assert_array_equal(tx.update(nothing, tx.init(ties), ties)[0], nothing)


def test_mixed_precisions_compete_with_each_other():
    params = {
        "double": jnp.array([1.0 + 1e-12, 0.1]),
        "single": jnp.array([1.0, 0.2], jnp.float32),
        "half": jnp.array([0.5, 0.9], jnp.bfloat16),
    }
    tx = competitive(1 / 6, "tree")
    updates, _ = tx.update(params, tx.init(params), params)
    moved = {name: (u != 0).tolist() for name, u in updates.items()}
    assert moved == {"double": [True, False], "single": [False, False], "half": [False, False]}
    assert {name: u.dtype for name, u in updates.items()} == {name: p.dtype for name, p in params.items()}


def test_a_traced_fraction_is_accepted():
    gradients = jnp.arange(1.0, 11.0)

    @jax.jit
    def update(fraction):
        tx = competitive(fraction, "tree")
        return tx.update(gradients, tx.init(gradients), gradients)[0]

    for fraction, moved in ((0.3, 3), (0.71, 7), (0.0, 1)):
        assert jnp.sum(update(fraction) != 0) == moved


def test_leaves_without_a_metric_stand_aside():
    params = {"in": jnp.array([1.0, 2.0]), "out": jnp.array([0.1, 0.2])}
    mask = {"in": True, "out": False}
    tx = optax.chain(
        optax.masked(ro.compute_metric(ro.phi.maintenance_energy(), 0.0), mask),
        ro.competitive_plasticity(0.5),
        ro.scale_by_inverse_metric(),
    )
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["in"], [0.0, 2.0])
    np.testing.assert_array_equal(updates["out"], params["out"])


@pytest.mark.parametrize("over", ["tree", "leaf", "neuron"])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_matrices_are_not_gathered(over, axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    gradients = {
        "a": jnp.asarray(np.random.default_rng(2).normal(size=(8, 16))),
        "b": jnp.asarray(np.random.default_rng(3).normal(size=8)),
    }
    tx = competitive(0.25, over)
    expected, _ = tx.update(gradients, tx.init(gradients), gradients)
    sharded = {
        "a": jax.device_put(gradients["a"], NamedSharding(mesh, P("x", "y"))),
        "b": jax.device_put(gradients["b"], NamedSharding(mesh, P("x"))),
    }
    update = jax.jit(tx.update)
    updates, _ = update(sharded, tx.init(sharded), sharded)
    for name in gradients:
        np.testing.assert_array_equal(updates[name], expected[name])
        assert jax.typeof(updates[name]) == jax.typeof(sharded[name])
    compiled = update.lower(sharded, tx.init(sharded), sharded).compile().as_text()
    assert "all-gather" not in compiled
    assert "all-reduce" in compiled


@pytest.mark.parametrize("fraction", [0.0, 1.5, float("nan")])
def test_the_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match="fraction"):
        ro.competitive_plasticity(fraction)


def test_the_group_is_checked_and_a_metric_is_needed():
    with pytest.raises(ValueError, match="over"):
        ro.competitive_plasticity(0.5, over="layer")
    with pytest.raises(ValueError, match="no leaf carries a metric"):
        ro.competitive_plasticity(0.5).update(jnp.ones(2), optax.EmptyState())

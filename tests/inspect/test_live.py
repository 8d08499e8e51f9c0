"""The flat numbers for logs, beside what NumPy makes of E itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

LEVELS = tuple(np.linspace(0.05, 0.95, 19).tolist())


def recorded(quantiles, scale=1.0):
    random = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(scale * random.normal(size=[40, 5]), jnp.float32),
        "b": jnp.asarray(0.1 * random.normal(size=[30]), jnp.float32),
    }
    tx = optax.chain(
        ro.compute_metric(ro.phi.maintenance_energy(), alpha=1.0),
        ro.record_metric(quantiles),
        ro.scale_by_inverse_metric(),
    )
    _, state = tx.update(params, tx.init(params), params)
    return state, params, {name: 1 + np.abs(np.asarray(leaf)) for name, leaf in params.items()}


@pytest.mark.parametrize("threshold", [1.0, 1.05, 1.3, 2.0, 2.5, 99.0])
def test_the_share_of_rigid_weights_is_right_to_a_gap_of_the_quantiles(threshold):
    state, params, metric = recorded(LEVELS)
    scalars = ro.metric_scalars(state, params, quantiles=LEVELS, rigid_above=threshold)
    for name, values in metric.items():
        assert abs(scalars[f"rigid/{name}"] - (values > threshold).mean()) <= 0.05


def test_the_share_of_a_group_is_weighted_by_sizes():
    state, params, _ = recorded(LEVELS)
    each = ro.metric_scalars(state, params, quantiles=LEVELS)
    whole = ro.metric_scalars(state, params, groups=lambda path: "all", quantiles=LEVELS)
    expected = (200 * each["rigid/a"] + 30 * each["rigid/b"]) / 230
    np.testing.assert_allclose(whole["rigid/all"], expected, rtol=1e-6)
    assert each["rigid/b"] == 0


def test_without_quantiles_there_is_no_share_and_others_than_recorded_are_refused():
    state, params, _ = recorded(())
    assert not any(name.startswith("rigid") for name in ro.metric_scalars(state, params))
    with pytest.raises(ValueError, match="quantiles has 1 levels and the record has 0"):
        ro.metric_scalars(state, params, quantiles=(0.5,))


def test_skipped_steps_are_counted():
    tx, params = ro.skip_nonfinite(ro.riemannian_sgd(0.1)), jnp.ones(2)
    state = tx.init(params)
    bad = jnp.array([1.0, jnp.nan])
    for gradient in (bad, params, bad, bad):
        _, state = tx.update(gradient, state, params)
    assert ro.metric_scalars(state, params) == {"bad_steps": 3.0, "bad_steps_in_a_row": 2.0}


def test_a_basis_that_was_kept_is_counted():
    tx, params = ro.in_eigenbasis(optax.trace(0.9), update_every=1), {"w": jnp.ones([3, 2])}
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    assert ro.metric_scalars(state, params) == {"eigenbasis/updates": 1.0, "eigenbasis/kept_bases": 0.0}
    infinite = state._replace(right_factors=jax.tree.map(lambda x: x * jnp.inf, state.right_factors))
    _, state = tx.update(params, infinite, params)
    assert ro.metric_scalars(state, params)["eigenbasis/kept_bases"] >= 1.0


@pytest.mark.parametrize("updates", [1, 2, 6, 11])
@pytest.mark.parametrize("budget", [None, 1.0])
def test_refreshes_of_each_basis_are_counted(updates, budget):
    """The least of the changes that each basis has seen since the first update found it.

    The budget pays for one of the four sides at a time: each is due every four steps, not every two.
    """
    params = {"w": jnp.ones([3, 3]), "v": jnp.ones([3, 3])}
    tx = ro.in_eigenbasis(optax.trace(0.9), update_every=5 if budget is None else 2, refresh_budget=budget)
    period = 5 if budget is None else 4
    assert all(line.endswith(f"every {period}") for line in ro.describe(tx, params).bases)
    state, update = tx.init(params), jax.jit(tx.update)
    changes = np.zeros(4)
    for number in range(updates):
        keys = jax.random.split(jax.random.key(number), 2)
        gradients = {
            name: jax.random.normal(key, params[name].shape) for key, name in zip(keys, params, strict=True)
        }
        before = jax.tree.leaves((state.left_bases, state.right_bases))
        _, state = update(gradients, state, params)
        after = jax.tree.leaves((state.left_bases, state.right_bases))
        changes += [number > 0 and not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    scalars = ro.metric_scalars(state, params, update_every=period)
    assert scalars["eigenbasis/refreshes"] == changes.min() == (updates - 1) // period
    assert changes.max() <= changes.min() + 1
    assert "eigenbasis/refreshes" not in ro.metric_scalars(state, params)


@pytest.mark.parametrize("updates", [1, 5, 12, 30])
def test_refreshes_are_counted_while_bases_settle(updates):
    params, changes = {"w": jnp.ones([3, 3])}, 0
    tx = ro.riemannian_eigenbasis(0.1, update_every=4, settling_steps=11)
    state, update = tx.init(params), jax.jit(tx.update)
    for number in range(updates):
        before = state[0].left_bases["w"]
        _, state = update({"w": jax.random.normal(jax.random.key(number), [3, 3])}, state, params)
        changes += number > 0 and not np.array_equal(before, state[0].left_bases["w"])
    scalars = ro.metric_scalars(state, params, update_every=4, settling_steps=11)
    assert scalars["eigenbasis/refreshes"] == changes


RECORDERS = {
    "record": ro.riemannian_sgd(0.1, record=True),
    "energy": optax.chain(optax.sgd(0.1), ro.track_energy()),
    "guard": ro.skip_nonfinite(optax.sgd(0.1)),
    "eigenbasis": ro.in_eigenbasis(optax.trace(0.9)),
    "injected": optax.inject_hyperparams(optax.sgd)(0.1),
}


@pytest.mark.parametrize("name", RECORDERS)
def test_a_state_without_the_numbers_of_one_run_is_refused(name):
    tx, params = RECORDERS[name], {"w": jnp.ones([4, 3, 2])}
    members = jax.vmap(tx.init)(params)
    with pytest.raises(
        ValueError, match=r"the state is that of 4 runs at once, .*: read one of them, jax\.tree"
    ):
        ro.metric_scalars(members, params)
    one = jax.tree.map(lambda x: x[0], (members, params))
    assert ro.metric_scalars(*one) == ro.metric_scalars(tx.init(one[1]), one[1])
    with pytest.raises(
        TypeError, match=r"^metric_scalars makes Python numbers, and inside of jit or vmap there"
    ):
        jax.jit(lambda state: ro.metric_scalars(state, one[1]))(one[0])
    with pytest.raises(TypeError, match=r"^metric_scalars: the state is abstract"):
        ro.metric_scalars(jax.eval_shape(tx.init, one[1]), one[1])
    with pytest.raises(TypeError, match=r"^metric_scalars: state is the transformation: pass the state"):
        ro.metric_scalars(tx, one[1])
    with pytest.raises(TypeError, match=r"^metric_scalars: params must be the parameters, got None"):
        ro.metric_scalars(one[0], None)


def test_numbers_of_one_name_that_are_injected_twice_are_told_apart():
    def injected(rate):
        return optax.inject_hyperparams(optax.sgd)(rate)

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    groups = optax.partition({"slow": injected(0.125), "fast": injected(0.5)}, {"a": "slow", "b": "fast"})
    assert ro.metric_scalars(groups.init(params), params) == {
        "hyperparams/slow/learning_rate": 0.125,
        "hyperparams/fast/learning_rate": 0.5,
    }
    chain = optax.chain(injected(0.125), injected(0.5))
    assert ro.metric_scalars(chain.init(params), params) == {
        "hyperparams/0/learning_rate": 0.125,
        "hyperparams/1/learning_rate": 0.5,
    }
    outer = optax.inject_hyperparams(lambda scale: optax.chain(injected(0.125), optax.scale(scale)))(2.0)
    assert ro.metric_scalars(outer.init(params), params) == {
        "hyperparams/scale": 2.0,
        "hyperparams/learning_rate": 0.125,
    }


@pytest.mark.parametrize("levels", [(0.5, 7.0), (-0.1, 0.5), (0.5, float("nan")), 0.5])
def test_levels_that_are_none_are_refused(levels):
    state, params, _ = recorded((0.25, 0.75))
    with pytest.raises(TypeError, match="groups must be a function of a leaf's path"):
        ro.metric_scalars(state, params, groups="x")
    with pytest.raises(ValueError, match=r"quantiles must be levels in \[0, 1\]"):
        ro.metric_scalars(state, params, quantiles=levels)


def test_the_energy_of_groups_is_that_of_the_model():
    """Each part of a partition counts its own weights; by hand, 3 in all have moved by 1."""

    def make():
        return optax.chain(optax.sgd(1.0), ro.synaptic_caching(0.1, fading=0.0), ro.track_energy())

    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([10.0])}
    tx = optax.partition({"x": make(), "y": make()}, {"a": "x", "b": "y"})
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    scalars = ro.metric_scalars(state, params)
    assert scalars["energy/modification"] == scalars["caching/modification"] == 3
    assert scalars["energy/total_maintenance"] == scalars["energy/maintenance"] == 1 + 2 + 10  # one update
    assert scalars["caching/consolidations"] == 2  # one of each part


def test_of_a_flax_optimiser_the_model_names_the_leaves():
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    optimizer = nnx.Optimizer(model, ro.riemannian_sgd(0.1, record=True), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    expected = ro.metric_scalars(optimizer, nnx.state(model, nnx.Param))
    assert ro.metric_scalars(optimizer, model) == expected


def test_bases_that_were_kept_are_counted_in_nested_eigenbases():
    """``soap`` has one for each axis of a convolution: only the outermost was read."""
    params = {"kernel": jnp.ones([3, 3, 4, 5])}
    tx = ro.soap(0.1)
    _, state = tx.update(jax.tree.map(lambda x: x * jnp.nan, params), tx.init(params), params)
    assert ro.metric_scalars(state, params)["eigenbasis/kept_bases"] == 4
    assert ro.describe(tx, params, params, state).bases[-1].startswith("4 times")


def test_what_is_injected_and_no_number_is_left_out():
    def make(learning_rate, key):
        phi = ro.phi.permuted(ro.phi.activity(), key=key)
        return optax.chain(ro.scale_by_metric(phi), optax.scale_by_learning_rate(learning_rate))

    tx = optax.inject_hyperparams(make)(learning_rate=0.5, key=jax.random.key(0))
    params = {"a": jnp.ones(3)}
    assert ro.metric_scalars(tx.init(params), params) == {"hyperparams/learning_rate": 0.5}


def test_python_numbers_are_weights_too():
    tx, params = ro.riemannian_sgd(0.1, record=True), {"a": 1.0}
    assert ro.metric_scalars(tx.init(params), params)["E_mean/a"] == 1.0
    assert ro.describe(tx, params).leaves[0].shape == ()


def test_leaves_of_one_short_name_are_told_apart():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.full(2, 5.0)}}
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.maintenance_energy(), alpha=1.0, conformal=None, record=True)
    _, state = tx.update(params, tx.init(params), params)
    scalars = ro.metric_scalars(state, params)
    assert scalars["E_mean/['a/b']"] == 2.0
    assert scalars["E_mean/['a']['b']"] == 6.0

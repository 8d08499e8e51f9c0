"""The identification controls: what they keep of a metric and what they take away."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

from .replay import RTOL, STEPS, plain, walk


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


START = {
    "a": np.random.default_rng(0).normal(size=(4, 5)),
    "b": np.random.default_rng(1).normal(size=6),
}
CURVATURE = {"a": 3.0, "b": 0.5}


def gradient(weights, step):
    noise = np.random.default_rng(100 + step)
    return {
        name: CURVATURE[name] * w + (1 + np.arange(w.size).reshape(w.shape)) * noise.normal(size=w.shape)
        for name, w in sorted(weights.items())
    }


def values_over_time(phi, steps=5):
    state = phi.init(jax.tree.map(jnp.asarray, START))
    history = []
    for step in range(steps):
        gradients = jax.tree.map(jnp.asarray, gradient(START, step))
        values, state = phi.update(gradients, state, jax.tree.map(jnp.asarray, START))
        history.append(jax.tree.map(lambda v: np.asarray(v).ravel(), values))
    return {name: np.stack([values[name] for values in history]) for name in START}


def permutation(original, shuffled):
    """Return the index that turns one row of distinct values into the other."""
    order = np.argsort(original)
    return order[np.searchsorted(original[order], shuffled)]


def test_permuted_keeps_the_values_of_each_leaf_under_one_fixed_permutation():
    original = values_over_time(ro.phi.activity())
    shuffled = values_over_time(ro.phi.permuted(ro.phi.activity(), key=3))
    for name in START:
        index = permutation(original[name][0], shuffled[name][0])
        np.testing.assert_array_equal(np.sort(index), np.arange(index.size))  # a permutation
        assert np.mean(index == np.arange(index.size)) < 0.5
        for before, after in zip(original[name], shuffled[name], strict=True):
            np.testing.assert_array_equal(before[index], after)  # and the same at every update


def test_permuted_differs_by_key_and_by_leaf():
    phi = ro.phi.maintenance_energy()
    weights = {"a": jnp.arange(100.0), "b": jnp.arange(100.0)}
    one, other = (
        ro.phi.permuted(phi, key=key).update(weights, ro.phi.permuted(phi, key=key).init(weights), weights)[0]
        for key in (0, jax.random.key(1))
    )
    assert np.mean(one["a"] == one["b"]) < 0.2
    assert np.mean(one["a"] == other["a"]) < 0.2
    # Every position is as likely as any other: no correlation is left.
    assert abs(np.corrcoef(one["a"], np.arange(100.0))[0, 1]) < 0.3


def test_permuted_replays_a_shuffled_metric():
    """RMSprop whose second moments are those of other weights, by one permutation for good."""
    start, rate, alpha, decay = START["b"], 0.02, 2.0, 0.9

    def gradient_b(weights, step):
        return gradient({"b": weights}, step)["b"]

    phi = ro.phi.permuted(ro.phi.maintenance_energy(), key=5)
    weights = jnp.arange(1.0, 7.0)
    index = np.asarray(phi.update(weights, phi.init(weights), weights)[0]).astype(int) - 1
    assert np.any(index != np.arange(6))
    w, v, expected = start.copy(), np.zeros(6), [start.copy()]
    for step in range(STEPS):
        g = gradient_b(w, step)
        v = decay * v + (1 - decay) * g**2
        w = w - rate * g / (1 + alpha * np.sqrt(v / (1 - decay ** (step + 1)))[index])
        expected.append(w.copy())
    tx = plain(ro.phi.permuted(ro.phi.activity(decay=decay), key=5), alpha, rate)
    np.testing.assert_allclose(walk(tx, start, gradient_b), expected, rtol=RTOL)


def test_leaf_mean_replays_one_rate_per_leaf():
    rate, alpha, decay = 0.02, 2.0, 0.9
    w = {name: leaf.copy() for name, leaf in START.items()}
    v = {name: np.zeros(leaf.shape) for name, leaf in START.items()}
    expected = {name: [leaf.copy()] for name, leaf in START.items()}
    for step in range(STEPS):
        g = gradient(w, step)
        for name in START:
            v[name] = decay * v[name] + (1 - decay) * g[name] ** 2
            phi = np.sqrt(v[name] / (1 - decay ** (step + 1))).sum() / v[name].size
            w[name] = w[name] - rate / (1 + alpha * phi) * g[name]
            expected[name].append(w[name].copy())
    actual = walk(plain(ro.phi.leaf_mean(ro.phi.activity(decay=decay)), alpha, rate), START, gradient)
    for name in START:
        np.testing.assert_allclose(actual[name], expected[name], rtol=RTOL)


@pytest.mark.parametrize("over", ["tree", "leaf"])
def test_norm_matched_base_replays_momentum_at_the_length_of_the_metrics_step(over):
    rate, alpha, decay = 0.02, 2.0, 0.9
    w = {name: leaf.copy() for name, leaf in START.items()}
    v, m = ({name: np.zeros(leaf.shape) for name, leaf in START.items()} for _ in range(2))
    expected = {name: [leaf.copy()] for name, leaf in START.items()}
    for step in range(STEPS):
        g, metric_step, base_step = gradient(w, step), {}, {}
        for name in START:
            v[name] = decay * v[name] + (1 - decay) * g[name] ** 2
            phi = np.sqrt(v[name] / (1 - decay ** (step + 1)))
            metric_step[name] = rate * g[name] / (1 + alpha * phi)
            m[name] = 0.5 * m[name] + g[name]
            base_step[name] = m[name]
        for name in START:
            group = START if over == "tree" else [name]
            wanted = np.sqrt(sum(np.sum(metric_step[n] ** 2) for n in group))
            present = np.sqrt(sum(np.sum(base_step[n] ** 2) for n in group))
            w[name] = w[name] - base_step[name] * wanted / present
            expected[name].append(w[name].copy())
    base = optax.sgd(7.0, momentum=0.5)  # its rate cancels
    tx = ro.norm_matched_base(base, plain(ro.phi.activity(decay=decay), alpha, rate), over)
    actual = walk(tx, START, gradient)
    for name in START:
        np.testing.assert_allclose(actual[name], expected[name], rtol=RTOL)


def test_norm_matched_base_keeps_dtypes_and_a_zero_step():
    tx = ro.norm_matched_base(optax.sgd(0.0), ro.riemannian_sgd(0.1))
    params = jnp.ones(3, jnp.bfloat16)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates, jnp.zeros(3, jnp.bfloat16))


def test_norm_matched_base_passes_extra_arguments_to_both():
    seen = []

    def spy(updates, state, params=None, **extra_args):
        seen.append(extra_args)
        return updates, state

    part = optax.GradientTransformationExtraArgs(optax.init_empty_state, spy)
    tx = ro.norm_matched_base(part, part)
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=3)
    assert seen == [{"value": 3}, {"value": 3}]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.1, optax.sgd(0.1)), TypeError, "base"),
        ((optax.sgd(0.1), 0.1), TypeError, "reference"),
        ((optax.sgd(0.1), optax.sgd(0.1), "neuron"), ValueError, "over"),
    ],
)
def test_norm_matched_base_checks_its_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ro.norm_matched_base(*arguments)


@pytest.mark.parametrize("control", [ro.phi.permuted, ro.phi.leaf_mean])
def test_controls_take_a_phi(control):
    with pytest.raises(TypeError, match="phi must be"):
        control(ro.phi.activity)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("control", [ro.phi.permuted, ro.phi.leaf_mean])
def test_controls_of_sharded_matrices(control, axis_type):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    sharding = NamedSharding(mesh, P("x", "y"))
    gradients = jnp.asarray(np.random.default_rng(10).normal(size=(8, 16)))
    tx = plain(control(ro.phi.activity()))
    expected, _ = tx.update(gradients, tx.init(gradients))
    sharded = jax.device_put(gradients, sharding)
    for update in (tx.update, jax.jit(tx.update)):
        updates, state = update(sharded, tx.init(sharded))
        np.testing.assert_allclose(updates, expected, rtol=1e-12)
        assert jax.typeof(updates) == jax.typeof(sharded)
        updates, _ = update(sharded, state)
        assert jax.typeof(updates) == jax.typeof(sharded)

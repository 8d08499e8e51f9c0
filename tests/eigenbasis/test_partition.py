"""Partitions and masks inside of an eigenbasis: labels of single leaves, and labels of whole modules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

INPUTS = np.random.default_rng(0).standard_normal([20, 6])
OF_MODULES = {"a": "fast", "b": "slow"}
OF_LEAVES = {module: dict.fromkeys(("kernel", "bias"), label) for module, label in OF_MODULES.items()}
SLOW, FAST = optax.sgd(0.01, momentum=0.9), optax.sgd(0.05, momentum=0.9)
each_way_to_label = pytest.mark.parametrize("labels", [OF_MODULES, OF_LEAVES], ids=["modules", "leaves"])


def weights():
    rng = np.random.default_rng(1)
    return {m: {"kernel": rng.standard_normal([6, 6]), "bias": np.zeros(6)} for m in "ab"}


def loss(params):
    return sum(jnp.mean((INPUTS @ (part["kernel"] - 1) + part["bias"]) ** 2) for part in params.values())


def trained(tx, steps=12, **extra_args):
    params = jax.tree.map(jnp.asarray, weights())
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def turned(tx):
    return ro.in_eigenbasis(tx, update_every=3, refresh_together=None, state_dtype=jnp.float64)


def masks(labels):
    return [jax.tree.map(lambda own, label=label: own == label, labels) for label in ("fast", "slow")]


def frozen(labels):
    return optax.partition({"fast": FAST, "slow": optax.set_to_zero()}, labels)


def masked(labels):
    fast, slow = masks(labels)
    return optax.chain(optax.masked(FAST, fast), optax.masked(SLOW, slow))


def partitioned(labels):
    return optax.partition({"fast": FAST, "slow": SLOW}, labels)


@each_way_to_label
@pytest.mark.parametrize("make", [partitioned, masked, frozen])
def test_momentum_turns_with_the_basis(make, labels):
    """SGD with momentum moves alike in every basis, if what it remembers is turned when the basis is."""
    with jax.enable_x64(True):
        inside, outside = trained(turned(make(labels))), trained(make(labels))
    for found, expected in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_second_moments_of_a_module_turn_as_those_of_a_model():
    """Each module in an eigenbasis of its own is a partition by modules inside of one."""
    with jax.enable_x64(True):
        adam = optax.adam(0.02)
        parts = {"fast": adam, "slow": adam}
        inside = trained(turned(optax.partition(parts, OF_MODULES)))
        outside = trained(optax.partition({name: turned(tx) for name, tx in parts.items()}, OF_MODULES))
    for found, expected in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@each_way_to_label
def test_functions_of_the_weights_see_them_in_their_own_axes(labels):
    """Where ``optax.masked`` has left out others, the function is given no more than without a basis."""

    def scaled(updates, state, params=None, *, obj_fn):
        return jax.tree.map(lambda update: -0.01 * obj_fn(params) * update, updates), state

    reads = optax.GradientTransformationExtraArgs(optax.init_empty_state, scaled)
    with jax.enable_x64(True):
        tx = optax.partition({"fast": reads, "slow": SLOW}, labels)
        found, expected = (
            trained(each, steps=4, obj_fn=lambda params: jnp.abs(params["a"]["kernel"][0, 1]))
            for each in (turned(tx), tx)
        )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@each_way_to_label
def test_arguments_like_the_weights_reach_an_eigenbasis_of_some_of_them(labels):
    """Masks hide no part of an extra argument; by hand, what is left out has nothing to do with a part."""
    phi = ro.compute_metric(ro.phi.online_ewc(), alpha=1.0)
    inner = turned(optax.chain(phi, ro.scale_by_inverse_metric(), optax.scale(-0.01)))
    params = jax.tree.map(jnp.asarray, weights())
    gradients, examples = jax.grad(loss)(params), jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)

    def first(tx, params, gradients, examples):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(
                gradients, state, params, per_example_gradients=examples, task_boundary=True
            )
        return updates

    with jax.enable_x64(True):
        found = first(optax.partition({"fast": inner, "slow": SLOW}, labels), params, gradients, examples)
        expected = first(inner, {"a": params["a"]}, {"a": gradients["a"]}, {"a": examples["a"]})
    jax.tree.map(np.testing.assert_array_equal, found["a"], expected["a"])


def test_one_vector_of_all_weights_is_refused_by_name():
    with pytest.raises(ValueError, match=r"TraceState\.trace is one vector of all 84 weights.*flatten"):
        turned(optax.flatten(FAST)).init(weights())

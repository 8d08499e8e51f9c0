"""Training states of reinforcement learning and variational inference: dataclasses, scans, flat trees."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.training.train_state import TrainState
from jax.flatten_util import ravel_pytree

import riemann_optax as ro

from . import training

each_rule = pytest.mark.parametrize("rule", training.RULES)


@struct.dataclass
class AgentState:
    """What a program in the style of brax carries: the optimiser's state first."""

    optimizer_state: optax.OptState
    params: Any
    mean: jax.Array  # of the observations
    env_steps: jax.Array


def agent_state(tx, params):
    return AgentState(tx.init(params), params, jnp.zeros([8]), jnp.zeros([], jnp.int32))


def agent_step(tx, state, batch, axis_name=None):
    inputs, targets = batch
    gradients = jax.grad(training.loss)(state.params, inputs, targets)
    if axis_name is not None:
        gradients = jax.lax.pmean(gradients, axis_name)
    updates, optimizer_state = tx.update(gradients, state.optimizer_state, state.params)
    return state.replace(
        optimizer_state=optimizer_state,
        params=optax.apply_updates(state.params, updates),
        mean=state.mean + 0.1 * (inputs.mean(0) - state.mean),
        env_steps=state.env_steps + len(inputs),
    )


@each_rule
def test_replicas_under_pmap_scan_over_minibatches(rule):
    """Four devices, each with a quarter of the batch: gradients are averaged, so that replicas agree."""
    devices = 4
    tx = training.RULES[rule](training.RATE)

    def shard(x):
        return np.broadcast_to(x.reshape(devices, 1, -1, 8), (devices, training.STEPS, 64 // devices, 8))

    @functools.partial(jax.pmap, axis_name="i", devices=jax.devices()[:devices])
    def epoch(state, batches):
        def body(state, batch):
            return agent_step(tx, state, batch, "i"), ()

        return jax.lax.scan(body, state, batches)[0]

    state = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * devices), jax.jit(lambda p: agent_state(tx, p))(training.weights())
    )
    state = epoch(state, (shard(training.INPUTS), shard(training.TARGETS)))
    for replica in range(devices):
        one = jax.device_get(jax.tree.map(lambda leaf, r=replica: leaf[r], state.params))
        training.assert_trained_as_plainly(one, rule)
    assert state.env_steps.tolist() == [training.STEPS * 64 // devices] * devices


@each_rule
def test_agents_of_several_seeds_under_vmap_and_scan(rule):
    """Three agents at once have the weights of three agents one by one."""
    tx = training.RULES[rule](training.RATE)

    def start(seed):
        noise = 0.01 * jax.random.normal(jax.random.key(seed), [8, 16])
        params = training.weights()
        params["first"]["kernel"] += noise
        return params

    def run(seed):
        def body(state, _):
            return agent_step(tx, state, (training.INPUTS, training.TARGETS)), ()

        return jax.lax.scan(body, agent_state(tx, start(seed)), length=training.STEPS)[0].params

    together = jax.jit(jax.vmap(run))(jnp.arange(3))
    for seed in range(3):
        one = jax.tree.map(lambda leaf, s=seed: leaf[s], together)
        expected, _ = training.train_plainly(training.RULES[rule](training.RATE), start(seed))
        training.assert_moved_alike(one, expected, start(seed))


class CriticState(TrainState):
    """A training state with a slow copy of its weights, in the style of SBX."""

    target_params: Any = None


@each_rule
def test_train_state_with_a_target_network_and_donation(rule):
    tx = training.RULES[rule](training.RATE)
    state = CriticState.create(
        apply_fn=training.forward, params=training.weights(), target_params=training.weights(), tx=tx
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        gradients = jax.grad(lambda p: training.mean_square(state.apply_fn(p, training.INPUTS)))(state.params)
        state = state.apply_gradients(grads=gradients)
        target = optax.incremental_update(state.params, state.target_params, 0.5)
        return state.replace(target_params=target)

    path = []
    for _ in range(training.STEPS):
        old = state
        state = step(state)
        path.append(jax.tree.map(lambda leaf: np.array(leaf, copy=True), state.params))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    training.assert_trained_as_plainly(path[-1], rule)
    target = training.host_weights()
    for params in path:
        target = jax.tree.map(lambda t, p: 0.5 * t + 0.5 * p, target, params)
    for found, right in zip(jax.tree.leaves(state.target_params), jax.tree.leaves(target), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


ENSEMBLE = {
    "factored": lambda: ro.riemannian_sgd(
        training.RATE, phi=ro.phi.factored_activity(decay=0.97), conformal=None
    ),
    # By default the scale of the metric is that of the whole tree, which is what critics then share.
    "riemannian_adamw": lambda: ro.riemannian_adamw(training.RATE, conformal="neuron"),
    "in_eigenbasis": lambda: ro.in_eigenbasis(
        ro.riemannian_sgd(training.RATE, phi=ro.phi.factored_activity(decay=0.97), conformal=None),
        sides="smaller",
        update_every=2,
    ),
}


@pytest.mark.parametrize("rule", ENSEMBLE)
def test_critics_stacked_by_vmap_do_not_see_each_other(rule):
    """Two critics in one tree, kernels (2, in, out) and biases (2, out), train as two trees do."""

    def start(index):
        return jax.tree.map(lambda leaf: leaf * (1 - 0.5 * index), training.weights())

    def loss_of(index):
        return lambda params: (1 + 9 * index) * training.loss(params)  # one has larger gradients

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(0), start(1))

    def both(params):
        return sum(loss_of(i)(jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in range(2))

    found, _ = training.train_plainly(ENSEMBLE[rule](), stacked, both)
    for index in range(2):
        expected, _ = training.train_plainly(ENSEMBLE[rule](), start(index), loss_of(index))
        one = jax.tree.map(lambda leaf, i=index: leaf[i], found)
        training.assert_moved_alike(one, expected, start(index))


class Optim(NamedTuple):
    """The three functions of an optimiser for stochastic variational inference, in NumPyro's style."""

    init: Any
    update: Any
    get_params: Any


def three_functions(tx):
    """The state is (number of steps, (parameters, state of Optax))."""

    def init(params):
        return jnp.array(0), (params, tx.init(params))

    def update(gradients, state):
        count, (params, inner) = state
        updates, inner = tx.update(gradients, inner, params)
        return count + 1, (optax.apply_updates(params, updates), inner)

    return Optim(init, update, lambda state: state[1][0])


def evidence_bound(params):
    """Of a Gaussian guide with one location and one log scale per weight of the network, without sampling."""
    _, unravel = ravel_pytree(training.host_weights())
    fit = training.loss(unravel(params["auto_loc"]))
    spread = jnp.exp(params["auto_scale"])
    return fit + 1e-2 * jnp.mean(spread**2 - 2 * params["auto_scale"] + params["auto_loc"] ** 2)


def guide():
    locations, _ = ravel_pytree(training.host_weights())
    return {"auto_loc": locations, "auto_scale": jnp.linspace(-2.0, 1.0, locations.size)}


@each_rule
def test_flat_guide_in_a_scan_that_skips_what_is_not_finite(rule):
    """Step 1 has a NaN in its gradient: the whole state stays, as in NumPyro's stable update."""
    optim = three_functions(training.RULES[rule](training.RATE))

    def body(state, number):
        gradients = jax.grad(evidence_bound)(optim.get_params(state))
        gradients["auto_scale"] = jnp.where(number == 1, jnp.nan, gradients["auto_scale"])
        flat, _ = ravel_pytree(gradients)
        ok = jnp.isfinite(flat).all()
        return jax.lax.cond(ok, lambda g: optim.update(g, state), lambda g: state, gradients), ok

    state, ok = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(training.STEPS + 1)))(optim.init(guide()))
    assert ok.tolist() == [True, False, *[True] * (training.STEPS - 1)]
    assert state[0] == training.STEPS
    expected, _ = training.train_plainly(training.RULES[rule](training.RATE), guide(), evidence_bound)
    training.assert_moved_alike(optim.get_params(state), expected, guide())

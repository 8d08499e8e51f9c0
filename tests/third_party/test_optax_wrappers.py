"""Optax's own wrappers around the optimisers, each beside a loop that does by hand what the wrapper says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from . import training

each_rule = pytest.mark.parametrize("rule", training.RULES)


def make(rule):
    return training.RULES[rule](training.RATE)


def loop(tx, gradient, steps, params=None):
    """Train on ``gradient(params, step)``, compiled."""
    params = training.weights() if params is None else params
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state, number):
        updates, state = tx.update(gradient(params, number), state, params)
        return optax.apply_updates(params, updates), state

    for number in range(steps):
        params, state = step(params, state, number)
    return params, state


@each_rule
def test_multi_steps(rule):
    """Two halves of the batch, accumulated, are the whole batch."""

    def half(params, number):
        start = 32 * (number % 2)
        data = (jax.lax.dynamic_slice_in_dim(x, start, 32) for x in (training.INPUTS, training.TARGETS))
        return jax.grad(training.loss)(params, *data)

    tx = optax.MultiSteps(make(rule), 2).gradient_transformation()
    params, _ = loop(tx, half, 2 * training.STEPS)
    training.assert_trained_as_plainly(params, rule)


@each_rule
def test_apply_if_finite(rule):
    """A gradient with a NaN at step 2 leaves no trace."""

    def gradient(params, number):
        bad = jnp.where(number == 2, jnp.nan, 1.0)
        return jax.tree.map(lambda g: g * bad, jax.grad(training.loss)(params))

    params, state = loop(optax.apply_if_finite(make(rule), 3), gradient, training.STEPS + 1)
    assert state.total_notfinite == 1
    training.assert_trained_as_plainly(params, rule)


def two_optimisers(rule):
    """Train the first layer by a rule and the second by plain descent, each with a state of its own."""
    params = training.weights()
    first, second = make(rule), optax.sgd(training.RATE)
    states = first.init({"first": params["first"]}), second.init({"second": params["second"]})

    @jax.jit
    def step(params, states):
        gradients = jax.grad(training.loss)(params)
        moved, new = {}, []
        for name, tx, state in zip(("first", "second"), (first, second), states, strict=True):
            part = {name: params[name]}
            updates, state = tx.update({name: gradients[name]}, state, part)
            moved |= optax.apply_updates(part, updates)
            new.append(state)
        return moved, tuple(new)

    for _ in range(training.STEPS):
        params, states = step(params, states)
    return params


@each_rule
def test_partition(rule):
    """``optax.multi_transform`` is its older name."""
    parts = {"metric": make(rule), "plain": optax.sgd(training.RATE)}
    labels = {"first": "metric", "second": "plain"}
    params, _ = loop(optax.partition(parts, labels), lambda p, _: jax.grad(training.loss)(p), training.STEPS)
    training.assert_moved_alike(params, two_optimisers(rule))


@each_rule
def test_schedule_free(rule):
    """``z`` takes the steps, ``x`` averages it, gradients are those at ``y`` between both."""
    b1 = 0.9
    tx = optax.contrib.schedule_free(make(rule), learning_rate=training.RATE, b1=b1)
    params, state = loop(tx, lambda p, _: jax.grad(training.loss)(p), training.STEPS)
    average = optax.contrib.schedule_free_eval_params(state, params)

    base = make(rule)
    y = z = x = training.weights()
    base_state = jax.jit(base.init)(y)

    @jax.jit
    def base_step(y, base_state):
        return base.update(jax.grad(training.loss)(y), base_state, y)

    for number in range(training.STEPS):
        updates, base_state = base_step(y, base_state)
        z = optax.apply_updates(z, updates)
        x = jax.tree.map(lambda x, z, n=number: x + (z - x) / (n + 1), x, z)
        y = jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, x, z)
    training.assert_moved_alike(params, y, rtol=1e-4)
    training.assert_moved_alike(average, x, rtol=1e-4)


@each_rule
@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "alternating"])
def test_sharpness_aware_minimisation(opaque, rule):
    """The gradient is that of the worst place on a small sphere around the weights."""
    radius = 0.05
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
    tx = optax.contrib.sam(make(rule), climb, sync_period=2, opaque_mode=opaque)
    params = training.weights()
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state):
        extra = {"grad_fn": lambda p, _: jax.grad(training.loss)(p)} if opaque else {}
        updates, state = tx.update(jax.grad(training.loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(training.STEPS * (1 if opaque else 2)):
        params, state = step(params, state)

    def worst(params, _):
        gradient = jax.grad(training.loss)(params)
        scale = radius / optax.tree.norm(gradient)
        return jax.grad(training.loss)(jax.tree.map(lambda p, g: p + scale * g, params, gradient))

    expected, _ = loop(make(rule), worst, training.STEPS)
    training.assert_moved_alike(params, expected, rtol=1e-4)


@each_rule
def test_population_of_rates_and_seeds(rule):
    """Three rates from three starts under one vmap, the rates in the state, are three runs."""
    rates = np.array([0.5, 1.0, 2.0], np.float32) * training.RATE
    tx = optax.inject_hyperparams(training.RULES[rule])(learning_rate=training.RATE)
    factors = jnp.array([1.0, 0.9, 1.1])
    params = jax.vmap(lambda f: jax.tree.map(lambda p: f * p, training.weights()))(factors)
    starts = jax.device_get(params)
    state = jax.jit(jax.vmap(tx.init))(params)
    state.hyperparams["learning_rate"] = jnp.asarray(rates)

    @jax.jit
    @jax.vmap
    def step(params, state):
        updates, state = tx.update(jax.grad(training.loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(training.STEPS):
        params, state = step(params, state)
    np.testing.assert_array_equal(state.hyperparams["learning_rate"], rates)
    for member, rate in enumerate(rates):
        found, start = (jax.tree.map(lambda leaf, m=member: leaf[m], tree) for tree in (params, starts))
        expected, _ = training.train_plainly(
            training.RULES[rule](float(rate)), jax.tree.map(jnp.asarray, start)
        )
        training.assert_moved_alike(found, expected, start)


@each_rule
def test_hyperparameters_change_between_steps(rule):
    """A rate set from outside, as a reduction on a plateau does: two steps at one rate, three at a tenth."""
    tx = optax.inject_hyperparams(training.RULES[rule])(learning_rate=training.RATE)
    params = training.weights()
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(training.loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for number in range(training.STEPS):
        if number == 2:
            state.hyperparams["learning_rate"] = jnp.asarray(training.RATE / 10)
        params, state = step(params, state)
    schedule = optax.piecewise_constant_schedule(training.RATE, {2: 0.1})
    expected, _ = training.train_plainly(training.RULES[rule](schedule))
    training.assert_moved_alike(params, expected)

"""The published rules beside the metric, each against NumPy's replay of its paper's equations in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from benchmarks.continual.peers import penalties
from benchmarks.continual.peers.continual_backprop import continual_backprop
from benchmarks.continual.peers.shrink_and_perturb import shrink_and_perturb
from benchmarks.continual.peers.utility_gate import utility_based_descent
from tests.walk import walk

STEPS, SIZE = 300, 6


@pytest.fixture
def problem():
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(STEPS, SIZE)).astype(np.float32)
    return jnp.asarray(gradients), jnp.asarray(generator.normal(size=SIZE), jnp.float32)


def assert_follows(actual, expected):
    np.testing.assert_allclose(actual, np.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stage", "target"), [(penalties.l2, 0.0), (penalties.l2_init, 1.0)])
def test_pulls_are_part_of_the_gradient(problem, stage, target):
    gradients, start = problem
    actual = walk(optax.chain(stage(0.3), optax.sgd(0.05)), gradients, start)
    weight, expected = np.float64(start), []
    for gradient in np.float64(gradients):
        weight = weight - 0.05 * (gradient + 0.3 * (weight - target * np.float64(start)))
        expected.append(weight)
    assert_follows(actual, expected)


def test_shrinking_follows_the_step(problem):
    gradients, start = problem
    actual = walk(optax.chain(optax.sgd(0.05), shrink_and_perturb(0.02, 0.0, 0)), gradients, start)
    weight, expected = np.float64(start), []
    for gradient in np.float64(gradients):
        weight = (1 - 0.02) * (weight - 0.05 * gradient)
        expected.append(weight)
    assert_follows(actual, expected)


def test_perturbation_has_its_size_and_is_not_shrunk():
    start = jnp.zeros(4000)
    tx = shrink_and_perturb(0.5, 0.1, 3)
    updates, state = tx.update(start, tx.init(start), start)
    assert np.std(updates) == pytest.approx(0.1, rel=0.05)
    again, _ = tx.update(start, state, start)
    assert abs(np.corrcoef(updates, again)[0, 1]) < 0.1


def test_utility_gates_gradient_and_decay_does_not_pass_the_gate(problem):
    gradients, start = problem
    actual = walk(utility_based_descent(0.05, 0.0, 0.1, 0, decay=0.9), gradients, start)
    weight, utility, expected = np.float64(start), np.zeros(SIZE), []
    for gradient in np.float64(gradients):
        utility = 0.9 * utility + 0.1 * -gradient * weight
        largest = utility.max()
        scaled = utility / largest if largest > 0 else np.zeros(SIZE)
        gate = 1 - 1 / (1 + np.exp(-scaled))
        weight = weight - 0.05 * (2 * gate * gradient + 0.1 * weight)
        expected.append(weight)
    assert_follows(actual, expected)


def test_noise_of_the_utility_gate_is_gated():
    start = jnp.concatenate([jnp.ones(4000), jnp.zeros(4000)])
    tx = utility_based_descent(1.0, 0.1, 0.0, 0, decay=0.0)
    gradients = jnp.where(start == 1, -1.0, 0.0)  # utility 1 and utility 0
    updates, _ = tx.update(gradients, tx.init(start), start)
    gate = 2 * (1 - 1 / (1 + np.exp(-1.0)))
    assert np.std(updates[:4000]) == pytest.approx(0.1 * gate, rel=0.05)
    assert np.std(updates[4000:]) == pytest.approx(0.1, rel=0.05)


def test_elastic_weights_are_held_by_the_sum_of_what_is_left_of_each_fisher_information(problem):
    gradients, start = problem
    fishers = np.abs(np.random.default_rng(1).normal(size=(2, SIZE)))
    tx = optax.chain(penalties.ewc(0.5, memory=0.75), optax.sgd(0.05))
    params, state = start, tx.init(start)
    weight, old, fisher = np.float64(start), np.zeros(SIZE), np.zeros(SIZE)
    for step, gradient in enumerate(gradients[:60]):
        if step in (20, 40):
            state = ro.consolidate(state, params, jnp.asarray(fishers[step // 20 - 1], jnp.float32))
            fisher, old = 0.75 * fisher + fishers[step // 20 - 1], weight
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        weight = weight - 0.05 * (np.float64(gradient) + 0.5 * fisher * (weight - old))
        np.testing.assert_allclose(params, weight, rtol=1e-4, atol=1e-5)


def test_synaptic_intelligence_is_the_path_integral_of_the_tasks_own_gradient(problem):
    gradients, start = problem
    tx = optax.chain(penalties.synaptic_intelligence(0.5, damping=0.2), optax.sgd(0.05))
    params, state = start, tx.init(start)
    weight, old, omega = np.float64(start), np.zeros(SIZE), np.zeros(SIZE)
    path, began = np.zeros(SIZE), np.float64(start)
    for step, gradient in enumerate(np.float64(gradients[:60])):
        if step in (20, 40):
            omega = np.maximum(0, omega + path / ((weight - began) ** 2 + 0.2))
            path, began, old = np.zeros(SIZE), weight, weight
            state = ro.consolidate(state, params)
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        moved = weight - 0.05 * (gradient + 0.5 * omega * (weight - old))
        path, weight = path - gradient * (moved - weight), moved
        np.testing.assert_allclose(params, weight, rtol=1e-4, atol=1e-5)


def test_continual_backprop_replays_its_algorithm():
    generator = np.random.default_rng(2)
    sizes = (3, 5, 4, 2)
    params = [
        {
            "kernel": jnp.asarray(generator.normal(size=(m, n)), jnp.float32),
            "bias": jnp.asarray(generator.normal(size=n), jnp.float32),
        }
        for m, n in itertools.pairwise(sizes)
    ]
    tx = optax.chain(
        optax.sgd(0.1),
        # A constant draw, which NumPy can follow.
        continual_backprop(0.07, 3, jax.random.key(0), lambda key, shape: jnp.full(shape, 0.5), decay=0.9),
    )
    update = jax.jit(lambda g, s, p, h: tx.update(g, s, p, activations=h))
    state = tx.init(params)
    layers = jax.tree.map(np.float64, params)
    utilities, ages, dues = [[np.zeros(n) for n in sizes[1:3]] for _ in range(2)] + [[0.0, 0.0]]
    replaced = 0
    for _ in range(60):
        gradients = jax.tree.map(lambda p: generator.normal(size=p.shape).astype(np.float32), params)
        hidden = [np.maximum(generator.normal(size=(7, n)), 0).astype(np.float32) for n in sizes[1:3]]
        layers = jax.tree.map(lambda w, g: w - 0.1 * np.float64(g), layers, gradients)
        for number in range(2):
            outgoing = np.abs(layers[number + 1]["kernel"]).sum(1)
            use = np.abs(hidden[number]).mean(0) * outgoing
            utilities[number] = 0.9 * utilities[number] + 0.1 * use
            ages[number] = ages[number] + 1
            mature = np.flatnonzero(ages[number] > 3)
            dues[number] += 0.07 * len(mature)
            if dues[number] > 1 and len(mature):
                unbiased = utilities[number] / (1 - 0.9 ** ages[number])
                unit = mature[np.argmin(unbiased[mature])]
                layers[number]["kernel"][:, unit] = 0.5
                layers[number]["bias"][unit] = 0
                layers[number + 1]["kernel"][unit] = 0
                utilities[number][unit] = ages[number][unit] = 0
                dues[number] -= 1
                replaced += 1
        updates, state = update(gradients, state, params, hidden)
        params = optax.apply_updates(params, updates)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4), params, layers)
    assert replaced > 10

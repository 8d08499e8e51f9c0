"""Permuted digits: the Fisher information by definition, the penalty and the metric by hand, small runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from benchmarks.continual import consolidation, images, permuted
from benchmarks.continual.job import Job

DIGITS = images.digits()


def test_permutations_and_split_are_the_seed_own():
    first, again, other = (images.make_data(seed, 3, DIGITS) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.permutations, again.permutations)
    assert np.any(np.asarray(first.permutations) != np.asarray(other.permutations))
    assert np.all(np.sort(first.permutations) == np.arange(64))
    assert len(first.train_labels) + len(first.test_labels) == 1797
    assert first.train_inputs.max() == 1


def test_fisher_information_is_the_expected_squared_score():
    params = images.draw_network(jax.random.key(0))
    inputs = images.make_data(0, 1, DIGITS).train_inputs[:3]
    expected = jax.tree.map(np.zeros_like, params)
    for x in inputs:
        probabilities = jax.nn.softmax(images.logits(params, x))
        for label in range(10):
            score = jax.grad(images.loss)(params, x[None], jnp.array([label]))
            expected = jax.tree.map(lambda e, s, p=probabilities[label]: e + p * s**2 / 3, expected, score)
    actual = images.mean_fisher(params, inputs)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-9), actual, expected)


def test_reversed_fisher_is_the_mean_squared_score_under_negated_logits():
    params = images.draw_network(jax.random.key(0))
    data = images.make_data(0, 1, DIGITS)
    inputs, labels = data.train_inputs[:3], data.train_labels[:3]

    def loss(params, x, label):
        return jnp.log(jnp.sum(jnp.exp(-images.logits(params, x)))) + images.logits(params, x)[label]

    scores = [jax.grad(loss)(params, x, label) for x, label in zip(inputs, labels, strict=True)]
    expected = jax.tree.map(lambda *s: np.mean(np.square(s), axis=0), *scores)
    actual = images.reversed_fisher(params, inputs, jnp.asarray(labels))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-9), actual, expected)


def test_one_step_under_both_metrics_by_hand():
    """F = 6, lambda = 8: E = (1 + 0.5 * 8 * 6) times RMSprop's root of what the pull adds to the gradient."""
    tx = consolidation.IN_CLASSES["metric x activity"].make(
        {"rate": 0.5, "strength": 8.0}, lambda count: 0.25
    )
    params = jnp.array([1.0])
    _, state = tx.update(jnp.zeros(1), tx.init(params), params)
    state = ro.consolidate(state, params, jnp.array([6.0]))
    moved = jnp.array([1.5])
    update, _ = tx.update(jnp.array([2.0]), state, moved)
    pulled = 2 + 8 * 6 * 0.5
    root = np.sqrt(0.1 * pulled**2 / (1 - 0.9**2))  # of the mean square of 0 and this, as RMSprop has it
    metric = (1 + 0.5 * 8 * 6) * (root + 1e-4)
    np.testing.assert_allclose(update, -0.25 * pulled / metric, rtol=1e-5)


@pytest.mark.parametrize("name", ["metric", "EWC"])
def test_one_step_after_a_boundary_by_hand(name):
    """F = 6, lambda = 8, rate 0.5 of a schedule at 0.25: E = 1 + 0.5 * 8 * 6 for the metric, 1 without."""
    tx = consolidation.METHODS[name].make({"rate": 0.5, "strength": 8.0}, lambda count: 0.25)
    params = jnp.array([1.0])
    _, state = tx.update(jnp.zeros(1), tx.init(params), params)
    state = ro.consolidate(state, params, jnp.array([6.0]))
    moved = jnp.array([1.5])
    update, _ = tx.update(jnp.array([2.0]), state, moved)
    metric = 1 + 0.5 * 8.0 * 6.0 if name == "metric" else 1.0
    np.testing.assert_allclose(
        optax.apply_updates(moved, update), 1.5 - 0.25 * (2 + 8 * 6 * 0.5) / metric, rtol=1e-6
    )


def run(name, points, seeds=range(2)):
    return permuted.run(Job(name, points, seeds, DIGITS), tasks=2, epochs=1, batch=32)


def test_without_a_penalty_it_is_gradient_descent():
    """A strength of 0, with the metric and without, beside plain descent; all tasks can be learned."""
    plain = run("SGD", [{"rate": 0.5}])[0].by_seed
    assert plain["last task"].min() > 30  # one epoch, where guessing gives 10
    for name in ("metric", "EWC"):
        found = run(name, [{"rate": 0.5, "strength": 0.0}])[0].by_seed
        for measure, values in found.items():
            np.testing.assert_allclose(values, plain[measure], atol=1.0)


def test_points_and_seeds_are_independent_lanes():
    points = [{"rate": 0.5, "strength": strength} for strength in (2.0, 8.0)]
    both, alone = run("metric", points), run("metric", points[1:], range(1, 2))
    for measure, values in alone[0].by_seed.items():
        np.testing.assert_allclose(both[1].by_seed[measure][1:], values, atol=1.0)

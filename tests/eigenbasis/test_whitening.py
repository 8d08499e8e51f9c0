"""Whitened correlations: against NumPy in float64, and as an estimate of known factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro

from .correlated import DECAY, EVERY, error_of_left_bases, known_left_factors, refreshed, turned, walk


def eigenvalues(factor, basis, others, t):
    """Return running means over the entries of a row or column; their mean stands for what came before."""
    values = np.diag(basis.T @ factor @ basis) / others
    return values + DECAY**t * values.mean() / (1 - DECAY**t)


def replay(gradients):
    rows, columns = gradients[0].shape
    left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
    q_left, q_right = np.eye(rows), np.eye(columns)
    path = []
    for t, g in enumerate(gradients):
        size = np.sqrt(np.mean(g**2))
        a = eigenvalues(left, q_left, columns, t) if t else np.full(rows, size)
        b = eigenvalues(right, q_right, rows, t) if t else np.full(columns, size)
        left = DECAY * left + (1 - DECAY) * g @ q_right @ np.diag(1 / b) @ q_right.T @ g.T
        right = DECAY * right + (1 - DECAY) * g.T @ q_left @ np.diag(1 / a) @ q_left.T @ g
        if t == 0:
            q_left, q_right = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
        path.append(q_left @ np.tanh(q_left.T @ g @ q_right) @ q_right.T)
        if t and t % EVERY == 0:
            q_left, q_right = refreshed(left, q_left), refreshed(right, q_right)
    return np.stack(path)


@pytest.fixture(scope="module")
def gradients():
    random = np.random.default_rng(0)
    mixed = random.standard_normal((5, 5)), np.diag(3.0 ** np.arange(4)) @ random.standard_normal((4, 4))
    return np.stack([mixed[0] @ random.standard_normal((5, 4)) @ mixed[1] for _ in range(14)])


def test_factors_are_fitted_as_the_equations_say(gradients):
    """Fourteen updates with four refreshes, of one matrix and of a stack of it and another."""
    expected = replay(gradients)
    both = np.stack([gradients, 2 * gradients[::-1]], axis=1)
    with jax.enable_x64(True):
        path, _ = walk(turned("whitened_gradients"), jnp.asarray(gradients), jnp.zeros([5, 4]))
        np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)
        path, _ = walk(turned("whitened_gradients", axes="scanned"), jnp.asarray(both), jnp.zeros([2, 5, 4]))
    np.testing.assert_allclose(path[:, 0], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(path[:, 1], replay(2 * gradients[::-1]), rtol=1e-7, atol=1e-9)


def test_a_side_alone_has_plain_correlations(gradients):
    with jax.enable_x64(True):
        paths = [
            walk(turned(correlate, sides="smaller"), jnp.asarray(gradients), jnp.zeros([5, 4]))[0]
            for correlate in ("gradients", "whitened_gradients")
        ]
    np.testing.assert_allclose(*paths, rtol=1e-9, atol=1e-12)


def test_it_estimates_known_factors_better_than_plain_correlations():
    """Gradients N(0, A (x) B), of 16 problems: the largest columns drown the others, unless whitened."""
    a = known_left_factors()
    root_a, root_b = np.linalg.cholesky(a), np.diag(3.0 ** -np.arange(8.0))
    gradients = root_a @ np.random.default_rng(2).standard_normal((150, 16, 6, 8)) @ root_b

    def error(correlate):
        return error_of_left_bases(turned(correlate, decay=0.98, axes="scanned"), gradients, a)

    assert error("whitened_gradients") < 0.6 * error("gradients")


def test_the_alias_refuses_a_side_alone_and_describe_counts_the_products():
    with pytest.raises(ValueError, match=r'sides="smaller".*give sides="both"'):
        ro.riemannian_eigenbasis(0.01, correlate="whitened_gradients")
    params = jnp.ones([10, 20])
    lines = [
        str(ro.describe(ro.riemannian_eigenbasis(0.01, sides="both", correlate=correlate), params))
        for correlate in ("gradients", "whitened_gradients")
    ]
    # Of 200 weights and a side of 10: 6 * 10 * 200, and 2 * 10 * 200 + 2 * 10**3 more per matrix whitened.
    assert "12 kFLOP an update" in lines[0]
    assert "18 kFLOP an update" in lines[1]

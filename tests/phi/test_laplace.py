"""A first task of no importance, then boundaries: the Laplace rule by itself and in a Kronecker basis."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

STEPS, TASKS = 300, (100, 190)  # the updates that are the first of a new task
EXAMPLES, VARIANCE, RATE, DECAY = 20.0, 0.4, 0.01, 0.8


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def correlated(size, seed):
    factor = np.random.default_rng(seed).normal(size=(size, size))
    return factor @ factor.T / size + 0.2 * np.eye(size)


def gradient(w, step):
    """Of a quadratic whose Hessian is a Kronecker product, under noise."""
    task = sum(step >= first for first in TASKS)
    target = np.random.default_rng(10 + task).normal(size=(3, 2))
    return correlated(3, 0) @ (w - target) @ correlated(2, 1) + 0.3 * np.random.default_rng(step).normal(
        size=(3, 2)
    )


def laplace():
    return optax.chain(
        ro.compute_metric(ro.phi.laplace(examples_per_task=EXAMPLES, decay=DECAY), alpha=VARIANCE),
        ro.scale_by_inverse_metric(),
        optax.scale(EXAMPLES * VARIANCE),
        ro.add_anchored_weights(1.0, ro.anchor.task_boundary_weights()),
        optax.scale_by_learning_rate(RATE),
    )


def replay(left, right):
    """Natural continual learning with a precision that is diagonal in the basis of the columns of both.

    The importance is a running mean that has forgotten the first updates, in which the basis still settles.
    """
    w = left.T @ np.ones((3, 2)) @ right
    precision, mode, seen, path = np.full((3, 2), 1 / VARIANCE), None, [], []
    for step in range(STEPS):
        if step in TASKS:
            ages = np.arange(len(seen))[::-1]
            precision = precision + EXAMPLES * np.average(seen, axis=0, weights=DECAY**ages)
            mode, seen = w, []
        g = left.T @ gradient(left @ w @ right.T, step) @ right
        seen.append(g**2)
        w = w - RATE * (EXAMPLES * g / precision + (0 if mode is None else w - mode))
        path.append(left @ w @ right.T)
    return path


def follow(tx):
    params, path = jnp.ones((3, 2)), []
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(STEPS):
        boundary = jnp.asarray(step in TASKS)
        updates, state = update(
            jnp.asarray(gradient(np.asarray(params), step)), state, params, task_boundary=boundary
        )
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return path, state


def test_a_first_task_of_no_importance_is_gradient_descent_then_each_boundary_adds_its_task():
    path, _ = follow(laplace())
    np.testing.assert_allclose(path, replay(np.eye(3), np.eye(2)), rtol=1e-9)


def test_in_a_kronecker_basis_it_is_the_kronecker_factored_form():
    """Kao 2021 with the eigenvectors of both factors; the eigenvalues are measured, not multiplied."""
    path, state = follow(ro.in_eigenbasis(laplace(), update_every=STEPS + 1))
    left, right = (np.asarray(b).reshape(n, n) for b, n in ((state.left_bases, 3), (state.right_bases, 2)))
    assert abs(left[0, 1]) > 0.05  # not the standard basis
    np.testing.assert_allclose(path, replay(left, right), rtol=1e-7)
    diagonal, _ = follow(laplace())
    np.testing.assert_allclose(path[: TASKS[0]], diagonal[: TASKS[0]], rtol=1e-9)
    assert abs(path[-1] - diagonal[-1]).max() > 0.05

"""Shapes of real networks, gradients on them, and a few steps, compiled as users do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .. import as_users

STEPS = 3
RATE = 0.1
DECAY = 0.9
# The shapes at which the compiler failed, and drawn ones (odd sides among them).
FAILED = [(100, 50), (128, 48), (256, 48), (128, 32), (96, 48)]
DRAWN = [tuple(int(n) for n in row) for row in np.random.default_rng(2).integers(17, 521, (3, 2))]
SOME = [(100, 50), (96, 48), DRAWN[0]]


def size(shape):
    return "x".join(map(str, shape))


some_shapes = pytest.mark.parametrize("shape", SOME, ids=size)


def assert_near(found, expected, tolerance=2e-4, message=""):
    """Compare to a share of the largest number: what is nearly 0 is a difference of larger ones."""
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit, err_msg=message)


def gradients_of(shape, steps=STEPS):
    """Gradients whose rows and columns differ in size, different at each step."""
    random = np.random.default_rng(1)
    rows, columns = np.geomspace(0.1, 3, shape[0])[:, None], np.geomspace(1, 5, shape[1])
    return [random.standard_normal(shape) * rows * columns for _ in range(steps)]


def biases_of(shape):
    return [np.random.default_rng(3).standard_normal(shape[1]) * (1 + t) for t in range(STEPS)]


def run(tx, shape):
    """Return the updates and states of a few compiled steps on a kernel and a bias, in NumPy."""
    params = {"bias": jnp.zeros(shape[1]), "kernel": jnp.ones(shape)}
    state = as_users.jit(tx.init)(params)
    update = as_users.jit(tx.update)
    history = []
    for kernel, bias in zip(gradients_of(shape), biases_of(shape), strict=True):
        gradients = {"bias": jnp.asarray(bias, jnp.float32), "kernel": jnp.asarray(kernel, jnp.float32)}
        updates, state = update(gradients, state, params)
        history.append((jax.tree.map(np.asarray, updates), state))
    return history

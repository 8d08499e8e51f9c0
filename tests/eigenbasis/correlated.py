"""What the tests of all correlations share: an inner that knows no signs, paths, and known factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro

from .. import as_users

DECAY, EVERY = 0.8, 3
# Odd and smooth: neither signs nor order of the eigenvectors matter, nor entries that are rounding errors.
TANH = optax.stateless(lambda updates, params: jax.tree.map(jnp.tanh, updates))


def turned(correlate, **options):
    """Return tanh in eigenbases of these correlations."""
    options = {"decay": DECAY, "update_every": EVERY, "refresh_together": None} | options
    return ro.in_eigenbasis(TANH, correlate=correlate, **options)


def walk(tx, gradients, like):
    """Return the updates at each of some gradients, and the last state."""

    def step(state, gradient):
        updates, state = tx.update(gradient, state)
        return state, updates

    return as_users.jit(lambda gradients: jax.lax.scan(step, tx.init(like), gradients)[::-1])(gradients)


def refreshed(factor, basis):
    """Return a basis after one power iteration."""
    order = np.argsort(-np.diag(basis.T @ factor @ basis))
    return np.linalg.qr(factor @ basis[:, order])[0]


def known_left_factors():
    """Return covariances of rows ``[16, 6, 6]``, whose eigenvalues lie a factor of two apart."""
    bases = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 6, 6)))[0]
    return bases @ np.diag(2.0 ** np.arange(6)) @ bases.mT


def error_of_left_bases(tx, gradients, known):
    """Return the share of known covariances off the diagonal in bases found from ``[n, 16, 6, 8]``."""
    _, state = walk(tx, jnp.asarray(gradients, jnp.float32), jnp.zeros([16, 6, 8]))
    bases = np.asarray(state.left_bases)[:, 0]
    inside = bases.mT @ known @ bases
    off = inside - inside * np.eye(6)
    return np.mean(np.linalg.norm(off, axis=(-2, -1)) / np.linalg.norm(known, axis=(-2, -1)))

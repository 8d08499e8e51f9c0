"""Single weights of an array that stay at zero, as in a sparse network: what docs/limits.md says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro

STEPS = 3000


def problem():
    """Return a quadratic loss of a matrix and which of its weights may move."""
    factor, slope = (
        jax.random.normal(jax.random.key(0), (40, 8)),
        jax.random.normal(jax.random.key(1), (8, 5)),
    )
    curvature = factor.T @ factor / 40 + 0.5 * jnp.eye(8)
    moves = jax.random.bernoulli(jax.random.key(2), 0.5, slope.shape)
    return curvature, slope, moves


def minimum_of_what_moves(curvature, slope, moves):
    """Return the minimum over the weights that move, from the normal equations of each column in float64."""
    minimum = np.zeros(slope.shape)
    for column, rows in enumerate(np.asarray(moves).T):
        inside = np.asarray(curvature, np.float64)[np.ix_(rows, rows)]
        minimum[rows, column] = np.linalg.solve(inside, np.asarray(slope, np.float64)[rows, column])
    return minimum


def trained(before, after):
    curvature, slope, moves = problem()
    keep = optax.stateless(lambda tree, _: tree * moves)
    tx = optax.chain(
        *[keep] * before,
        ro.riemannian_eigenbasis(optax.cosine_decay_schedule(0.01, STEPS), weight_decay=0.0),
        *[keep] * after,
    )

    def step(carry, _):
        weights, state = carry
        updates, state = tx.update(curvature @ weights - slope, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros(slope.shape)
    (weights, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, STEPS)
    return weights


def test_a_mask_before_and_behind_an_eigenbasis_finds_the_minimum_of_what_moves():
    expected = minimum_of_what_moves(*problem())
    np.testing.assert_allclose(trained(before=True, after=True), expected, atol=2e-3)
    assert np.abs(trained(before=False, after=True) - expected).max() > 0.05  # which the pages warn of

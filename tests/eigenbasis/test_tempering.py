"""Correlations of tempered gradients: NumPy in float64, and the known eigenvectors of heavy tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .correlated import DECAY, EVERY, error_of_left_bases, known_left_factors, refreshed, turned, walk


def tempered(g):
    """Return g with each column over the root of its Euclidean length; a column of zeros stays."""
    sizes = np.linalg.norm(g, axis=0)
    return g / np.sqrt(np.where(sizes > 0, sizes, 1))


def replay(gradients, sides=("left", "right")):
    rows, columns = gradients[0].shape
    factors = {"left": np.zeros((rows, rows)), "right": np.zeros((columns, columns))}
    bases = {"left": np.eye(rows), "right": np.eye(columns)}
    path = []
    for t, g in enumerate(gradients):
        lines = {"left": tempered(g), "right": tempered(g.T)}
        for side in sides:
            factors[side] = DECAY * factors[side] + (1 - DECAY) * lines[side] @ lines[side].T
            if t == 0:
                bases[side] = np.linalg.eigh(factors[side])[1]
        q_left, q_right = bases["left"], bases["right"]
        path.append(q_left @ np.tanh(q_left.T @ g @ q_right) @ q_right.T)
        for side in sides if t and t % EVERY == 0 else ():
            bases[side] = refreshed(factors[side], bases[side])
    return np.stack(path)


@pytest.fixture(scope="module")
def gradients():
    """Return gradients whose columns differ by a factor of 27."""
    random = np.random.default_rng(0)
    left, right = random.standard_normal((5, 5)), np.diag(3.0 ** np.arange(4))
    return np.stack([left @ random.standard_normal((5, 4)) @ right for _ in range(14)])


@pytest.mark.parametrize(
    ("sides", "which"),
    [("both", ("left", "right")), ("smaller", ("right",)), ("input", ("left",)), ("output", ("right",))],
)
def test_factors_are_as_the_equations_say(gradients, sides, which):
    """Fourteen updates with four refreshes, of one matrix and of a stack of it and another."""
    expected = replay(gradients, which)
    both = np.stack([gradients, 2 * gradients[::-1]], axis=1)
    with jax.enable_x64(True):
        path, _ = walk(turned("tempered_gradients", sides=sides), jnp.asarray(gradients), jnp.zeros([5, 4]))
        np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)
        path, _ = walk(
            turned("tempered_gradients", sides=sides, axes="scanned"), jnp.asarray(both), jnp.zeros([2, 5, 4])
        )
    np.testing.assert_allclose(path[:, 0], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(path[:, 1], replay(2 * gradients[::-1], which), rtol=1e-7, atol=1e-9)


def test_the_columns_of_a_block_are_tempered_in_the_block(gradients):
    """Rows in blocks of two, where each is a matrix of its own."""
    even = gradients[:, :4]
    with jax.enable_x64(True):
        options = {"max_size": 2, "block_size": 2, "sides": "input"}
        path, _ = walk(turned("tempered_gradients", **options), jnp.asarray(even), jnp.zeros([4, 4]))
    expected = np.concatenate([replay(even[:, at : at + 2], ("left",)) for at in (0, 2)], axis=1)
    np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)


def test_a_turn_of_the_rows_turns_the_path(gradients):
    """Lengths of columns do not change, so a side alone does not depend on the axes it is given in."""
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    with jax.enable_x64(True):
        here, there = (
            walk(turned("tempered_gradients", sides="input"), jnp.asarray(g), jnp.zeros([5, 4]))[0]
            for g in (gradients, q @ gradients)
        )
    np.testing.assert_allclose(there, q @ np.asarray(here), rtol=1e-7, atol=1e-9)


def test_heavy_tails_do_not_spoil_the_eigenvectors():
    """Columns of N(0, A), each times a random length, have the eigenvectors of A.

    The variance of a mean of squares goes as E l^4 / (E l^2)^2, of sizes as E l^2 / (E l)^2: of log-normal
    lengths e^4 and e, so that errors differ by a factor of up to e^1.5.
    """
    a, random = known_left_factors(), np.random.default_rng(2)
    lengths = np.exp(random.standard_normal((100, 16, 1, 8)))
    gradients = lengths * (np.linalg.cholesky(a) @ random.standard_normal((100, 16, 6, 8)))

    def error(correlate):
        tx = turned(correlate, decay=0.98, sides="input", axes="scanned")
        return error_of_left_bases(tx, gradients, a)

    assert error("tempered_gradients") < 0.6 * error("gradients")

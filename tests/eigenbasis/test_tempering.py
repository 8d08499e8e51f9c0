"""Correlations of tempered gradients: NumPy in float64, and the known eigenvectors of heavy tails."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import riemann_optax as ro

from .. import as_users

DECAY, EVERY = 0.8, 3
# Odd and smooth: neither signs nor order of the eigenvectors matter, nor entries that are rounding errors.
TANH = optax.stateless(lambda updates, params: jax.tree.map(jnp.tanh, updates))


def turned(inner=TANH, correlate="tempered_gradients", **options):
    options = {"decay": DECAY, "update_every": EVERY, "refresh_together": None} | options
    return ro.in_eigenbasis(inner, correlate=correlate, **options)


def walk(tx, gradients, like):
    def step(state, gradient):
        updates, state = tx.update(gradient, state)
        return state, updates

    return as_users.jit(lambda gradients: jax.lax.scan(step, tx.init(like), gradients)[::-1])(gradients)


def tempered(g):
    """Return g with each column over the root of its root mean square; a column of zeros stays."""
    sizes = np.sqrt(np.mean(g**2, axis=0))
    return g / np.sqrt(np.where(sizes > 0, sizes, 1))


def refreshed(factor, basis):
    order = np.argsort(-np.diag(basis.T @ factor @ basis))
    return np.linalg.qr(factor @ basis[:, order])[0]


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
        path, _ = walk(turned(sides=sides), jnp.asarray(gradients), jnp.zeros([5, 4]))
        np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)
        path, _ = walk(turned(sides=sides, axes="scanned"), jnp.asarray(both), jnp.zeros([2, 5, 4]))
    np.testing.assert_allclose(path[:, 0], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(path[:, 1], replay(2 * gradients[::-1], which), rtol=1e-7, atol=1e-9)


def test_the_columns_of_a_block_are_tempered_in_the_block(gradients):
    """Rows in blocks of two, where each is a matrix of its own."""
    even = gradients[:, :4]
    with jax.enable_x64(True):
        options = {"max_size": 2, "block_size": 2, "sides": "input"}
        path, _ = walk(turned(**options), jnp.asarray(even), jnp.zeros([4, 4]))
    expected = np.concatenate([replay(even[:, at : at + 2], ("left",)) for at in (0, 2)], axis=1)
    np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)


def test_bases_do_not_depend_on_units(gradients):
    found = []
    with jax.enable_x64(True):
        for scale in (1.0, 1e-6):
            _, state = walk(turned(), jnp.asarray(scale * gradients), jnp.zeros([5, 4]))
            found.append((state.left_bases, state.right_bases))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), *found)


def test_a_turn_of_the_rows_turns_the_path(gradients):
    """Lengths of columns do not change, so a side alone does not depend on the axes it is given in."""
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    with jax.enable_x64(True):
        here, there = (
            walk(turned(sides="input"), jnp.asarray(g), jnp.zeros([5, 4]))[0]
            for g in (gradients, q @ gradients)
        )
    np.testing.assert_allclose(there, q @ np.asarray(here), rtol=1e-7, atol=1e-9)


def test_heavy_tails_do_not_spoil_the_eigenvectors():
    """Columns of N(0, A), each times a random length, have the eigenvectors of A.

    The variance of a mean of squares goes as E l^4 / (E l^2)^2, of sizes as E l^2 / (E l)^2: of log-normal
    lengths e^4 and e, so that errors differ by a factor of up to e^1.5.
    """
    random = np.random.default_rng(1)
    q = np.linalg.qr(random.standard_normal((16, 6, 6)))[0]
    a = q @ np.diag(2.0 ** np.arange(6)) @ q.mT
    lengths = np.exp(random.standard_normal((100, 16, 1, 8)))
    gradients = lengths * (np.linalg.cholesky(a) @ random.standard_normal((100, 16, 6, 8)))

    def error(correlate):
        tx = turned(correlate=correlate, decay=0.98, sides="input", axes="scanned")
        _, state = walk(tx, jnp.asarray(gradients, jnp.float32), jnp.zeros([16, 6, 8]))
        found = np.asarray(state.left_bases)[:, 0]
        in_basis = found.mT @ a @ found
        off = in_basis - in_basis * np.eye(6)
        return np.mean(np.linalg.norm(off, axis=(-2, -1)) / np.linalg.norm(a, axis=(-2, -1)))

    assert error("tempered_gradients") < 0.6 * error("gradients")


def test_gradients_of_zero_come_first_and_nothing_breaks(gradients):
    with_zeros = np.concatenate([np.zeros([2, 5, 4]), gradients, np.zeros([1, 5, 4])])
    with_zeros[5, :, 1] = 0  # a silent column
    tx = turned(state_dtype=jnp.bfloat16, update_every=1)
    path, state = walk(tx, jnp.asarray(with_zeros, jnp.float32), jnp.zeros([5, 4]))
    assert np.all(np.isfinite(path))
    assert state.kept_bases == 0
    np.testing.assert_array_equal(path[:2], 0)
    q = np.asarray(state.left_bases[0], np.float64)
    np.testing.assert_allclose(q.T @ q, np.eye(5), atol=0.02)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [("rows", "columns"), (("rows", "columns"), None)])
def test_on_a_mesh_it_is_what_it_is_on_one_device(kind, spec):
    tx = turned(update_every=2)
    gradients = np.random.default_rng(0).standard_normal((5, 16, 16))

    def train(put):
        state, update = as_users.jit(tx.init)(put(jnp.ones([16, 16]))), as_users.jit(tx.update)
        for gradient in gradients:
            updates, state = update(put(jnp.asarray(gradient)), state)
        return np.asarray(updates)

    with jax.enable_x64(True):
        alone = train(lambda array: array)
        mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            spread = train(lambda array: jax.device_put(array, sharding))
    np.testing.assert_allclose(spread, alone, rtol=1e-9, atol=1e-11)

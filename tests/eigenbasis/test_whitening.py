"""Whitened correlations: against NumPy in float64, in other units, and as an estimate of known factors."""

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


def turned(inner=TANH, **options):
    options = {"decay": DECAY, "update_every": EVERY, "refresh_together": None} | options
    return ro.in_eigenbasis(inner, correlate="whitened_gradients", **options)


def walk(tx, gradients, like):
    def step(state, gradient):
        updates, state = tx.update(gradient, state)
        return state, updates

    return as_users.jit(lambda gradients: jax.lax.scan(step, tx.init(like), gradients)[::-1])(gradients)


def refreshed(factor, basis):
    order = np.argsort(-np.diag(basis.T @ factor @ basis))
    return np.linalg.qr(factor @ basis[:, order])[0]


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
        path, _ = walk(turned(), jnp.asarray(gradients), jnp.zeros([5, 4]))
        np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)
        path, _ = walk(turned(axes="scanned"), jnp.asarray(both), jnp.zeros([2, 5, 4]))
    np.testing.assert_allclose(path[:, 0], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(path[:, 1], replay(2 * gradients[::-1]), rtol=1e-7, atol=1e-9)


def test_bases_do_not_depend_on_units(gradients):
    found = []
    with jax.enable_x64(True):
        for scale in (1.0, 1e-6):
            _, state = walk(turned(), jnp.asarray(scale * gradients), jnp.zeros([5, 4]))
            found.append((state.left_bases, state.right_bases))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), *found)


def test_a_side_alone_has_plain_correlations(gradients):
    with jax.enable_x64(True):
        options = {"decay": DECAY, "update_every": EVERY, "sides": "smaller"}
        plain = ro.in_eigenbasis(TANH, **options)
        paths = [
            walk(tx, jnp.asarray(gradients), jnp.zeros([5, 4]))[0] for tx in (plain, turned(sides="smaller"))
        ]
    np.testing.assert_allclose(*paths, rtol=1e-9, atol=1e-12)


def test_it_estimates_known_factors_better_than_plain_correlations():
    """Gradients N(0, A (x) B), of 16 problems: the largest columns drown the others, unless whitened."""
    random = np.random.default_rng(1)
    bases = np.linalg.qr(random.standard_normal((16, 6, 6)))[0]
    a = bases @ np.diag(2.0 ** np.arange(6)) @ bases.mT
    root_a, root_b = np.linalg.cholesky(a), np.diag(3.0 ** -np.arange(8.0))
    gradients = root_a @ random.standard_normal((150, 16, 6, 8)) @ root_b

    def error(correlate):
        tx = ro.in_eigenbasis(TANH, decay=0.98, update_every=3, correlate=correlate, axes="scanned")
        _, state = walk(tx, jnp.asarray(gradients, jnp.float32), jnp.zeros([16, 6, 8]))
        q = np.asarray(state.left_bases)[:, 0]
        turned = q.mT @ a @ q
        off = turned - turned * np.eye(6)
        return np.mean(np.linalg.norm(off, axis=(-2, -1)) / np.linalg.norm(a, axis=(-2, -1)))

    assert error("whitened_gradients") < 0.6 * error("gradients")


def test_gradients_of_zero_come_first_and_nothing_breaks(gradients):
    """Bases found later are those of the gradients alone, whatever the number of zeros before them."""
    tx = turned(state_dtype=jnp.bfloat16, update_every=1)
    with_zeros = np.concatenate([np.zeros([2, 5, 4]), gradients, np.zeros([1, 5, 4])])
    path, state = walk(tx, jnp.asarray(with_zeros, jnp.float32), jnp.zeros([5, 4]))
    assert np.all(np.isfinite(path))
    assert state.kept_bases == 0
    q = np.asarray(state.left_bases[0], np.float64)
    np.testing.assert_allclose(q.T @ q, np.eye(5), atol=0.02)
    np.testing.assert_array_equal(path[:2], 0)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_it_is_what_it_is_on_one_device(kind):
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
            sharding = NamedSharding(mesh, PartitionSpec("rows", "columns"))
            spread = train(lambda array: jax.device_put(array, sharding))
    np.testing.assert_allclose(spread, alone, rtol=1e-9, atol=1e-11)


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

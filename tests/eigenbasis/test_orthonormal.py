"""Orthonormalisation by matrix products against Householder QR in float64, where correlations are bad too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from riemann_optax.eigenbasis.bases import has_turned, iterate
from riemann_optax.eigenbasis.orthonormal import orthonormalise
from riemann_optax.eigenbasis.stack import RefreshRules, refreshed

from .. import as_users

SIZE = 48
PANELS = 81  # above the size that is decomposed in panels on a CPU, and no multiple of their width
EPSILON = float(np.finfo(np.float32).eps)


def rotation(seed, size=SIZE):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def positive_qr(matrix):
    """Householder QR in float64, with a positive diagonal."""
    basis, triangle = np.linalg.qr(np.asarray(matrix, np.float64))
    signs = np.where(np.diag(triangle) < 0, -1, 1)
    return basis * signs, triangle * signs[:, None]


def correlation(kind, size=SIZE):
    vectors = rotation(0, size)
    values = {
        "well-conditioned": np.geomspace(1, 1e-2, size),
        "ill-conditioned": np.geomspace(1, 1e-10, size),
        "degenerate": np.repeat([4.0, 1.0, 0.25], size // 3),
        "one": np.ones(size),
        "rank 1": np.eye(size)[0],
        "rank 5": np.r_[np.geomspace(1, 0.1, 5), np.zeros(size - 5)],
        "zero": np.zeros(size),
    }
    if kind == "dead inputs":
        whole = (vectors * np.geomspace(1, 1e-3, size)) @ vectors.T
        alive = np.arange(size) % 3 > 0
        return whole * np.outer(alive, alive)
    if kind == "bfloat16":
        whole = (vectors * np.geomspace(1, 1e-6, size)) @ vectors.T
        return np.asarray(jnp.asarray(whole, jnp.bfloat16), np.float64)
    return (vectors * values[kind]) @ vectors.T


KINDS = ["well-conditioned", "ill-conditioned", "degenerate", "one", "rank 1", "rank 5", "zero"]
KINDS += ["dead inputs", "bfloat16"]
METHODS = [("cholesky", SIZE), ("householder", SIZE), ("auto", PANELS)]


@pytest.mark.parametrize(("method", "size"), METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_a_refresh_gives_an_orthonormal_triangular_factor(kind, scale, method, size):
    """The refresh of a basis far from the eigenvectors: Q is orthonormal, Q^T X a positive triangle."""
    matrix = np.asarray(correlation(kind, size) * scale, np.float32)
    start = np.asarray(rotation(1, size), np.float32)
    basis, order, found = (
        np.asarray(part) for part in as_users.jit(iterate, static_argnums=2)(matrix, start, method)
    )
    assert found
    exact = basis.astype(np.float64)
    np.testing.assert_allclose(exact.T @ exact, np.eye(size), atol=30 * EPSILON)
    s, q = matrix.astype(np.float64) / scale, start.astype(np.float64)[:, order]
    product = s @ q
    largest = np.linalg.norm(product, axis=0).max()
    product = product + (8 * EPSILON * largest if largest else 1.0) * q
    triangle = exact.T @ product
    below = np.tril(triangle, -1)
    # Rounding of a product of size 1 in float32, of columns that may be shorter than that rounding.
    assert np.abs(below).max() <= 30 * EPSILON * max(largest, 1e-30 if largest else 1.0)
    assert np.diag(triangle).min() > -30 * EPSILON * largest


@pytest.mark.parametrize("method", ["cholesky", "householder"])
def test_a_well_conditioned_refresh_is_that_of_float64(method):
    matrix, start = correlation("well-conditioned"), rotation(1)
    basis, order, _ = iterate(jnp.asarray(matrix, jnp.float32), jnp.asarray(start, jnp.float32), method)
    expected, _ = positive_qr(matrix @ start[:, order])
    np.testing.assert_allclose(basis, expected, atol=2e-4)


@pytest.mark.parametrize(("method", "size"), [("cholesky", SIZE), ("auto", PANELS)])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_the_factor_of_a_matrix_is_that_of_float64_to_its_condition(condition, method, size):
    left, right = rotation(2, size), rotation(3, size)
    matrix = (left * np.geomspace(1, 1 / condition, size)) @ right
    expected, _ = positive_qr(np.asarray(matrix, np.float32))
    found, ok = orthonormalise(jnp.asarray(matrix, jnp.float32), method)
    assert ok
    np.testing.assert_allclose(found, expected, atol=40 * condition * EPSILON)
    with jax.enable_x64(True):
        found, ok = orthonormalise(jnp.asarray(matrix), method)
        assert ok
        np.testing.assert_allclose(found, positive_qr(matrix)[0], atol=40 * condition * 2.2e-16)


def test_both_methods_agree_on_a_batch_with_its_own_scales():
    random = np.random.default_rng(4)
    matrices = random.standard_normal((3, 2, 7, 7)) * np.array([1e-30, 1.0, 1e30])[:, None, None, None]
    first, second = (
        orthonormalise(jnp.asarray(matrices, jnp.float32), method) for method in ("cholesky", "householder")
    )
    np.testing.assert_allclose(first[0], second[0], atol=1e-4)
    assert np.all(first[1])
    assert np.all(second[1])
    chosen, householder = (
        as_users.jit(orthonormalise, static_argnums=1)(jnp.asarray(matrices, jnp.float32), method)[0]
        for method in ("auto", "householder")
    )
    np.testing.assert_array_equal(chosen, householder)  # the tests run on a CPU
    assert not np.array_equal(chosen, first[0])


@pytest.mark.parametrize("bad", ["zero column", "nan", "inf"])
def test_cholesky_says_where_there_is_no_such_factor(bad):
    matrix = rotation(5, 6)
    matrix[:, 2] = {"zero column": 0, "nan": np.nan, "inf": np.inf}[bad]
    matrices = jnp.asarray(np.stack([rotation(6, 6), matrix]), jnp.float32)
    _, found = orthonormalise(matrices, "cholesky")
    assert found.tolist() == [True, False]


def test_equal_columns_still_give_an_orthonormal_basis():
    """In panels, what is left of a column after equal ones before it is all rounding, along them too."""
    column = np.random.default_rng(7).standard_normal((PANELS, 1))
    matrix = np.concatenate([rotation(8, PANELS)[:, :40], np.repeat(column, PANELS - 40, axis=1)], axis=1)
    matrices = jnp.asarray(np.stack([matrix, rotation(9, PANELS)]), jnp.float32)
    basis, found = orthonormalise(matrices)
    assert found.tolist() == [True, True]
    gram = np.einsum("bij,bik->bjk", basis, basis, dtype=np.float64)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(PANELS), gram.shape), atol=30 * EPSILON)


@pytest.mark.parametrize("method", ["cholesky", "householder"])
@pytest.mark.parametrize("mix", [True, False])
def test_where_none_is_found_the_old_basis_is_kept_and_counted(method, mix):
    good, start = correlation("well-conditioned"), rotation(1)
    factors = jnp.asarray(np.stack([good, np.full_like(good, np.nan)]), jnp.float32)
    old = jnp.asarray(np.stack([start, start]), jnp.float32)
    new, change, kept = refreshed(factors, old, jnp.float32, RefreshRules(mix, method=method))
    assert kept.tolist() == [False, True]
    np.testing.assert_array_equal(new[1], old[1])
    np.testing.assert_array_equal(change.vectors[1], np.eye(SIZE))
    np.testing.assert_array_equal(change.squares[1], np.eye(SIZE))
    assert np.abs(new[0] - old[0]).max() > 0.1
    np.testing.assert_allclose(change.vectors[0], old[0].T @ new[0], atol=1e-5)


def test_what_has_turned_is_told_by_what_is_off_the_diagonal():
    vectors = rotation(0)
    matrix = (vectors * np.geomspace(1, 1e-3, SIZE)) @ vectors.T
    angles = np.array([0.0, 0.001, 0.3])
    bases = []
    for angle in angles:
        turn = np.eye(SIZE)
        turn[0, 0] = turn[1, 1] = np.cos(angle)
        turn[0, 1], turn[1, 0] = -np.sin(angle), np.sin(angle)
        bases.append(vectors @ turn)
    turned = [b.T @ matrix @ b for b in bases]
    shares = [np.linalg.norm(t - np.diag(np.diag(t))) / np.linalg.norm(t) for t in turned]
    assert shares[1] < 0.01 < shares[2]
    matrices = jnp.broadcast_to(jnp.asarray(matrix, jnp.float32), (3, SIZE, SIZE))
    found = has_turned(matrices, jnp.asarray(np.stack(bases), jnp.float32), 0.01)
    assert found.tolist() == [False, False, True]
    rules = RefreshRules(mix=True, tau=0.01)
    new, _, kept = refreshed(matrices, jnp.asarray(np.stack(bases), jnp.float32), jnp.float32, rules)
    assert not kept.any()
    moved = [bool(np.any(np.asarray(a) != b.astype(np.float32))) for a, b in zip(new, bases, strict=True)]
    assert moved == [False, False, True]


def test_at_a_tau_of_0_all_count_as_turned_also_where_it_is_traced():
    diagonal = jnp.diag(jnp.array([3.0, 2.0, 1.0]))[None]
    turned = as_users.jit(lambda tau: has_turned(diagonal, jnp.eye(3)[None], tau))
    assert turned(0.0).tolist() == [True]
    assert turned(1e-6).tolist() == [False]

"""The pull of the largest singular value, against NumPy's decomposition and its own power iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

RATE = 0.3


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def matrix(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def pull_by_svd(weight):
    left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    return 2 * RATE * (sizes[0] - 1) * np.outer(left[:, 0], right[0])


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)])
def test_the_pull_is_that_of_the_singular_value_decomposition(shape):
    params = {"kernel": jnp.asarray(matrix(*shape)), "bias": jnp.ones(shape[1])}
    pull = ro.add_spectral_pull(RATE, steps=500)
    gradients = jax.tree.map(jnp.ones_like, params)
    found, _ = pull.update(gradients, pull.init(params), params)
    np.testing.assert_allclose(found["kernel"] - 1, pull_by_svd(params["kernel"]), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(found["bias"], np.ones(shape[1]))


def test_it_is_the_gradient_of_the_penalty():
    weight = jnp.asarray(matrix(5, 3))
    penalty = lambda w: RATE * (jnp.linalg.norm(w, 2) - 1) ** 2  # noqa: E731
    pull = ro.add_spectral_pull(RATE, steps=500)
    found, _ = pull.update(jnp.zeros([5, 3]), pull.init(weight), weight)
    np.testing.assert_allclose(found, jax.grad(penalty)(weight), rtol=1e-8, atol=1e-10)


def test_replays_one_power_iteration_per_update_around_descent():
    """As published: the vector is kept; after a hundred updates it is that of the decomposition."""
    tx = optax.chain(ro.add_spectral_pull(RATE), optax.sgd(0.05))
    weight = matrix(6, 4)
    params, state, vector = jnp.asarray(weight), None, None
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(150):
        gradient = 0.05 * matrix(6, 4, seed=step + 1)
        updates, state = update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        if vector is None:  # the library's first vector is free: take it up after one step
            vector, weight = np.asarray(state[0].vectors)[0], np.asarray(params)
            continue
        left = weight @ vector
        left /= np.linalg.norm(left)
        vector = weight.T @ left
        size = np.linalg.norm(vector)
        vector /= size
        weight = weight - 0.05 * (gradient + 2 * RATE * (size - 1) * np.outer(left, vector))
        np.testing.assert_allclose(params, weight, rtol=1e-9, atol=1e-12)
    assert abs(np.linalg.norm(weight, 2) - 1) < 0.6 < np.linalg.norm(matrix(6, 4), 2) - 1


def test_stacks_are_matrices_by_themselves():
    kernels = np.stack([matrix(5, 3, seed) for seed in range(3)])
    pull = ro.add_spectral_pull(RATE, steps=500, axes=ro.MatrixAxes((1,), (2,)))
    found, state = pull.update(jnp.zeros([3, 5, 3]), pull.init(jnp.asarray(kernels)), jnp.asarray(kernels))
    np.testing.assert_allclose(found, np.stack([pull_by_svd(k) for k in kernels]), rtol=1e-7, atol=1e-9)
    assert state.vectors.shape == (3, 1, 3)


def test_between_the_stages_the_pull_is_divided_by_the_metric():
    weight, phi = jnp.asarray(matrix(4, 3)), ro.phi.from_weights(lambda w: jnp.full_like(w, 3.0))
    tx = optax.chain(
        ro.compute_metric(phi), ro.add_spectral_pull(RATE, steps=500), ro.scale_by_inverse_metric()
    )
    found, _ = tx.update(jnp.zeros([4, 3]), tx.init(weight), weight)
    np.testing.assert_allclose(found, pull_by_svd(weight) / 4, rtol=1e-7, atol=1e-9)


def test_in_an_eigenbasis_the_vector_turns_with_the_basis():
    """From the second update on both follow the same vector, whatever the basis does."""
    inside, outside = ro.in_eigenbasis(ro.add_spectral_pull(RATE), update_every=1), ro.add_spectral_pull(RATE)
    weight = jnp.asarray(matrix(5, 3))
    one, two = inside.init(weight), outside.init(weight)
    _, one = inside.update(jnp.asarray(matrix(5, 3, 1)), one, weight)
    _, two = outside.update(jnp.asarray(matrix(5, 3, 1)), two, weight)
    two = two._replace(vectors=(one.right_bases[0] @ one.inner.vectors[0])[None])
    for step in range(2, 6):
        gradient = jnp.asarray(matrix(5, 3, step))
        found, one = inside.update(gradient, one, weight)
        expected, two = outside.update(gradient, two, weight)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_matrix_that_begins_at_zero_is_pulled_once_it_has_left_it():
    """As the last layer of a residual branch does; one of a stack may be 0 and the others not."""
    pull = ro.add_spectral_pull(RATE, steps=100, axes="scanned")
    weights = jnp.stack([jnp.zeros([4, 3]), jnp.asarray(matrix(4, 3, seed=1))])
    state = pull.init({"kernel": weights})
    for params in (weights, weights, weights.at[0].set(matrix(4, 3))):
        found, state = pull.update({"kernel": jnp.zeros_like(params)}, state, {"kernel": params})
    for part, weight in zip(found["kernel"], params, strict=True):
        np.testing.assert_allclose(part, pull_by_svd(weight), rtol=1e-8, atol=1e-10)


def test_a_layer_that_comes_later_is_pulled_as_well():
    pull = ro.add_spectral_pull(RATE, steps=100)
    small = {"a": {"kernel": jnp.asarray(matrix(4, 3))}}
    large = {**small, "b": {"kernel": jnp.asarray(matrix(3, 3, seed=1))}}
    _, state = pull.update(small, pull.init(small), small)
    state, _ = ro.checkpoint.transplant(state, pull, large, old_params=small)
    found, _ = pull.update(jax.tree.map(jnp.zeros_like, large), state, large)
    np.testing.assert_allclose(found["b"]["kernel"], pull_by_svd(large["b"]["kernel"]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [1e20, 1e-25])
def test_neither_small_nor_large_matrices_are_beyond_float32(size):
    weight = jnp.asarray(matrix(4, 3) * size, jnp.float32)
    pull = ro.add_spectral_pull(RATE, steps=100)
    found, _ = pull.update(weight * 0, pull.init(weight), weight)
    np.testing.assert_allclose(found, pull_by_svd(np.float64(weight)), rtol=1e-4, atol=1e-4 * max(size, 1))

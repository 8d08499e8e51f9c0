"""The pull to isometries and the restart from the nearest one, against NumPy, SVD and rotations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

STEPS, LEARNING_RATE, RATE = 300, 1e-3, 0.5


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def matrix(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)) / np.sqrt(rows)


@pytest.mark.parametrize("edits", [(), (ro.compute_metric(ro.phi.activity()),)], ids=["alone", "metric"])
def test_a_gradient_that_is_none_is_named(edits):
    tx = optax.chain(*edits, ro.add_isometry_pull(RATE))
    params = {"kernel": jnp.ones([2, 2]), "bias": None}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["bias"] is None
    with pytest.raises(ValueError, match=r"lacks leaf \['kernel'\] of params"):
        tx.update(params | {"kernel": None}, tx.init(params), params)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_adam_with_the_pull_replays_adamo(shape):
    """Adam's step and, decoupled, rate * 4 W (W^T W - I); for wide W the gradient of norm(W W^T - I)**2."""
    kernel, bias = matrix(*shape), np.ones(shape[1])
    tx = optax.chain(
        optax.scale_by_adam(), ro.add_isometry_pull(RATE), optax.scale_by_learning_rate(LEARNING_RATE)
    )
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    state, update = tx.init(params), jax.jit(tx.update)
    moments = {name: [np.zeros_like(w), np.zeros_like(w)] for name, w in params.items()}
    weights = {"kernel": kernel.copy(), "bias": bias.copy()}
    for step in range(1, STEPS + 1):
        generator = np.random.default_rng(step)
        gradients = {name: w + generator.normal(size=w.shape) for name, w in weights.items()}
        updates, state = update(jax.tree.map(jnp.asarray, gradients), state, params)
        params = optax.apply_updates(params, updates)
        for name, w in weights.items():
            first, second = moments[name]
            first[:] = 0.9 * first + 0.1 * gradients[name]
            second[:] = 0.999 * second + 0.001 * gradients[name] ** 2
            change = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            if name == "kernel" and shape[0] >= shape[1]:
                change = change + RATE * 4 * w @ (w.T @ w - np.eye(shape[1]))
            elif name == "kernel":
                change = change + RATE * 4 * (w @ w.T - np.eye(shape[0])) @ w
            weights[name] = w - LEARNING_RATE * change
    for name, w in weights.items():
        np.testing.assert_allclose(params[name], w, rtol=1e-9)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_the_pull_is_the_gradient_of_the_distance_to_the_isometries(shape):
    weight = jnp.asarray(matrix(*shape))

    def penalty(w):
        gram = w.T @ w if shape[0] >= shape[1] else w @ w.T
        return RATE * jnp.sum(jnp.square(gram - jnp.eye(len(gram))))

    pull = ro.add_isometry_pull(RATE)
    found, _ = pull.update(jnp.zeros(shape), pull.init(weight), weight)
    np.testing.assert_allclose(found, jax.grad(penalty)(weight), rtol=1e-10)


def test_between_the_stages_the_pull_is_divided_by_the_metric():
    weight, phi = jnp.asarray(matrix(4, 3)), ro.phi.from_weights(lambda w: jnp.full_like(w, 3.0))
    tx = optax.chain(ro.compute_metric(phi), ro.add_isometry_pull(RATE), ro.scale_by_inverse_metric())
    alone = ro.add_isometry_pull(RATE)
    found, _ = tx.update(jnp.zeros([4, 3]), tx.init(weight), weight)
    expected, _ = alone.update(jnp.zeros([4, 3]), alone.init(weight), weight)
    np.testing.assert_allclose(found, expected / 4, rtol=1e-10)


def test_in_an_eigenbasis_the_pull_is_the_same():
    """It commutes with rotations of rows and columns; only the gradient's part is another."""
    weight = jnp.asarray(matrix(5, 3))
    inside = ro.in_eigenbasis(ro.add_isometry_pull(RATE), update_every=1)
    outside = ro.add_isometry_pull(RATE)
    states = inside.init(weight), outside.init(weight)
    for step in range(5):
        gradient = jnp.asarray(matrix(5, 3, seed=step + 1))
        one, state = inside.update(gradient, states[0], weight)
        other, own = outside.update(gradient, states[1], weight)
        states = state, own
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def polar(weight):
    left, _, right = np.linalg.svd(weight, full_matrices=False)
    return np.sqrt(weight.shape[1] / weight.shape[0]) * left @ right


@pytest.mark.parametrize("shape", [(8, 3), (3, 8)])
def test_the_nearest_isometry_is_the_polar_factor(shape):
    weight = matrix(*shape)
    anchor = ro.anchor.nearest_isometry(steps=40)
    found, _ = anchor.update(weight, anchor.init(weight), jnp.asarray(weight))
    np.testing.assert_allclose(found, polar(weight), rtol=1e-9, atol=1e-12)


def test_ten_steps_of_newton_and_schulz_as_published():
    weight = matrix(8, 3)
    x = weight / np.linalg.norm(weight)
    for _ in range(10):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    anchor = ro.anchor.nearest_isometry()
    found, _ = anchor.update(weight, anchor.init(weight), jnp.asarray(weight))
    np.testing.assert_allclose(found, np.sqrt(3 / 8) * x, rtol=1e-9)


def test_stacks_are_matrices_by_themselves_and_vectors_stay():
    kernels = np.stack([matrix(6, 2, seed) for seed in range(3)])
    params = {"kernel": jnp.asarray(kernels), "bias": jnp.ones(2)}
    axes = ro.MatrixAxes((1,), (2,))
    anchor = ro.anchor.nearest_isometry(
        steps=40, axes=lambda name, leaf: axes if leaf.ndim == 3 else ro.MatrixAxes((0,), ())
    )
    found, _ = anchor.update(params, anchor.init(params), params)
    np.testing.assert_allclose(found["kernel"], np.stack([polar(k) for k in kernels]), rtol=1e-8)
    np.testing.assert_array_equal(found["bias"], np.ones(2))


def test_a_restart_is_a_new_optimiser_at_the_anchor():
    tx = ro.restart_at_boundary(ro.in_eigenbasis(optax.adam(0.1)), ro.anchor.nearest_isometry(steps=40))
    params = {"kernel": jnp.asarray(matrix(5, 3)), "bias": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    gradients = jax.tree.map(jnp.cos, params)
    for _ in range(3):
        updates, state = update(gradients, state, params, task_boundary=False)
        params = optax.apply_updates(params, updates)
    before = np.asarray(params["kernel"])
    updates, state = update(gradients, state, params, task_boundary=True)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], polar(before), rtol=1e-9, atol=1e-12)
    fresh = tx.init(params)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, fresh.inner_state)
    one, _ = update(gradients, state, params, task_boundary=False)
    other, _ = update(gradients, fresh, params)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_restart_ends_at_the_anchor_where_gradients_are_narrow():
    """Its jump was rounded to their dtype."""
    tx = ro.restart_at_boundary(optax.sgd(0.1), ro.anchor.initial_weights())
    first = {"kernel": jnp.asarray(matrix(5, 3), jnp.float32)}
    gradients = jax.tree.map(lambda leaf: jnp.ones_like(leaf, jnp.bfloat16), first)
    _, state = tx.update(gradients, tx.init(first), first)
    later = {"kernel": 3 * first["kernel"] + 0.1}
    updates, _ = tx.update(gradients, state, later, task_boundary=True)
    np.testing.assert_allclose(optax.apply_updates(later, updates)["kernel"], first["kernel"], atol=1e-6)


def test_a_restart_reaches_a_flax_module():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    tx = ro.restart_at_boundary(ro.riemannian_sgd(0.1), ro.anchor.nearest_isometry(steps=40))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = np.asarray(model.kernel[...])
    gradients = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, gradients, task_boundary=True)
    np.testing.assert_allclose(model.kernel[...], polar(before), rtol=1e-9, atol=1e-12)


def test_a_boundary_that_is_no_boolean_is_refused():
    tx = ro.restart_at_boundary(optax.sgd(0.1), ro.anchor.nearest_isometry())
    with pytest.raises(ValueError, match="one boolean"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), task_boundary=1)


def test_a_restart_is_an_update_and_no_consolidation():
    """It was accepted where the anchor or the optimiser consolidates, and no restart followed."""
    tx = ro.restart_at_boundary(optax.sgd(0.1), ro.anchor.task_boundary_weights())
    params = {"kernel": jnp.ones([2, 2])}
    with pytest.raises(ValueError, match=r"restart_at_boundary restarts in an update.*task_boundary=True"):
        ro.consolidate((tx.init(params), optax.EmptyState()), params)


def test_the_anchor_is_computed_at_boundaries_only():
    computed = []

    def count(weights):
        computed.append(weights)
        return weights

    def update(updates, state, params=None, **extra_args):
        shape = jax.ShapeDtypeStruct(params.shape, params.dtype)
        return jax.pure_callback(count, shape, params), state + 1

    anchor = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros([], jnp.int32), update)
    tx = ro.restart_at_boundary(optax.sgd(0.1), anchor)
    params = jnp.ones(3)
    state, step = tx.init(params), jax.jit(tx.update)
    for boundary in (False, False, True, False):
        _, state = jax.block_until_ready(step(params, state, params, task_boundary=boundary))
    assert len(computed) == 1
    assert state.anchor == 4  # its state goes on at every step


def test_a_matrix_without_rows_is_its_own_isometry():
    anchor, empty = ro.anchor.nearest_isometry(), jnp.zeros([0, 3])
    assert anchor.update(empty, anchor.init(empty), empty)[0].shape == (0, 3)


def test_random_numbers_go_on_after_a_restart():
    """Each task would be given the noise of the first."""
    metric = optax.chain(ro.compute_metric(ro.phi.activity()), ro.add_idle_noise(0.1, 0.1))
    tx = ro.restart_at_boundary(
        optax.chain(metric, ro.scale_by_inverse_metric()), ro.anchor.initial_weights()
    )
    params = jnp.zeros(2)
    state, found = tx.init(params), []
    for boundary in (False, False, True, False, False):
        updates, state = tx.update(jnp.zeros(2), state, params, task_boundary=boundary)
        found.append(tuple(np.asarray(updates).tolist()))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("size", [1e20, 1e-25])
def test_the_nearest_isometry_does_not_depend_on_the_size(size):
    anchor = ro.anchor.nearest_isometry(steps=40)
    small, weight = (jnp.asarray(matrix(5, 3) * scale, jnp.float32) for scale in (1.0, size))
    expected, found = (anchor.update(w, anchor.init(w), w)[0] for w in (small, weight))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

"""soap against the published algorithm, written out in NumPy from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import riemann_optax as ro
from tests.walk import walk

RATE, B1, B2, BETA, EPS, DECAY, EVERY = 0.1, 0.9, 0.8, 0.7, 1e-6, 0.1, 3


def eigenvectors(matrix, basis, second_moment, axis):
    """Algorithm 4: a power iteration and a QR decomposition, of columns sorted as in their program."""
    order = np.argsort(-np.diag(basis.T @ matrix @ basis), kind="stable")
    return np.linalg.qr(matrix @ basis[:, order])[0], np.take(second_moment, order, axis)


def soap(gradients, start, longest, nesterov=False):
    """Algorithm 3 with Adam's bias correction; the first gradient only makes the bases."""
    w = start
    rows, columns = w.shape
    left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
    q_left, q_right = np.eye(rows), np.eye(columns)
    m = v = np.zeros_like(w)  # m in the original coordinates
    path = []
    for t, g in enumerate(gradients):
        step = np.zeros_like(w)
        if t:
            turned = q_left.T @ g @ q_right
            m = B1 * m + (1 - B1) * g
            v = B2 * v + (1 - B2) * turned**2
            turned_m = q_left.T @ m @ q_right / (1 - B1**t)
            if nesterov:
                turned_m = B1 * turned_m * (1 - B1**t) / (1 - B1 ** (t + 1)) + (1 - B1) / (1 - B1**t) * turned
            step = q_left @ (turned_m / (np.sqrt(v / (1 - B2**t)) + EPS)) @ q_right.T
        w = w - RATE * (step + DECAY * w)
        path.append(w)
        left = BETA * left + (1 - BETA) * g @ g.T
        right = BETA * right + (1 - BETA) * g.T @ g
        if rows <= longest:
            if t == 0:
                q_left = np.linalg.eigh(left)[1][:, ::-1]
            elif t % EVERY == 0:
                q_left, v = eigenvectors(left, q_left, v, 0)
        if columns <= longest:
            if t == 0:
                q_right = np.linalg.eigh(right)[1][:, ::-1]
            elif t % EVERY == 0:
                q_right, v = eigenvectors(right, q_right, v, 1)
    return path


def optimiser(**options):
    return ro.soap(
        RATE, B1, B2, EPS, weight_decay=DECAY, shampoo_beta=BETA, precondition_frequency=EVERY, **options
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_the_published_algorithm(nesterov):
    """A matrix, one with a side that is too long, and a vector, all sides at the same steps."""
    random = np.random.default_rng(0)
    shapes = {"matrix": (5, 4), "long": (7, 3), "vector": (6,)}
    start = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    mixed = {name: random.standard_normal((shape[0], shape[0])) for name, shape in shapes.items()}
    gradients = {
        name: np.stack([mixed[name] @ random.standard_normal(shape) for _ in range(50)])
        for name, shape in shapes.items()
    }
    with jax.enable_x64(True):
        path = walk(optimiser(max_precondition_dim=5, nesterov=nesterov), gradients, start)
    for name in ("matrix", "long"):
        expected = soap(gradients[name], start[name], longest=5, nesterov=nesterov)
        np.testing.assert_allclose(path[name], expected, rtol=1e-8, atol=1e-10)
    alone = soap(gradients["vector"][:, :, None], start["vector"][:, None], longest=0, nesterov=nesterov)
    np.testing.assert_allclose(path["vector"], np.stack(alone)[..., 0], rtol=1e-10)


def test_one_sided_and_staggered_keep_the_state_they_say():
    params = {"w": jnp.zeros([8, 32]), "b": jnp.zeros(32)}
    state = jax.eval_shape(optimiser(one_sided=True).init, params)[0]
    assert state.left_bases["w"].shape == (1, 8, 8)
    assert isinstance(state.right_bases["w"], optax.MaskedNode)
    with_both = jax.eval_shape(optimiser(staggered=True).init, params)[0]
    assert with_both.right_bases["w"].shape == (1, 32, 32)
    assert with_both.inner.adam.nu["w"].shape == (8, 32)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_both_sides_on_a_mesh_are_those_of_one_device(kind):
    """Square gradients have full rank: no direction of a basis is left to rounding."""
    tx = ro.soap(0.1, precondition_frequency=2, weight_decay=1e-3)
    gradients = np.random.default_rng(0).standard_normal((7, 16, 16)).astype(np.float32)

    def train(put):
        params = put(jnp.ones([16, 16]))
        state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
        for gradient in gradients:
            updates, state = update(put(jnp.asarray(gradient)), state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params)

    alone = train(lambda array: array)
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("rows", "columns"))
        np.testing.assert_allclose(train(lambda array: jax.device_put(array, sharding)), alone, atol=5e-5)
    assert np.abs(alone - 1).max() > 0.1

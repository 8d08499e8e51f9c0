"""soap against the published algorithm, written out in NumPy from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import riemann_optax as ro
from riemann_optax import _tree
from tests.walk import walk

RATE, B1, B2, BETA, EPS, DECAY, EVERY = 0.1, 0.9, 0.8, 0.7, 1e-6, 0.1, 3


def along(tensor, matrix, axis):
    """Return a tensor with ``matrix`` applied to each of its columns along an axis."""
    return np.moveaxis(np.tensordot(matrix, tensor, axes=(1, axis)), 0, axis)


def correlation(tensor, axis):
    """Return ``G_(k) G_(k)^T``, of the matrix that has one axis as rows and all others as columns."""
    rows = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    return rows @ rows.T


def eigenvectors(matrix, basis, second_moment, axis):
    """Algorithm 4: a power iteration and a QR decomposition, of columns sorted as in their program."""
    order = np.argsort(-np.diag(basis.T @ matrix @ basis), kind="stable")
    return np.linalg.qr(matrix @ basis[:, order])[0], np.take(second_moment, order, axis)


def soap(gradients, start, longest, nesterov=False):
    """Algorithm 3 with Adam's bias correction, for tensors, as their program has it.

    The first gradient only makes the bases, one for each axis that is not too long.
    """
    w = start
    axes = [axis for axis, size in enumerate(w.shape) if size <= longest]
    factors = {axis: np.zeros((w.shape[axis], w.shape[axis])) for axis in axes}
    bases = {axis: np.eye(w.shape[axis]) for axis in axes}
    m = v = np.zeros_like(w)  # m in the original coordinates
    path = []

    def turn(tensor, back=False):
        for axis, basis in bases.items():
            tensor = along(tensor, basis if back else basis.T, axis)
        return tensor

    for t, g in enumerate(gradients):
        step = np.zeros_like(w)
        if t:
            turned = turn(g)
            m = B1 * m + (1 - B1) * g
            v = B2 * v + (1 - B2) * turned**2
            turned_m = turn(m) / (1 - B1**t)
            if nesterov:
                turned_m = B1 * turned_m * (1 - B1**t) / (1 - B1 ** (t + 1)) + (1 - B1) / (1 - B1**t) * turned
            step = turn(turned_m / (np.sqrt(v / (1 - B2**t)) + EPS), back=True)
        w = w - RATE * (step + DECAY * w)
        path.append(w)
        for axis in axes:
            factors[axis] = BETA * factors[axis] + (1 - BETA) * correlation(g, axis)
            if t == 0:
                bases[axis] = np.linalg.eigh(factors[axis])[1][:, ::-1]
            elif t % EVERY == 0:
                bases[axis], v = eigenvectors(factors[axis], bases[axis], v, axis)
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
    alone = soap(gradients["vector"], start["vector"], longest=0, nesterov=nesterov)
    np.testing.assert_allclose(path["vector"], alone, rtol=1e-10)


# In the order of Flax, and in that of Equinox; a window of one axis, of two, and a pointwise one.
CONVOLUTIONS = {
    "conv": (2, 3, 4, 5),
    "conv_of_one_axis": (3, 4, 5),
    "conv_of_equal_axes": (3, 3, 3),  # its bases have shapes that fit the kernel
    "conv_pointwise": (1, 1, 5, 4),
    "conv_too_wide": (2, 2, 4, 7),
}
ORDERS = {"flax": lambda x: x, "equinox": lambda x: np.moveaxis(x, (-1, -2), (0, 1))}


@pytest.mark.parametrize("order", ORDERS)
def test_a_convolution_has_a_basis_for_each_axis(order):
    random = np.random.default_rng(1)
    name = {"flax": "kernel", "equinox": "weight"}[order]
    start = {conv: {name: random.standard_normal(shape)} for conv, shape in CONVOLUTIONS.items()}
    mixed = {conv: random.standard_normal((shape[-2], shape[-2])) for conv, shape in CONVOLUTIONS.items()}
    gradients = {
        conv: {name: np.stack([along(random.standard_normal(shape), mixed[conv], -2) for _ in range(40)])}
        for conv, shape in CONVOLUTIONS.items()
    }
    expected = {conv: soap(gradients[conv][name], start[conv][name], longest=5) for conv in start}
    put = ORDERS[order]
    start = jax.tree.map(put, start)
    gradients = jax.tree.map(lambda all_of_them: np.stack([put(one) for one in all_of_them]), gradients)
    with jax.enable_x64(True):
        path = walk(optimiser(max_precondition_dim=5, axes=order), gradients, start)
    for conv, weights in expected.items():
        np.testing.assert_allclose(path[conv][name], [put(w) for w in weights], rtol=1e-8, atol=1e-9)


def test_the_bases_of_a_convolution_are_those_of_its_axes():
    params = {"conv": {"kernel": jnp.zeros([3, 3, 32, 64]), "bias": jnp.zeros(64)}}
    state = jax.eval_shape(optimiser().init, params)
    sides = [leaf.shape for leaf in jax.tree.leaves(state) if len(leaf.shape) == 3]
    assert sorted(sides) == sorted([(1, 3, 3), (1, 3, 3), (1, 32, 32), (1, 64, 64)] * 2)


def test_the_structure_of_the_state_follows_from_that_of_the_parameters():
    params = {"conv": {"kernel": jnp.zeros([3, 3, 4, 5])}, "dense": {"kernel": jnp.zeros([5, 2])}}
    tx = optimiser()
    doubled = optax.tree.map_params(tx, lambda leaf: leaf + 1, tx.init(params))
    (adam,) = _tree.find_states(doubled, ro.SoapState)
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.all(leaf == 1)), adam.adam.nu))


def test_describe_reads_a_convolution_once_and_lists_its_bases():
    params = {"conv": {"kernel": jnp.zeros([3, 3, 4, 5])}, "dense": {"kernel": jnp.zeros([5, 2])}}
    told = str(ro.describe(optimiser(), params))
    assert told.count("inputs 3*3*4, outputs 5") == 1
    assert told.count("turned:") == 6  # four axes and two sides


def test_one_sided_and_staggered_keep_the_state_they_say():
    params = {"w": jnp.zeros([8, 32]), "b": jnp.zeros(32)}
    state = jax.eval_shape(optimiser(one_sided=True).init, params)[0]
    assert state.left_bases["w"].shape == (1, 8, 8)
    assert isinstance(state.right_bases["w"], optax.MaskedNode)
    with_both = jax.eval_shape(optimiser(staggered=True).init, params)[0]
    assert with_both.right_bases["w"].shape == (1, 32, 32)
    (adam,) = _tree.find_states(with_both, ro.SoapState)
    assert adam.adam.nu["w"].shape == (8, 32)


@pytest.mark.parametrize("shape", [(16, 16), (2, 2, 16, 16)])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_all_bases_on_a_mesh_are_those_of_one_device(kind, shape):
    """Such gradients have full rank along each axis: no direction of a basis is left to rounding."""
    tx = ro.soap(0.1, precondition_frequency=2, weight_decay=1e-3)
    gradients = np.random.default_rng(0).standard_normal((7, *shape)).astype(np.float32)

    def train(put):
        params = {"conv": put(jnp.ones(shape))}
        state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
        for gradient in gradients:
            updates, state = update({"conv": put(jnp.asarray(gradient))}, state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params["conv"])

    alone = train(lambda array: array)
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 2), "rows", "columns"))
        np.testing.assert_allclose(train(lambda array: jax.device_put(array, sharding)), alone, atol=5e-5)
    assert np.abs(alone - 1).max() > 0.1


@pytest.mark.parametrize(
    "options", [{"b2": 0.999}, {"shampoo_beta": 0.999}], ids=lambda options: next(iter(options))
)
def test_a_mean_that_would_stall_is_refused_by_the_name_it_was_given(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}=0.999: a running mean in bfloat16 stalls"):
        ro.soap(0.003, **options, state_dtype="bfloat16")


def test_describe_names_the_axes_that_are_turned_one_by_one():
    kernel = {"conv": {"kernel": jnp.ones([3, 3, 8, 16])}}
    description = ro.describe(ro.soap(1e-3), kernel)
    assert "inputs 3*3*8, outputs 16" in description.axes[0]
    found = sorted(line.split("): ")[1].split(" turned")[0] for line in description.bases)
    assert found == ["axis 0: 3", "axis 1: 3", "axis 2: 8", "axis 3: 16"]
    assert "left alone" not in str(description)

"""On eight devices: the numbers of one device, each device its share of the state, counted collectives."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

ROWS = ("data", "model")
# Shape and layout of a leaf, and the collectives of an update outside of the branch that refreshes: gathers
# and sums of the matrix or its bases, and "other", which moves shards from device to device.
CASES = {
    "fully sharded": ((16, 8), P(ROWS, None), {"all-gather": 4, "all-reduce": 1}),
    "fully sharded, the shorter side": (
        (8, 16),
        P(ROWS, None),
        {"all-gather": 4, "all-reduce": 1, "other": 4},
    ),
    "tensor parallel": ((16, 8), P(None, "model"), {"all-gather": 3, "all-reduce": 3, "other": 6}),
    "stack, tensor parallel": (
        (8, 16, 8),
        P(None, None, "model"),
        {"all-gather": 12, "all-reduce": 3, "other": 6},
    ),
    "stack over devices": ((8, 16, 8), P(ROWS, None, None), {}),
}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def optimiser():
    metric = [ro.compute_metric(ro.phi.activity(decay=0.9), 10.0), ro.scale_by_inverse_metric()]
    inner = optax.chain(*metric, optax.trace(0.9, nesterov=True))
    return optax.chain(ro.in_eigenbasis(inner, update_every=2), optax.scale(-0.05))


def gradients(params, step):
    return jnp.sin(3 * params + step)


def follow(update, params, state, steps):
    for step in steps:
        updates, state = update(gradients(params, np.float32(step)), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@functools.cache
def alone(shape):
    """Return parameters and state after four steps on one device, and after three more.

    Before a few gradients are seen a basis has a null space, in which any vectors would do.
    """
    tx = optimiser()
    start = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    update = jax.jit(tx.update)
    warm = follow(update, start, tx.init(start), range(4))
    return jax.tree.map(np.asarray, (warm, follow(update, *warm, range(4, 7))))


def counted(program):
    """Return how often each collective stands outside of branches."""
    (entry,) = [part for part in re.split(r"\n(?=\S)", program) if part.startswith("ENTRY")]
    found = collections.Counter(re.findall(rf" ({KINDS})(?:-start)?\(", entry))
    known = {kind: found.pop(kind) for kind in ("all-gather", "all-reduce") if kind in found}
    return known | ({"other": found.total()} if found else {})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fully sharded", AxisType.Explicit),
        ("fully sharded, the shorter side", AxisType.Explicit),
        ("tensor parallel", AxisType.Auto),
        ("stack, tensor parallel", AxisType.Auto),
        ("stack over devices", AxisType.Explicit),
    ],
)
def test_eight_devices_do_what_one_does(name, kind):
    """With tests/contract/test_sharding.py, where each kind of mesh has two and three axes spread."""
    shape, spec, limits = CASES[name]
    (params, state), (expected, _) = alone(shape)
    tx = optimiser()
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, spec))
        state = jax.device_put(state, ro.sharding.state_shardings(tx, params))
        shardings = jax.tree.map(lambda x: x.sharding, (params, state))
        arguments = gradients(params, np.float32(0)), state, params
        compiled = jax.jit(tx.update, out_shardings=shardings).lower(*arguments).compile()
        moved, last = follow(compiled, params, state, range(4, 7))
    np.testing.assert_allclose(np.asarray(moved), expected, rtol=1e-4, atol=1e-5)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(last) if leaf.ndim)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(last) if leaf.ndim)
    assert held / whole == params.addressable_shards[0].data.nbytes / params.nbytes
    counts = counted(compiled.as_text())
    assert counts.keys() <= limits.keys(), counts
    assert all(count <= limits[kind] for kind, count in counts.items()), counts


@pytest.mark.parametrize(
    ("shape", "spec"), [((48, 128), P(ROWS, None)), ((4, 128, 48), P(None, None, "data"))]
)
def test_no_device_holds_a_whole_gradient(shape, spec):
    """Where the turned side is shared out over an Explicit mesh, in branches that refresh too."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    tx = ro.riemannian_eigenbasis(0.1)
    with jax.set_mesh(mesh):
        params = {"kernel": jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))}
        state = tx.init(params)
        program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    found = re.findall(rf"= (.*?) ((?:{KINDS})(?:-start)?\(.*)", program)
    assert found
    for results, operation in found:
        for result in re.findall(r"\[([\d,]*)\]", results):
            sizes = [int(size) for size in re.findall(r"\d+", result) if size != "1"]
            assert sorted(sizes) != sorted(shape), operation


def test_stacked_bases_are_refreshed_on_different_devices():
    """The QR decompositions of eight matrices on eight devices are one each, where stacks are decomposed."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tx = ro.in_eigenbasis(optax.identity(), orthonormalisation="householder")
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones([8, 6, 4]), NamedSharding(mesh, P(None, None, None)))
        state = tx.init(params)
        program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    shapes = re.findall(r"f32\[([\d,]+)\][^=]*custom-call\([^\n]*geqrf", program)
    assert shapes
    assert all(shape.startswith("1,") for shape in shapes), shapes


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_cpu_no_decomposition_takes_a_stack(kind):
    """A stack hangs where its parts wait for threads that wait for them: several devices, JAX 0.10."""
    params = {"layers": jnp.ones((4, 16, 24)), "w": jnp.ones((16, 24))}
    tx = ro.riemannian_eigenbasis(
        0.1, axes=lambda name, leaf: ro.MatrixAxes((leaf.ndim - 2,), (leaf.ndim - 1,))
    )
    with jax.set_mesh(jax.make_mesh((8,), ("d",), axis_types=(kind,))):
        state = tx.init(params)
        program = jax.jit(tx.update).lower(params, state, params).as_text()
    calls = re.findall(r"@lapack_(s[a-z]+)_ffi.* : \(tensor<(\d+)x16x16xf32>", program)
    assert {name for name, _ in calls} >= {"ssyevd", "sgeqrf", "sorgqr"}
    assert {number for _, number in calls} == {"1"}


@pytest.mark.parametrize("spec", [P("data", None), P(None, "data"), P("data", "model"), P()], ids=str)
def test_a_mesh_need_not_be_set(spec):
    """Arrays of an Explicit mesh, the default kind, know their mesh; Optax asks for no more either."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    (params, state), (expected, _) = alone((16, 8))
    tx = optimiser()
    params = jax.device_put(params, NamedSharding(mesh, spec))
    state = jax.device_put(state, ro.sharding.state_shardings(tx, params))
    moved, _ = follow(jax.jit(tx.update), params, state, range(4, 7))
    np.testing.assert_allclose(np.asarray(moved), expected, rtol=1e-4, atol=1e-5)


WHITENED = functools.partial(ro.riemannian_eigenbasis, sides="both", correlate="whitened_gradients")


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(ro.riemannian_eigenbasis, tau=0.05, basis_decay=0.9),
        functools.partial(WHITENED, basis_decay=0.9),
        ro.soap,
        functools.partial(ro.riemannian_schedule_free, sides="smaller"),
    ],
    ids=["one side, tau", "both sides, whitened", "soap", "schedule-free"],
)
@pytest.mark.parametrize("mesh_kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"])
def test_hyper_parameters_in_the_state_lie_on_the_mesh_too(make, mesh_kind):
    """As optax.inject_hyperparams keeps them: then they are arrays, traced, and of the mesh's type."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(mesh_kind,))
    start = jax.random.normal(jax.random.key(0), (16, 8))
    injected, found = optax.inject_hyperparams(make)(0.01), []
    for tx, sharding in ((make(0.01), None), (injected, NamedSharding(mesh, P("data", None)))):
        params = start if sharding is None else jax.device_put(start, sharding)
        with jax.set_mesh(mesh):  # the oldest JAX asks for it
            state = tx.init(params) if sharding is None else ro.sharding.init(tx, params)
            found.append(follow(jax.jit(tx.update), params, state, range(6))[0])
    np.testing.assert_allclose(*found, rtol=2e-4, atol=2e-5)

"""Saved on one mesh and restored on another, a run goes on to the losses of the unbroken one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

TARGETS = {"kernel": -1.0, "bias": 0.5}
SPECS = {
    "fully sharded": {"kernel": P(("data", "model"), None), "bias": P(("data", "model"))},
    "tensor parallel": {"kernel": P(None, "model"), "bias": P("model")},
}
STEPS = 4

# State of every kind: per weight, factored, counters, statistics, energies and a random key.
PHI = ro.phi.weighted_sum(ro.phi.activity(), ro.phi.factored_activity(), weights=[1.0, 0.5])
TX = optax.chain(
    ro.compute_metric(PHI, alpha=optax.linear_schedule(1.0, 3.0, 100)),
    ro.add_metric_noise(0.05, temperature=1e-4, key=jax.random.key(7)),
    ro.record_metric(),
    ro.scale_by_inverse_metric(),
    optax.trace(0.9),
    optax.scale_by_learning_rate(0.05),
    ro.track_energy(),
)


def mesh_of(devices, axis_type=AxisType.Auto):
    shape = (devices // 2, 2) if devices > 1 else (1, 1)
    return jax.make_mesh(
        shape, ("data", "model"), axis_types=(axis_type,) * 2, devices=jax.devices()[:devices]
    )


def abstract_params(mesh, layout):
    shapes = {"kernel": (16, 8), "bias": (16,)}
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, SPECS[layout][name]))
        for name, shape in shapes.items()
    }


def start(mesh, layout):
    def place(leaf):
        values = np.linspace(-1, 1, np.prod(leaf.shape), dtype=np.float32).reshape(leaf.shape)
        return jax.device_put(values, leaf.sharding)

    params = jax.tree.map(place, abstract_params(mesh, layout))
    return params, ro.sharding.init(TX, params)


@jax.jit
def step(params, state):
    def loss_of(params):
        return sum(jnp.sum((p - TARGETS[name]) ** 2 * (2 + jnp.cos(3 * p))) for name, p in params.items())

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, state = TX.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(params, state, steps=STEPS):
    losses = []
    with jax.set_mesh(params["kernel"].sharding.mesh):
        for _ in range(steps):
            params, state, loss = step(params, state)
            losses.append(float(loss))
    return params, state, losses


def save(folder, params, state):
    with ocp.CheckpointManager(folder) as manager:
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            state=ocp.args.StandardSave(state),
            manifest=ocp.args.JsonSave(ro.checkpoint.manifest(state)),
        )
        manager.save(0, args=items)
        manager.wait_until_finished()


def restore(folder, mesh, layout):
    params = abstract_params(mesh, layout)
    state = ro.checkpoint.target(TX, params)
    with ocp.CheckpointManager(folder) as manager:
        manifest = manager.restore(0, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
        ro.checkpoint.check(manifest, state)
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(params), state=ocp.args.StandardRestore(state)
        )
        restored = manager.restore(0, args=items)
    for leaf, wanted in zip(jax.tree.leaves(restored["state"]), jax.tree.leaves(state), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    return restored["params"], restored["state"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The losses of an unbroken run, fully sharded over eight devices, and its checkpoint on the way."""
    folder = tmp_path_factory.mktemp("unbroken")
    params, state, before = train(*start(mesh_of(8), "fully sharded"))
    save(folder, params, state)
    *_, after = train(params, state, 2 * STEPS)
    assert after[-1] < 0.9 * before[0]
    return folder, after


# Sums over devices are taken in another order: float32 rounding, of which 1e-7 was seen.
assert_same_losses = functools.partial(np.testing.assert_allclose, rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "axis_type"),
    [("tensor parallel", AxisType.Auto), ("fully sharded", AxisType.Explicit)],
    ids=["fully sharded to tensor parallel", "Auto to Explicit"],
)
def test_restored_in_another_layout(unbroken, layout, axis_type):
    folder, expected = unbroken
    *_, losses = train(*restore(folder, mesh_of(8, axis_type), layout))
    assert_same_losses(losses, expected[:STEPS])


def test_restored_on_four_devices_and_then_on_one(unbroken, tmp_path):
    folder, expected = unbroken
    params, state, losses = train(*restore(folder, mesh_of(4), "fully sharded"))
    save(tmp_path, params, state)
    *_, rest = train(*restore(tmp_path, mesh_of(1), "fully sharded"))
    assert_same_losses(losses + rest, expected)

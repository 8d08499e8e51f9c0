"""Which collectives an update needs, and what data parallelism has to do before stage 1."""

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
from riemann_optax import riemannian_sgd

from .contract.registry import ENTRIES

COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"

ALIASES = "riemannian_"


def make_mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))


def collectives(tx, specs):
    """Return (operation, number of arrays) for each collective of a compiled update."""
    mesh = make_mesh()
    shapes = {"bias": (16,), "kernel": (16, 8)}
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(jnp.linspace(-1, 1, np.prod(shapes[name])).reshape(shapes[name]), sharding)
            for name, sharding in ((name, NamedSharding(mesh, spec)) for name, spec in specs.items())
        }
        state = ro.sharding.init(tx, params)
        program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    return operations(program)


def operations(program):
    """Return (operation, number of arrays) for each collective in the text of a compiled program."""
    found = re.findall(rf"= (\S.*?) ({COLLECTIVES})(?:-start)?\(", program)
    return [(operation, len(re.findall(r"\w+\[[\d,]*\]", result))) for result, operation in found]


ROWS = {"bias": P("devices"), "kernel": P("devices", None)}


@pytest.mark.parametrize(
    "name",
    # What mixes weights multiplies matrices, and is counted in tests/eigenbasis/test_sharding.py.
    [name for name, entry in ENTRIES.items() if not (entry.needs_loss or entry.mixes_weights)],
)
def test_an_update_needs_the_declared_collectives_and_no_other(name):
    found = collectives(ENTRIES[name].build(), ROWS)
    declared = ENTRIES[name].all_reduced
    assert {operation for operation, _ in found} == ({"all-reduce"} if declared else set())
    assert sum(arrays for _, arrays in found) <= declared


@pytest.mark.parametrize(
    "name", [name for name, entry in ENTRIES.items() if entry.all_reduced and not name.startswith(ALIASES)]
)
def test_docstrings_declare_the_collectives(name):
    function = functools.reduce(getattr, name.partition(":")[0].split("."), ro)
    assert re.search("all-reduce|all-gather", function.__doc__)


FACTORED_LAYOUTS = {  # of a matrix and of stacked ones, and how many arrays have to be summed over devices
    "rows": (P("devices", None), P(None, "devices", None), 4),  # columns of both, and the means of the rows
    "columns": (P(None, "devices"), P(None, None, "devices"), 2),  # rows of both
    "layers": (P(), P("devices", None, None), 0),
}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("layout", FACTORED_LAYOUTS)
def test_a_factored_phi_reduces_rows_and_columns_and_gathers_nothing(layout, axis_type):
    """The implementation that is fast on one device is the one that runs on many, in both kinds of mesh."""
    matrix, stack, declared = FACTORED_LAYOUTS[layout]
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        params = {
            "matrix": jax.device_put(jnp.ones([16, 24]), NamedSharding(mesh, matrix)),
            "stack": jax.device_put(jnp.ones([8, 16, 24]), NamedSharding(mesh, stack)),
        }
        tx = riemannian_sgd(0.1, phi=ro.phi.factored_activity(), momentum=0.9)
        state = ro.sharding.init(tx, params)
        found = operations(jax.jit(tx.update).lower(params, state, params).compile().as_text())
    assert {operation for operation, _ in found} == ({"all-reduce"} if declared else set())
    assert sum(arrays for _, arrays in found) == declared


@pytest.mark.parametrize(
    "tx",
    [
        ro.scale_by_metric(ro.phi.activity(), 1.0, conformal="neuron"),
        ro.scale_by_metric(ro.phi.activity(), 1.0, ro.normalize_metric("neuron")),
    ],
    ids=["conformal", "normalize_metric"],
)
def test_means_over_the_fan_in_stay_on_the_device_that_has_it(tx):
    assert collectives(tx, {"kernel": P(None, "devices")}) == []


def test_quantiles_gather():
    """As record_metric says; without quantiles it reduces only."""
    tx = optax.chain(
        ro.compute_metric(ro.phi.activity()), ro.record_metric(quantiles=(0.5,)), ro.scale_by_inverse_metric()
    )
    assert {operation for operation, _ in collectives(tx, ROWS)} - {"all-reduce"}
    mesh = make_mesh(AxisType.Explicit)
    params = jax.device_put(jnp.arange(16.0).reshape(16, 1), NamedSharding(mesh, P("devices")))
    with jax.set_mesh(mesh):  # there JAX sorts no shards
        _, state = jax.jit(tx.update)(params, ro.sharding.init(tx, params), params)
    assert float(state[1].metric_quantiles[0, 0]) == pytest.approx(8.5)


WEIGHTS = {"bias": jnp.array([0.5, -1.0, 2.0]), "kernel": jnp.array([[1.0, -0.5, 0.25], [-2.0, 1.5, 3.0]])}


def batch_loss(params, inputs):
    return jnp.mean(jnp.square(jnp.tanh(inputs @ params["kernel"] + params["bias"])))


def inputs_of_all_devices():
    return jnp.asarray(np.random.default_rng(0).standard_normal([16, 2]), jnp.float32)


def weights_of_each_device(tx, average, steps=3):
    """Train replicas under shard_map on parts of one batch; return the weights of every replica."""

    def train(inputs, params):
        params = jax.tree.map(lambda p: p[0], params)
        state = tx.init(params)
        for _ in range(steps):
            gradients = jax.grad(batch_loss)(params, inputs)
            if average:
                gradients = jax.tree.map(lambda g: jax.lax.pmean(g, "devices"), gradients)
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.map(lambda p: p[None], params)

    # Each replica has weights of its own, to see whether they drift apart.
    replicas = jax.tree.map(lambda w: jnp.broadcast_to(w, (8, *w.shape)), WEIGHTS)
    mapped = jax.shard_map(train, mesh=make_mesh(), in_specs=P("devices"), out_specs=P("devices"))
    return jax.jit(mapped)(inputs_of_all_devices(), replicas)


@pytest.mark.parametrize(
    ("whole", "options"), [(True, {"phi": ro.phi.activity(), "conformal": None}), (False, {})]
)
def test_weights_shared_out_inside_of_shard_map_want_an_elementwise_metric(whole, options):
    """The limit that the pages name: means there are those of a part, and what is replicated diverges."""
    tx = ro.riemannian_adamw(0.03, **options)
    random = np.random.default_rng(0)
    shapes = {"kernel": (16, 4), "bias": (4,)}
    params, gradients = (
        {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    gradients["kernel"] = gradients["kernel"] * jnp.arange(16.0)[:, None]

    def train(params, gradients):
        updates, _ = tx.update(gradients, tx.init(params), params)
        return updates["kernel"], updates["bias"][None]

    parts = {"kernel": P("devices"), "bias": P()}
    mapped = jax.shard_map(
        train, mesh=make_mesh(), in_specs=(parts, parts), out_specs=P("devices"), check_vma=False
    )
    (kernel, bias), (alone, (alone_bias,)) = (
        jax.jit(mapped)(params, gradients),
        jax.jit(train)(params, gradients),
    )
    together = np.allclose(kernel, alone, rtol=1e-5) and np.allclose(bias, alone_bias[None], rtol=1e-5)
    assert together == whole
    assert np.array_equal(bias, np.broadcast_to(bias[:1], bias.shape)) == whole


RULES = {
    "activity": lambda: riemannian_sgd(0.3, alpha=3.0),
    "conformal": lambda: riemannian_sgd(0.03, alpha=3.0, conformal="tree", momentum=0.9),
    "adamw": lambda: ro.riemannian_adamw(0.03),
}


@pytest.mark.parametrize("name", RULES)
def test_gradients_averaged_before_stage_1_keep_replicas_together(name):
    """And the replicas do what one device does with the whole batch."""
    tx = RULES[name]()
    replicas = weights_of_each_device(tx, average=True)
    params, state = WEIGHTS, tx.init(WEIGHTS)
    for _ in range(3):
        gradients = jax.grad(batch_loss)(params, inputs_of_all_devices())
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for key, leaf in replicas.items():
        assert leaf.shape[0] == 8
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        np.testing.assert_allclose(leaf[0], params[key], rtol=1e-4, atol=1e-6)


def test_without_the_average_replicas_drift_apart():
    """What compute_metric's docstring warns of: averaging the updates instead does not give the same."""
    replicas = weights_of_each_device(RULES["activity"](), average=False)
    assert np.ptp(np.asarray(replicas["kernel"]), axis=0).max() > 1e-3
    averaged = weights_of_each_device(RULES["activity"](), average=True)
    assert not np.allclose(np.mean(replicas["kernel"], axis=0), averaged["kernel"][0], rtol=1e-3)

"""state_shardings and sharding.init: each device holds its share of the state, and no more."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro
from riemann_optax import riemannian_sgd

LAYOUTS = {  # of a scanned kernel, a kernel and a bias
    "fully sharded": (P(None, ("data", "model"), None), P(("data", "model"), None), P(("data", "model"))),
    "tensor parallel": (P(None, None, "model"), P(None, "model"), P("model")),
    "both": (P(None, "data", "model"), P("data", "model"), P("model")),
}


def make_mesh(axis_type):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))


def make_params(mesh, layout):
    specs = dict(zip(("scanned", "kernel", "bias"), LAYOUTS[layout], strict=True))
    arrays = {"scanned": jnp.ones([3, 16, 8]), "kernel": jnp.ones([16, 8]), "bias": jnp.ones([16])}
    return {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in arrays.items()}


OPTIMISERS = {
    "riemannian_sgd": lambda: riemannian_sgd(0.1, momentum=0.9, record=True),
    "riemannian_adamw": lambda: ro.riemannian_adamw(0.1, phi=ro.phi.activity()),
    "secant": lambda: riemannian_sgd(0.1, phi=ro.phi.secant_curvature()),
    "optax.adam": lambda: optax.adam(0.1),
}


def bytes_on(device, state):
    shards = (s for leaf in jax.tree.leaves(state) if leaf.ndim for s in leaf.addressable_shards)
    return sum(s.data.nbytes for s in shards if s.device == device)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_lies_beside_its_parameters_under_jit(axis_type, layout, name):
    mesh = make_mesh(axis_type)
    params, tx = make_params(mesh, layout), OPTIMISERS[name]()
    shardings = ro.sharding.state_shardings(tx, params)
    with jax.set_mesh(mesh):
        jitted = jax.jit(tx.init, out_shardings=shardings)(params)
        direct = ro.sharding.init(tx, params)
    for state in (jitted, direct):
        copies = 0

        def check(leaf, param):
            nonlocal copies
            copies += 1
            assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim)
            return leaf

        optax.tree.map_params(tx, check, state, params)
        assert copies % len(params) == 0
        assert copies > 0
        device = jax.devices()[0]
        statistics = sum(x.nbytes for x in jax.tree.leaves(state) if x.size in (len(params), 2 * len(params)))
        assert bytes_on(device, state) - statistics == copies // len(params) * bytes_on(device, params)


def test_plain_jit_of_init_replicates_on_an_auto_mesh():
    """The trap that state_shardings is for: 8 times the bytes. If JAX mends it, change docs/recipes."""
    mesh = make_mesh(AxisType.Auto)
    params, tx = make_params(mesh, "fully sharded"), optax.trace(0.9)
    device = jax.devices()[0]
    assert bytes_on(device, jax.jit(tx.init)(params)) == 8 * bytes_on(device, params)
    shardings = ro.sharding.state_shardings(tx, params)
    placed = jax.jit(tx.init, out_shardings=shardings)(params)
    assert bytes_on(device, placed) == bytes_on(device, params)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_factored_state_follows_the_projected_spec(axis_type):
    params = make_params(make_mesh(axis_type), "both")
    shardings = ro.sharding.state_shardings(ro.phi.factored_activity(), params)
    specs = {name: (shardings.rows[name].spec, shardings.columns[name].spec) for name in params}
    assert specs["kernel"] == (P("data", None), P(None, "model"))
    assert specs["scanned"] == (P(None, "data", None), P(None, None, "model"))


def test_abstract_parameters_are_enough():
    mesh = make_mesh(AxisType.Auto)
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), make_params(mesh, "both")
    )
    shardings = ro.sharding.state_shardings(riemannian_sgd(0.1), params)
    assert optax.tree.get(shardings, "second_moment")["kernel"].spec == P("data", "model")


def test_parameters_on_one_device():
    params = {"w": jax.device_put(jnp.ones(3), jax.devices()[2])}
    state = ro.sharding.init(riemannian_sgd(0.1), params)
    assert all(leaf.devices() == {jax.devices()[2]} for leaf in jax.tree.leaves(state))


def test_two_meshes_are_refused():
    one = make_params(make_mesh(AxisType.Auto), "both")["kernel"]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    other = jax.device_put(jnp.ones([8]), NamedSharding(mesh, P("x")))
    with pytest.raises(ValueError, match=r"leaf \['b'\] lies on another mesh"):
        ro.sharding.state_shardings(optax.sgd(0.1), {"a": one, "b": other})


@pytest.mark.parametrize("phi", [ro.phi.activity, ro.phi.factored_activity], ids=lambda phi: phi.__name__)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_training_on_eight_devices_agrees_with_one(axis_type, phi):
    """100 steps of the recommended design, which reduces over the tree, in both of its forms."""
    tx = riemannian_sgd(0.01, momentum=0.9, nesterov=True, phi=phi(decay=0.97), alpha=100.0, conformal="tree")
    target = {"scanned": 2.0, "kernel": -1.0, "bias": 0.5}

    def train(params):
        def step(carry, number):
            params, state = carry
            gradients = jax.tree.map(lambda p, t: (p - t) * (1 + jnp.sin(number + p)), params, target)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, tx.init(params))
        return jax.lax.scan(step, carry, jnp.arange(100, dtype=jnp.float32))[0][0]

    mesh = make_mesh(axis_type)
    params = make_params(mesh, "both")
    params = jax.tree.map(lambda p: p * jnp.linspace(-1, 1, p.shape[-1]).astype(p.dtype), params)
    single = jax.tree.map(lambda p: jnp.asarray(np.asarray(p)), params)
    with jax.set_mesh(mesh):
        sharded = jax.jit(train)(params)
    for name, expected in jax.jit(train)(single).items():
        np.testing.assert_allclose(np.asarray(sharded[name]), expected, rtol=2e-5, atol=2e-6)


def test_a_vector_of_all_parameters_has_no_place():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params = {
        "w": jax.device_put(jnp.ones([8, 4]), NamedSharding(mesh, P("x", None))),
        "b": jax.device_put(jnp.ones(4), NamedSharding(mesh, P())),
    }
    with pytest.raises(ValueError, match=r"^tx: its init joins or reshapes.*optax\.flatten"):
        ro.sharding.state_shardings(optax.flatten(optax.adam(0.1)), params)


@contextlib.contextmanager
def compilations():
    """Collect what XLA compiles inside of the ``with`` block, or JAX reads from its cache of it."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("make", [ro.riemannian_adamw, ro.riemannian_eigenbasis], ids=["adamw", "eigenbasis"])
def test_a_recorded_step_is_compiled_once(axis_type, make):
    """The state of init and that of an update have the same type, and lie in the same way."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    params = jax.device_put({"w": jnp.ones((16, 8))}, NamedSharding(mesh, P("x", None)))
    tx = make(0.003, record=True)
    update = jax.jit(tx.update)
    with jax.set_mesh(mesh):  # the oldest JAX asks for it
        states = [ro.sharding.init(tx, params)]
        states.append(update(params, states[-1], params)[1])
        with compilations() as compiled:
            states.append(update(params, states[-1], params)[1])
    assert not compiled
    assert jax.tree.structure(states[1]) == jax.tree.structure(states[0])
    for leaves in zip(*map(jax.tree.leaves, states), strict=True):
        signatures = {(jax.typeof(leaf), leaf.sharding, leaf.committed) for leaf in leaves}
        assert len(signatures) == 1, signatures

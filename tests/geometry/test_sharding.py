"""On a mesh the geometry keeps shardings and values, and what is elementwise needs no collective."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import riemann_optax as ro

SPECS = {"kernel": jax.P("x", "y"), "bias": jax.P("y")}
COLLECTIVES = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter")


def host_tree(seed):
    random = np.random.default_rng(seed)
    shapes = {"kernel": (4, 8), "bias": (8,)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(request.param, request.param))
    with jax.set_mesh(mesh):
        yield mesh


def on(mesh, tree):
    return {name: jax.device_put(leaf, NamedSharding(mesh, SPECS[name])) for name, leaf in tree.items()}


def retraction(field, kind):
    tx = ro.retract(field, kind)
    return lambda w, u: tx.update(u, tx.init(w), w)[0]


FIELD = ro.fields.Absolute(3.0)
DERIVED = ro.fields.Elementwise(lambda w: 1 + jnp.abs(w))
ELEMENTWISE = {
    "geodesic": retraction(FIELD, "geodesic"),
    "geodesic, derived": retraction(DERIVED, "geodesic"),
    "mirror": retraction(FIELD, "mirror"),
    "logarithm": lambda w, u: ro.geometry.logarithm_map(FIELD, w, u),
    "transport": lambda w, u: ro.geometry.transport(FIELD, w, u, u),
    "christoffel": lambda w, u: ro.geometry.christoffel(FIELD, w, u),
    "sharp": lambda w, u: ro.geometry.sharp(FIELD, w, u),
}
REDUCING = {
    "second_order": retraction(FIELD, "second_order"),
    "distance": lambda w, u: ro.geometry.distance(FIELD, w, u),
    "inner": lambda w, u: ro.geometry.inner(FIELD, w, u, u),
}


@pytest.mark.parametrize("name", [*ELEMENTWISE, *REDUCING])
def test_keeps_shardings_and_values(mesh, name):
    function = (ELEMENTWISE | REDUCING)[name]
    weights, vector = host_tree(0), host_tree(1)
    compiled = jax.jit(function).lower(on(mesh, weights), on(mesh, vector)).compile()
    result = compiled(on(mesh, weights), on(mesh, vector))
    collectives = COLLECTIVES.findall(compiled.as_text())
    assert bool(collectives) == (name in REDUCING)
    assert set(collectives) <= {"all-reduce"}
    if name not in ("distance", "inner"):
        for leaf, spec in SPECS.items():
            assert result[leaf].sharding.is_equivalent_to(NamedSharding(mesh, spec), result[leaf].ndim)
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))):
        expected = jax.jit(function)(weights, vector)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jax.device_get(result), expected)


def test_spectrum_of_sharded_parameters(mesh):
    def loss(params):
        return jnp.sum(jnp.square(params["kernel"])) + 3 * jnp.sum(jnp.square(params["bias"]))

    spectrum = ro.preconditioned_spectrum(loss, on(mesh, host_tree(0)), None, method="lanczos", number=1)
    np.testing.assert_allclose(spectrum.eigenvalues, [2.0, 6.0], rtol=1e-5)

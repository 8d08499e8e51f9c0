"""Identities of JAX, such as names, barriers and constraints on the mesh, hide nothing of a layer."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import riemann_optax as ro

from .models import array, close

X = array(90, 8, 4)
LAYER, OUT = linen.Dense(6), linen.Dense(1)
PARAMS = {
    "layer": LAYER.init(jax.random.key(0), X)["params"],
    "out": OUT.init(jax.random.key(1), jnp.ones([8, 6]))["params"],
}
MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
EXPLICIT = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))


def named(value):
    return checkpoint_name(value, "preactivations")


def constrained(value):
    return jax.lax.with_sharding_constraint(value, NamedSharding(MESH, PartitionSpec("data")))


def resharded(value):
    return jax.sharding.reshard(value, NamedSharding(EXPLICIT, PartitionSpec()))


IDENTITIES = {
    "a name": named,
    "a constraint on the mesh": constrained,
    "another sharding": resharded,
    "rounding": lambda value: jax.lax.reduce_precision(value, 8, 23),
    "a barrier": jax.lax.optimization_barrier,
    "a barrier of several": lambda value: jax.lax.optimization_barrier((X, value))[1],
    "a copy": jnp.copy,
    "a device": lambda value: jax.device_put(value, jax.devices()[0]),
    "a bracket": lambda value: jnp.squeeze(value[:, None], 1),
    "an axis more": lambda value: jnp.expand_dims(value, 1),
    "a cast and back": lambda value: value.astype(jnp.bfloat16).astype(jnp.float32),
    "several": lambda value: named(jax.lax.optimization_barrier(constrained(jnp.squeeze(value[None], 0)))),
}
# A window over what was given another shape is not the units'.
RESHAPED = ("a bracket", "an axis more", "several")


@pytest.fixture(autouse=True)
def mesh(request):
    """Sharding in types needs the mesh around the program."""
    named = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    with jax.set_mesh(EXPLICIT) if named == "another sharding" else contextlib.nullcontext():
        yield


def raw(params, x=X):
    """What a dense layer gives, in NumPy and float64."""
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    return np.asarray(x, np.float64) @ kernel + bias


def activities(loss, params=PARAMS, x=X):
    return ro.value_and_grad(loss, needs="activities")(params, x)[2]["activities"]


def network(before=lambda value: value, behind=lambda value: value, at_the_end=lambda value: value):
    def loss(params, x):
        hidden = behind(jnp.tanh(before(LAYER.apply({"params": params["layer"]}, x))))
        return jnp.mean(at_the_end(OUT.apply({"params": params["out"]}, hidden.reshape(8, 6))) ** 2)

    return loss


@pytest.mark.parametrize("place", ["before", "behind", "at_the_end"])
@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_anywhere_leaves_the_activities_as_they_are(name, place):
    seen = activities(network(**{place: IDENTITIES[name]}))
    # At precision bfloat16 the cast rounds what the nonlinearity is given.
    error = 1e-2 if name == "a cast and back" else 1e-5
    for leaf in ("kernel", "bias"):
        np.testing.assert_allclose(
            seen["layer"][leaf].reshape(8, 6), np.tanh(raw(PARAMS["layer"])), atol=error, rtol=error
        )
    hidden = np.tanh(raw(PARAMS["layer"]))
    np.testing.assert_allclose(seen["out"]["kernel"], raw(PARAMS["out"], hidden), atol=error, rtol=error)


class Pooled(nnx.Module):
    def __init__(self, between):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=nnx.Rngs(0))
        self.between = between

    def __call__(self, x):
        return jnp.tanh(nnx.max_pool(self.between(self.conv(x)), (2, 2), (2, 2)))


@pytest.mark.parametrize("name", [name for name in IDENTITIES if name not in RESHAPED])
def test_an_identity_stands_between_a_layer_and_its_pooling(name):
    """What carries the units on and what leaves them as they are may follow each other."""
    model, x = Pooled(IDENTITIES[name]), array(91, 8, 4, 4, 2)
    seen = activities(lambda model, x: jnp.sum(model(x)), model, x)["conv"]["kernel"]
    close(seen, model(x))


class Normalised(nnx.Module):
    def __init__(self, between):
        self.conv, self.norm = nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(1))
        self.between = between

    def __call__(self, x):
        return jnp.tanh(self.norm(self.between(self.conv(x)).reshape(8, 6)))


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_between_a_layer_and_its_normalisation(name):
    model = Normalised(IDENTITIES[name])
    seen = activities(lambda model, x: jnp.sum(model(x)), model)
    close(seen["conv"]["kernel"].reshape(8, 6), model(X))


@pytest.mark.parametrize("name", IDENTITIES)
def test_weights_behind_an_identity_are_those_of_their_leaf(name):
    def loss(params, x):
        kernel = IDENTITIES[name](params["layer"]["kernel"]).reshape(4, 6)
        hidden = LAYER.apply({"params": params["layer"] | {"kernel": kernel}}, x)
        return jnp.mean(OUT.apply({"params": params["out"]}, jnp.tanh(hidden)))

    _, _, extra = ro.value_and_grad(loss, ("inputs", "activities"))(PARAMS, X)
    close(extra["inputs"]["layer"]["kernel"], X)
    error = 1e-2 if name == "a cast and back" else 1e-5
    expected = np.tanh(raw(PARAMS["layer"]))
    np.testing.assert_allclose(extra["activities"]["layer"]["kernel"], expected, atol=error, rtol=error)


def test_what_a_scan_gives_turned_leads_on():
    """A transposition that no equation of its body reads is no copy for a mark."""

    def loss(params, x):
        _, rows = jax.lax.scan(
            lambda carry, x: (carry, jnp.tanh(LAYER.apply({"params": params["layer"]}, x)).T), 0, x[None]
        )
        return jnp.mean(OUT.apply({"params": params["out"]}, rows[0].T) ** 2)

    close(activities(loss)["layer"]["kernel"].reshape(8, 6), np.tanh(raw(PARAMS["layer"])))

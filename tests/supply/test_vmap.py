"""Layers inside of vmap, over examples and over members: axes in their order, whatever their sizes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import riemann_optax as ro

from .models import array, close

SIZE = 3  # of everything, so that no shape tells one axis from another
X = array(20, SIZE, SIZE)
NEEDS = ("inputs", "activities")


def by_hand(kernels, biases, x):
    """Inputs of two layers, and their activities behind a tanh, in NumPy."""
    hidden = np.tanh(x @ kernels[0] + biases[0])
    return (x, hidden), (hidden, np.tanh(hidden @ kernels[1] + biases[1]))


@pytest.mark.parametrize(("in_axes", "out_axes"), [(0, 0), (1, 0), (1, 1), (0, 1)])
def test_examples_may_lie_along_any_axis(in_axes, out_axes):
    model = eqx.nn.MLP(SIZE, SIZE, SIZE, 1, jnp.tanh, jnp.tanh, key=jax.random.key(0))

    def loss(model, x):
        given = x if in_axes == 0 else x.T
        return jnp.mean(ro.supply.outputs(jax.vmap(model, in_axes, out_axes)(given)) ** 2)

    _, _, extra = ro.value_and_grad(loss, NEEDS)(model, X)
    kernels = [np.asarray(layer.weight).T for layer in model.layers]
    inputs, activities = by_hand(kernels, [np.asarray(layer.bias) for layer in model.layers], np.asarray(X))
    for layer in (0, 1):
        close(extra["inputs"].layers[layer].weight, inputs[layer])
        close(extra["activities"].layers[layer].weight, activities[layer])
        close(extra["activities"].layers[layer].bias, activities[layer])


class Two(linen.Module):
    """Two layers of Linen."""

    @linen.compact
    def __call__(self, x):
        for name in ("first", "second"):
            x = jnp.tanh(linen.Dense(SIZE, name=name)(x))
        return x


def members_of_linen(order):
    model = Two()
    params = jax.vmap(lambda key: model.init(key, X)["params"])(jax.random.split(jax.random.key(0), SIZE))

    def member(params, x):
        return model.apply({"params": params}, x)

    def loss(params, x):
        over = functools.partial(jax.vmap, in_axes=(0, None))
        predict = {
            "members": over(member),
            "members of examples": jax.vmap(over(member), in_axes=(None, 0)),
            "examples of members": over(jax.vmap(member, in_axes=(None, 0))),
        }[order]
        return jnp.mean(predict(params, x) ** 2)

    _, _, extra = ro.value_and_grad(loss, NEEDS)(params, X)
    return params, extra["inputs"], extra["activities"]


def members_of_nnx():
    class Pair(nnx.Module):
        def __init__(self, key):
            rngs = nnx.Rngs(key)
            self.first, self.second = nnx.Linear(SIZE, SIZE, rngs=rngs), nnx.Linear(SIZE, SIZE, rngs=rngs)

        def __call__(self, x):
            return jnp.tanh(self.second(jnp.tanh(self.first(x))))

    models = nnx.vmap(Pair)(jax.random.split(jax.random.key(0), SIZE))

    def loss(models, x):
        return jnp.mean(nnx.vmap(lambda model, x: model(x), in_axes=(0, None))(models, x) ** 2)

    _, _, extra = ro.value_and_grad(loss, NEEDS)(models, X)
    return tuple(map(nnx.to_pure_dict, (nnx.state(models, nnx.Param), extra["inputs"], extra["activities"])))


MAKERS = {
    "linen": functools.partial(members_of_linen, "members"),
    "linen, members of examples": functools.partial(members_of_linen, "members of examples"),
    "linen, examples of members": functools.partial(members_of_linen, "examples of members"),
    "nnx": members_of_nnx,
}


@pytest.mark.parametrize("name", MAKERS)
def test_signals_of_members_stand_before_the_features(name):
    """An axis of members for each weight that has one, also where all of them are given the same."""
    params, inputs, activities = MAKERS[name]()
    for member in range(SIZE):
        of_member = jax.tree.map(lambda leaf, m=member: np.asarray(leaf[m]), params)
        kernels = [of_member[layer]["kernel"] for layer in ("first", "second")]
        biases = [of_member[layer]["bias"] for layer in ("first", "second")]
        expected = by_hand(kernels, biases, np.asarray(X))
        for index, layer in enumerate(("first", "second")):
            close(inputs[layer]["kernel"][:, member], expected[0][index])
            close(activities[layer]["kernel"][:, member], expected[1][index])
            close(activities[layer]["bias"][:, member], expected[1][index])
    phi = ro.phi.idbd(axes="scanned")
    phi.update(params, phi.init(params), params, inputs=inputs)


def test_a_loss_that_differentiates_the_model_by_its_input():
    """A penalty on the slope at the data: the layer has been called twice, on the same."""
    model = nnx.Linear(SIZE, 1, rngs=nnx.Rngs(0))

    def loss(model, x):
        slope = jax.grad(lambda x: jnp.sum(jnp.tanh(model(x))))(x)
        return jnp.mean(model(x) ** 2) + jnp.mean(slope**2)

    _, _, extra = ro.value_and_grad(loss, "inputs")(model, X)
    close(nnx.to_pure_dict(extra["inputs"])["kernel"], jnp.concatenate([X, X]))

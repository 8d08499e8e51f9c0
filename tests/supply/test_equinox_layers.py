"""Layers of Equinox whose axes are not those of Flax's: channels first, and scalars that are no vectors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro


class Normalised(eqx.Module):
    convolution: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm

    def __init__(self):
        self.convolution = eqx.nn.Conv2d(1, 4, 3, padding=1, key=jax.random.key(0))
        given = jnp.arange(1.0, 5.0), jnp.arange(4.0)
        self.norm = eqx.tree_at(lambda norm: (norm.weight, norm.bias), eqx.nn.GroupNorm(2, 4), given)

    def __call__(self, image):
        return jax.nn.relu(self.norm(self.convolution(image)))


@pytest.mark.parametrize("width", [4, 5])  # four columns are as many as channels
def test_a_group_norm_has_its_channels_first(width):
    model = Normalised()
    images = jax.random.normal(jax.random.key(1), (7, 1, 3, width)) * jnp.arange(1.0, width + 1)

    def loss(model, images):
        return jnp.mean(jax.vmap(model)(images) ** 2)

    seen = {
        need: ro.value_and_grad(loss, needs=need)(model, images)[2][need] for need in ("inputs", "activities")
    }
    before = np.asarray(jax.vmap(model.convolution)(images), np.float64)
    groups = before.reshape(7, 2, -1)
    groups = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(
        groups.var(-1, keepdims=True) + model.norm.eps
    )
    normalised = np.moveaxis(groups.reshape(before.shape), 1, -1)
    sent_on = np.maximum(normalised * np.arange(1.0, 5.0) + np.arange(4.0), 0.0)
    np.testing.assert_allclose(seen["inputs"].norm.weight, normalised, rtol=1e-4, atol=1e-5)
    assert seen["inputs"].norm.bias == 1.0
    for leaf in (
        seen["activities"].norm.weight,
        seen["activities"].norm.bias,
        seen["activities"].convolution.weight,
    ):
        np.testing.assert_allclose(leaf, sent_on, rtol=1e-4, atol=1e-5)


class OfOne(eqx.Module):
    """The network whose vectors have one entry."""

    network: eqx.nn.MLP

    def __call__(self, number):
        return self.network(number[None])[0]


@pytest.mark.parametrize("examples", [5, 1])
@pytest.mark.parametrize("name", ["idbd", "sliding_threshold"])
def test_a_scalar_is_a_vector_of_one_entry(name, examples):
    scalar = eqx.nn.MLP("scalar", "scalar", 4, 2, key=jax.random.key(0))
    vector = OfOne(eqx.nn.MLP(1, 1, 4, 2, key=jax.random.key(0)))
    numbers = jnp.arange(1.0, examples + 1)

    def loss(model, numbers):
        return jnp.mean((jax.vmap(model)(numbers) - 1) ** 2)

    def updates(model):
        tx = ro.riemannian_sgd(0.1, phi=getattr(ro.phi, name)(axes="equinox"))
        params = eqx.filter(model, eqx.is_inexact_array)
        state = tx.init(params)
        _, gradients, extra = ro.value_and_grad(loss, needs=tx)(model, numbers, state=state)
        return jax.tree.leaves(tx.update(gradients, state, params, **extra)[0])

    for found, expected in zip(updates(scalar), updates(vector), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        assert np.any(expected)

"""Weights that a layer shows and that the loss uses besides: the one use alone would be wrong."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import riemann_optax as ro

from .models import close

X = jax.random.normal(jax.random.key(0), (5, 6))
TOKENS = jax.random.randint(jax.random.key(1), (3, 5), 0, 7)


class TiedTable(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(7, 4, rngs=rngs)

    def __call__(self, tokens):
        return nnx.tanh(self.table(tokens)) @ self.table.embedding.T


class TiedEncoder(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = linen.tanh(linen.Dense(4, use_bias=False, name="encoder")(x))
        return hidden @ self.variables["params"]["encoder"]["kernel"].T


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("need", ["inputs", "activities"])
def test_a_table_that_reads_out_by_its_transpose_is_refused(need, compiled):
    def loss(model, tokens):
        return jnp.mean(model(tokens) ** 2)

    loss = nnx.jit(loss) if compiled else loss
    with pytest.raises(ValueError, match=r"\['embedding'\] \(read besides by what is no layer"):
        ro.value_and_grad(loss, needs=need)(TiedTable(nnx.Rngs(0)), TOKENS)


@pytest.mark.parametrize("need", ["inputs", "activities"])
def test_an_encoder_that_decodes_by_its_transpose_is_refused(need):
    module = TiedEncoder()
    params = module.init(jax.random.key(0), X)["params"]

    def loss(params, x):
        return jnp.mean((module.apply({"params": params}, x) - x) ** 2)

    with pytest.raises(ValueError, match=r"\['encoder'\]\['kernel'\] \(read besides"):
        ro.value_and_grad(loss, needs=need)(params, X)


DENSE = linen.Dense(6, use_bias=False)
KERNEL = DENSE.init(jax.random.key(0), X)["params"]


def run(params, x):
    return DENSE.apply({"params": params}, x)


def gram(params):
    kernel = params["kernel"]
    return jnp.mean((kernel.T @ kernel - jnp.eye(6)) ** 2)


BESIDE = {
    "weight decay": lambda params, x: jnp.sum(params["kernel"] ** 2),
    "a pull to isometries": lambda params, x: gram(params),
    "a gradient penalty": lambda params, x: jnp.mean(
        jax.grad(lambda x: jnp.sum(jnp.tanh(run(params, x))))(x) ** 2
    ),
    "a directional derivative": lambda params, x: jnp.mean(
        jax.jvp(lambda x: jnp.tanh(run(params, x)), (x,), (jnp.ones_like(x),))[1] ** 2
    ),
    "a metric": lambda params, x: jax.lax.stop_gradient(jnp.mean(x @ params["kernel"])),
    "a residual behind a norm": lambda params, x: jnp.mean(
        jax.nn.standardize(run(params, x)) * run(params, x)
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_use_by_another_layer_is_no_reason_to_refuse(name):
    def loss(params, x):
        return jnp.mean(jnp.tanh(run(params, x)) ** 2) + BESIDE[name](params, x)

    seen = ro.value_and_grad(loss, needs="inputs")(KERNEL, X)[2]["inputs"]["kernel"]
    close(seen[:5], X)


def test_a_norm_and_a_residual_that_read_a_layer_are_no_other_use():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            hidden = linen.Dense(6, name="hidden")(x)
            return linen.Dense(3, name="out")(linen.relu(linen.LayerNorm(name="norm")(hidden)) + hidden)

    module = Net()
    params = module.init(jax.random.key(0), X)["params"]
    step = ro.value_and_grad(
        lambda params, x: jnp.mean(module.apply({"params": params}, x) ** 2), "activities"
    )
    assert step(params, X)[2]["activities"]["hidden"]["kernel"].shape == (5, 6)

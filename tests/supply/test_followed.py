"""How far a layer's values are followed to their nonlinearity: through scans, joined values, other axes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen

import riemann_optax as ro

from .models import array, close

SIZE = 5
X = array(40, 6, SIZE)
LAYER, OUT = linen.Dense(SIZE), linen.Dense(1)


def stack_of(number):
    keys = jax.random.split(jax.random.key(4), number)
    return jax.vmap(lambda key: LAYER.init(key, X)["params"])(keys)


PARAMS = {"stack": stack_of(3), "out": OUT.init(jax.random.key(5), X)["params"]}


def run(params, x):
    return LAYER.apply({"params": params}, x)


def affine(params, x):
    return x @ params["kernel"] + params["bias"]


def activities(loss, params, x=X):
    return ro.value_and_grad(loss, needs="activities")(params, x)[2]["activities"]


def of_scan(params, x):
    x, _ = jax.lax.scan(lambda x, row: (jax.nn.relu(run(row, x)), None), x, params["stack"])
    return x


def of_scan_of_pairs(params, x):
    """What one round carries reaches the layer in the next round but one."""

    def body(pair, row):
        return (pair[1], jax.nn.relu(run(row, pair[0]))), None

    (_, last), _ = jax.lax.scan(body, (x, x), params["stack"])
    return last


@pytest.mark.parametrize("inside", ["plain", "jit", "remat"])
@pytest.mark.parametrize("model", [of_scan, of_scan_of_pairs])
def test_a_nonlinearity_behind_a_layer_that_a_scan_applies_is_found(model, inside):
    wrapped = {"plain": model, "jit": jax.jit(model), "remat": jax.checkpoint(model)}[inside]

    def loss(params, x):
        return jnp.mean(OUT.apply({"params": params["out"]}, wrapped(params, x)) ** 2)

    rows, carried = [], [X, X]
    for row in range(3):
        given = carried[-1] if model is of_scan else carried[-2]
        rows.append(
            jax.nn.relu(affine(jax.tree.map(lambda leaf, row=row: leaf[row], PARAMS["stack"]), given))
        )
        carried.append(rows[-1])
    seen = activities(loss, PARAMS)
    for name in ("kernel", "bias"):
        close(seen["stack"][name], jnp.stack(rows, 1))
    close(seen["out"]["kernel"], affine(PARAMS["out"], carried[-1]))


@pytest.mark.parametrize("reads", ["the last state", "every state"])
def test_an_elman_network_by_hand(reads):
    """Two layers of one sum, whose tanh is given to the one in the next step and to the output layer."""
    cell, inp = (LAYER.init(jax.random.key(seed), X)["params"] for seed in (6, 7))
    params = {"cell": cell, "inp": inp, "out": PARAMS["out"]}
    sequence = array(41, 4, 6, SIZE)

    def loss(params, sequence):
        def step(state, x):
            state = jnp.tanh(run(params["cell"], state) + run(params["inp"], x))
            return state, state

        last, every = jax.lax.scan(step, jnp.zeros((6, SIZE)), sequence)
        return jnp.mean(OUT.apply({"params": params["out"]}, last if "last" in reads else every) ** 2)

    state, states = jnp.zeros((6, SIZE)), []
    for x in sequence:
        state = jnp.tanh(affine(cell, state) + affine(inp, x))
        states.append(state)
    seen = activities(loss, params, sequence)
    for name in ("cell", "inp"):
        close(seen[name]["kernel"], jnp.stack(states))


def test_the_outputs_of_a_scan_that_no_layer_reads_are_as_they_are():
    """The square of the loss is no nonlinearity of the layer that reads out in each step."""

    def loss(params, sequence):
        def step(state, x):
            state = jnp.tanh(run(params["cell"], state + x))
            return state, OUT.apply({"params": params["out"]}, state) ** 2

        return jnp.mean(jax.lax.scan(step, jnp.zeros((6, SIZE)), sequence)[1])

    params = {"cell": LAYER.init(jax.random.key(6), X)["params"], "out": PARAMS["out"]}
    sequence = array(41, 4, 6, SIZE)
    state, read = jnp.zeros((6, SIZE)), []
    for x in sequence:
        state = jnp.tanh(affine(params["cell"], state + x))
        read.append(affine(params["out"], state))
    close(activities(loss, params, sequence)["out"]["kernel"], jnp.stack(read))


class Joined(linen.Module):
    """Two layers whose values are joined, or brought into another order, before one nonlinearity."""

    bend: object

    @linen.compact
    def __call__(self, x):
        left, right = linen.Dense(3, name="left")(x), linen.Dense(4, name="right")(x)
        return linen.Dense(1, name="out")(self.bend(left, right, x))


def beside(left, right, x):
    return jax.nn.relu(jnp.concatenate([left, x, right], -1))


def shifted(left, right, x):
    return jnp.tanh(jnp.concatenate([left, right], -1) + jnp.sum(x, -1, keepdims=True))


def transposed(left, right, x):
    return jnp.concatenate([jnp.tanh(left.T).T, right], -1)


def joined_and_transposed(left, right, x):
    return jax.nn.relu(jnp.concatenate([left.T, right.T], 0).reshape(7, 2, 3)).reshape(7, 6).T


ORDERS = {
    "beside": (beside, jax.nn.relu, jax.nn.relu),
    "transposed": (transposed, jnp.tanh, None),
    "joined and transposed": (joined_and_transposed, jax.nn.relu, jax.nn.relu),
    "read besides": (
        lambda left, right, x: beside(left, right, x) + left.sum(-1, keepdims=True),
        None,
        jax.nn.relu,
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_nonlinearity_behind_what_joins_or_transposes_layers_is_found(name):
    bend, *expected = ORDERS[name]
    module = Joined(bend)
    params = module.init(jax.random.key(8), X)["params"]
    seen = activities(lambda params, x: jnp.mean(module.apply({"params": params}, x) ** 2), params)
    for layer, function in zip(("left", "right"), expected, strict=True):
        raw = affine(params[layer], X)
        for leaf in ("kernel", "bias"):
            close(seen[layer][leaf], raw if function is None else function(raw))


def test_a_sum_behind_what_joins_layers_belongs_to_each():
    module = Joined(shifted)
    params = module.init(jax.random.key(8), X)["params"]
    seen = activities(lambda params, x: jnp.mean(module.apply({"params": params}, x) ** 2), params)
    for layer in ("left", "right"):
        close(seen[layer]["kernel"], jnp.tanh(affine(params[layer], X) + jnp.sum(X, -1, keepdims=True)))


def test_layers_that_are_stacked_before_their_nonlinearity_have_each_its_own_part():
    module = Joined(lambda left, right, x: jnp.tanh(jnp.stack([left, right[:, :3]], 1)).reshape(6, -1))
    params = module.init(jax.random.key(8), X)["params"]
    seen = activities(lambda params, x: jnp.mean(module.apply({"params": params}, x) ** 2), params)
    close(seen["left"]["kernel"], jnp.tanh(affine(params["left"], X)))
    raw = affine(params["right"], X)
    close(seen["right"]["kernel"], raw.at[:, :3].set(jnp.tanh(raw[:, :3])))


def test_what_is_joined_for_the_next_layer_alone_is_as_it_is():
    """A dense block: the next layer reads the layer's own value, and bends what it makes of it."""

    class Dense(linen.Module):
        @linen.compact
        def __call__(self, x):
            first = jnp.concatenate([x, linen.Dense(3, name="first")(x)], -1)
            second = jnp.concatenate([first, linen.Dense(3, name="second")(first)], -1)
            return linen.Dense(1, name="out")(jax.nn.relu(second))

    module = Dense()
    params = module.init(jax.random.key(8), X)["params"]
    seen = activities(lambda params, x: jnp.mean(module.apply({"params": params}, x) ** 2), params)
    first = affine(params["first"], X)
    second = affine(params["second"], jnp.concatenate([X, first], -1))
    close(seen["first"]["kernel"], first)
    close(seen["second"]["kernel"], jax.nn.relu(second))


MLP = eqx.nn.MLP(SIZE, 2, 8, 1, key=jax.random.key(9))
TARGET = array(42, 6, 2)
LOSSES = {
    "squared error": lambda u: jnp.mean((u - TARGET) ** 2),
    "of a number": lambda u: jnp.mean((u - 1) ** 2),
    "absolute error": lambda u: jnp.mean(jnp.abs(u - TARGET)),
    "cross-entropy": lambda u: jnp.mean(jnp.logaddexp(0.0, u) - u * TARGET),
    "joined": lambda u: jnp.mean(jnp.concatenate([u - 1, X], -1) ** 2),
    "stacked": lambda u: jnp.mean(jnp.stack([u, TARGET]) ** 2),
    "transposed": lambda u: jnp.mean((u.T - 1) ** 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_measures_of_the_outputs_is_no_nonlinearity_of_the_last_layer(name):
    """Equinox tells no outputs: the last layer's activities are its own values nevertheless."""
    seen = activities(lambda model, x: LOSSES[name](jax.vmap(model)(x)), MLP)
    outputs = jax.vmap(MLP)(X)
    close(seen.layers[-1].weight, outputs)
    close(seen.layers[0].weight, jax.nn.relu(X @ MLP.layers[0].weight.T + MLP.layers[0].bias))


@pytest.mark.parametrize("target", [TARGET, 1.0])
def test_a_last_nonlinearity_before_a_squared_error_is_found(target):
    seen = activities(lambda model, x: jnp.mean((jnp.tanh(jax.vmap(model)(x)) - target) ** 2), MLP)
    close(seen.layers[-1].weight, jnp.tanh(jax.vmap(MLP)(X)))


def test_a_product_by_hand_is_a_further_layer():
    layer, readout = MLP.layers[0], array(43, 8, 1)
    seen = activities(lambda layer, x: jnp.mean(jax.nn.gelu(jax.vmap(layer)(x)) @ readout), layer)
    close(seen.weight, jax.nn.gelu(jax.vmap(layer)(X)))

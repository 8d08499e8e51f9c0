"""The small network that every program of this folder trains, and the same training without the program.

The weights, the data and the loss are fixed, so that each program can be held to the weights that
:func:`train_plainly` finds with dictionaries of arrays, one device and two calls of Optax.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

STEPS = 5  # an eigenbasis is made at the first and brought up to date twice


def factored_sgd(learning_rate):
    """Factored state, momentum and a conformal metric: arrays of other shapes than the weights."""
    return ro.riemannian_sgd(
        learning_rate, momentum=0.9, nesterov=True, phi=ro.phi.factored_activity(decay=0.97), conformal="tree"
    )


def in_units_of_sgd(learning_rate):
    """A rate with which plain steps move the weights by about as much as Adam's."""
    if callable(learning_rate):
        return lambda count: 30 * learning_rate(count)
    return 30 * learning_rate


# Each optimiser as a function of its learning rate.
RULES = {
    "riemannian_sgd": lambda learning_rate: ro.riemannian_sgd(in_units_of_sgd(learning_rate)),
    "riemannian_adamw": ro.riemannian_adamw,
    "in_eigenbasis": lambda learning_rate: ro.in_eigenbasis(
        factored_sgd(learning_rate), sides="smaller", update_every=2
    ),
    "int8": lambda learning_rate: ro.low_precision_state(factored_sgd(learning_rate), "int8", block_size=4),
}
RATE = 0.01
PLACES = {  # on a mesh with an axis "model": the hidden features are spread
    "first": {"bias": P("model"), "kernel": P(None, "model")},
    "second": {"bias": P(None), "kernel": P("model", None)},
}


def host_weights():
    """The weights of a network 8 - 16 - 8, in Flax's layout and by Flax's names."""
    random = np.random.default_rng(0)

    def layer(fan_in, fan_out):
        kernel = random.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in)
        return {
            "bias": (0.1 * random.standard_normal(fan_out)).astype(np.float32),
            "kernel": kernel.astype(np.float32),
        }

    return {"first": layer(8, 16), "second": layer(16, 8)}


def host_data():
    """64 inputs and what another network makes of them."""
    random = np.random.default_rng(1)
    inputs = random.standard_normal((64, 8)).astype(np.float32)
    targets = np.tanh(inputs @ random.standard_normal((8, 8))).astype(np.float32)
    return inputs, targets


INPUTS, TARGETS = host_data()


def weights():
    """Fresh arrays: some programs donate theirs."""
    return jax.tree.map(jnp.asarray, host_weights())


def make_mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)


def spread_data(mesh):
    """The data with its examples spread over the axis "data"."""
    return tuple(jax.device_put(x, NamedSharding(mesh, P("data", None))) for x in (INPUTS, TARGETS))


def assert_placed(params, mesh):
    """Weights lie where their annotations say."""
    places = jax.tree.leaves(PLACES, is_leaf=lambda node: isinstance(node, P))
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(params), places, strict=True):
        right = NamedSharding(mesh, place)
        assert leaf.sharding.is_equivalent_to(right, leaf.ndim), jax.tree_util.keystr(path)


def assert_momentum_is_placed(state, mesh):
    """What has the shape of a kernel lies where that kernel lies."""
    for leaf in jax.tree.leaves(state):
        for name, shape in (("first", (8, 16)), ("second", (16, 8))):
            if leaf.shape == shape:
                assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, PLACES[name]["kernel"]), 2)


def forward(params, inputs):
    hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"]


def mean_square(outputs, targets=TARGETS):
    return jnp.mean((outputs - targets) ** 2)


def loss(params, inputs=INPUTS, targets=TARGETS):
    return mean_square(forward(params, inputs), targets)


def train_plainly(tx, params=None, loss=loss, steps=STEPS):
    """Return the weights after a few compiled steps, and the last state."""
    params = weights() if params is None else params
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@functools.cache
def plain_result(rule):
    """Return the weights to which a rule takes the common network."""
    return jax.device_get(train_plainly(RULES[rule](RATE))[0])


def assert_trained_as_plainly(params, rule):
    """Hold a program's weights to those of :func:`plain_result`."""
    assert_moved_alike(params, plain_result(rule))


def assert_moved_alike(found, expected, start=None, rtol=3e-5):
    """Compare how far two runs have come, leaf by leaf, to ``rtol`` of the largest change of the leaf.

    Weights of size 1 that have moved by 0.03 in five steps are rounded to about 1e-5 of that.
    """
    start = host_weights() if start is None else start
    assert jax.tree.structure(found) == jax.tree.structure(expected) == jax.tree.structure(start)
    trees = jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), jax.tree.leaves(start)
    for (path, a), b, s in zip(*trees, strict=True):
        moved, right = np.asarray(a) - np.asarray(s), np.asarray(b) - np.asarray(s)
        scale = np.abs(right).max()
        name = jax.tree_util.keystr(path)
        assert np.isfinite(right).all(), name
        assert scale > 1e-4, f"{name}: nothing to compare"
        np.testing.assert_allclose(moved, right, rtol=0, atol=rtol * scale, err_msg=name)

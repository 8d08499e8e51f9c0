"""State in low precision inside of ``nnx.Optimizer``, which wraps every leaf of a state in a Variable."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import riemann_optax as ro

from . import training
from .test_annotated_nnx import Network, pure

WRAPPED = {
    "whole optimiser": lambda storage: ro.low_precision_state(
        training.factored_sgd(training.RATE), storage, block_size=4
    ),
    "phi": lambda storage: ro.riemannian_sgd(
        training.RATE, phi=ro.low_precision_state(ro.phi.activity(decay=0.97), storage, block_size=4)
    ),
    "momentum": lambda storage: optax.chain(
        ro.low_precision_state(optax.trace(0.9), storage, block_size=4), optax.scale(-training.RATE)
    ),
    "optax.adam": lambda storage: ro.low_precision_state(optax.adam(training.RATE), storage, block_size=4),
    "in an eigenbasis": lambda storage: ro.low_precision_state(
        ro.in_eigenbasis(training.factored_sgd(training.RATE), sides="smaller", update_every=2),
        storage,
        block_size=4,
    ),
}
each = pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
each_storage = pytest.mark.parametrize("storage", ["bfloat16", "int8"])


def plain(initializer, names):
    return initializer


def pair(tx):
    model = Network(plain)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def train(model, optimizer, steps=training.STEPS):
    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda m: training.mean_square(m(training.INPUTS)))(model)
        optimizer.update(model, gradients)

    for _ in range(steps):
        step(model, optimizer)


@pytest.mark.parametrize("name", WRAPPED)
@each_storage
def test_training_is_that_of_plain_trees(storage, name):
    """The roundings are the same too: they depend on the place of an element, not on what wraps it.

    An eigenbasis makes more of what two programs round differently than a code of eight bits can hold. It is
    compared without programs, where NNX's own operations are the same ones.
    """
    make = WRAPPED[name]
    model, optimizer = pair(make(storage))
    before = nnx.state(optimizer)
    structure = jax.tree.structure(before)
    types = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(before)]
    with jax.disable_jit(name == "in an eigenbasis"):
        train(model, optimizer)
        expected, _ = training.train_plainly(make(storage))
    after = nnx.state(optimizer)
    assert jax.tree.structure(after) == structure
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(after)] == types
    training.assert_moved_alike(pure(model), expected)


@each_storage
def test_state_is_as_small_as_promised(storage):
    """Of a momentum: 2 bytes for each value, or 1 and a scale for each block of 4."""
    _, optimizer = pair(WRAPPED["momentum"](storage))
    kernels, biases = 2 * 8 * 16, 8 + 16
    promised = 2 * (kernels + biases) if storage == "bfloat16" else (1 + 4 / 4) * kernels + 4 * biases
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(optimizer)))
    assert promised <= size <= promised + 16  # a few counters


@pytest.mark.parametrize("name", ["whole optimiser", "phi", "in an eigenbasis"])
@each_storage
def test_describe_names_every_leaf(storage, name):
    model = Network(plain)
    description = ro.describe(WRAPPED[name](storage), nnx.state(model, nnx.Param))
    assert len(description.leaves) == 4
    assert sum(leaf.state_bytes for leaf in description.leaves) > 0


@each
@each_storage
def test_map_params_reaches_the_state_and_changes_nothing(storage, make):
    tx = make(storage)
    params = training.weights()
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (mapped, state)), strict=True))

"""Haiku models: dictionaries of dictionaries whose keys are paths of modules."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest

from . import training


def network(inputs):
    """The common network."""

    def layer(name):
        values = training.host_weights()[name]
        return hk.Linear(
            values["bias"].size,
            w_init=hk.initializers.Constant(values["kernel"]),
            b_init=hk.initializers.Constant(values["bias"]),
            name=name,
        )

    return layer("second")(jnp.tanh(layer("first")(inputs)))


@pytest.mark.parametrize("rule", training.RULES)
def test_transformed_function(rule):
    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), training.INPUTS)
    assert set(params) == {"first", "second"}
    tx = training.RULES[rule](training.RATE)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: training.mean_square(model.apply(p, training.INPUTS)))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(training.STEPS):
        params, state = step(params, state)
    renamed = {name: {"bias": layer["b"], "kernel": layer["w"]} for name, layer in params.items()}
    training.assert_trained_as_plainly(renamed, rule)


def test_only_the_head_is_trained():
    """``hk.data_structures.partition`` cuts the tree in two; the optimiser sees one of the parts."""
    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), training.INPUTS)
    head, body = hk.data_structures.partition(lambda module, name, value: module == "second", params)

    def loss(head):
        return training.mean_square(model.apply(hk.data_structures.merge(body, head), training.INPUTS))

    start = {"second": training.weights()["second"]}

    def plain_loss(head):
        return training.loss({**training.weights(), **head})

    for rule in ("riemannian_sgd", "in_eigenbasis"):
        found, _ = training.train_plainly(training.RULES[rule](training.RATE), head, loss)
        expected, _ = training.train_plainly(training.RULES[rule](training.RATE), start, plain_loss)
        renamed = {name: {"bias": layer["b"], "kernel": layer["w"]} for name, layer in found.items()}
        training.assert_moved_alike(renamed, expected, start)

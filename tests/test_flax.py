"""Flax: NNX and Linen loops, kinds of parameters of real models, embeddings and tied weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import riemann_optax as ro
from riemann_optax import riemannian_sgd

TOKENS = jnp.array([[0, 1, 2, 3], [2, 1, 0, 3]])  # rows 4, 5 and 6 of the embedding never occur
VOCABULARY = 7
RULES = {
    "riemannian_sgd": lambda: riemannian_sgd(
        0.02, momentum=0.9, nesterov=True, phi=ro.phi.activity(decay=0.97), alpha=100.0, conformal="tree"
    ),
    "riemannian_adamw": lambda: ro.riemannian_adamw(0.03, alpha=1.0, record=True),
    "partition_by_kind": lambda: ro.partition_by_kind(
        riemannian_sgd(0.5, alpha=1.0), norm=optax.sgd(0.1), bias=optax.sgd(0.1)
    ),
    "multi_steps": lambda: optax.MultiSteps(riemannian_sgd(0.5), 2).gradient_transformation(),
}


class Model(nnx.Module):
    """Embedding, normalisation, convolution, dense layer, and the embedding again as the read-out."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.convolution = nnx.Conv(6, 6, kernel_size=(3,), rngs=rngs)
        self.dense = nnx.Linear(6, 6, rngs=rngs)
        self.temperature = nnx.Param(jnp.ones(1))

    def __call__(self, tokens):
        hidden = self.convolution(self.norm(self.embed(tokens)))
        return self.embed.attend(nnx.tanh(self.dense(hidden))) * self.temperature[...]


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        embed = linen.Embed(VOCABULARY, 6, name="embed")
        hidden = linen.Conv(6, (3,), name="convolution")(linen.LayerNorm(name="norm")(embed(tokens)))
        hidden = linen.tanh(linen.Dense(6, name="dense")(hidden))
        temperature = self.param("temperature", linen.initializers.ones, (1,))
        return embed.attend(hidden) * temperature


KINDS = {
    "embed": {"embedding": "embedding"},
    "norm": {"scale": "norm", "bias": "norm"},
    "convolution": {"kernel": "matrix", "bias": "bias"},
    "dense": {"kernel": "matrix", "bias": "bias"},
    "temperature": "vector",
}


def cross_entropy(logits):
    targets = jnp.roll(TOKENS, -1, axis=1)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


@pytest.mark.parametrize("name", RULES)
def test_nnx_optimizer(name):
    """The loss falls, and the weights are those of the same rule outside of NNX."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, RULES[name](), wrt=nnx.Param)
    graph, variables = nnx.split(model, nnx.Param)
    params = jax.tree.map(jnp.copy, nnx.to_pure_dict(variables))  # training changes the variables in place

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(lambda m: cross_entropy(m(TOKENS)))(model)
        optimizer.update(model, gradients)
        return value

    losses = [float(step(model, optimizer)) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    assert optimizer.step[...] == 12

    tx = RULES[name]()
    state = tx.init(params)

    @jax.jit
    def plain_step(params, state):
        gradients = jax.grad(lambda p: cross_entropy(nnx.merge(graph, p)(TOKENS)))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(12):
        params, state = plain_step(params, state)
    chex.assert_trees_all_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params, rtol=1e-4, atol=1e-5)


def test_nnx_optimizer_forwards_extra_arguments():
    """The curvature phi gets its loss; without it the error says how to pass it."""
    model = Model(nnx.Rngs(0))
    tx = riemannian_sgd(0.3, phi=ro.phi.hutchinson_curvature(decay=0.5), alpha=1.0)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    graph, _ = nnx.split(model, nnx.Param)

    def loss_of_params(params):
        return cross_entropy(nnx.merge(graph, params)(TOKENS))

    @nnx.jit
    def step(model, optimizer):
        params = nnx.state(model, nnx.Param)
        value, gradients = jax.value_and_grad(loss_of_params)(params)
        optimizer.update(model, gradients, obj_fn=loss_of_params)
        return value

    losses = [float(step(model, optimizer)) for _ in range(10)]
    assert losses[-1] < 0.8 * losses[0]
    gradients = nnx.state(model, nnx.Param)
    with pytest.raises(ValueError, match=r"^hutchinson_curvature needs the extra argument obj_fn"):
        optimizer.update(model, gradients)


@pytest.mark.parametrize("name", RULES)
def test_linen_train_state(name):
    model = LinenModel()
    params = model.init(jax.random.key(0), TOKENS)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=RULES[name]())

    @jax.jit
    def step(state):
        def loss(params):
            return cross_entropy(state.apply_fn({"params": params}, TOKENS))

        value, gradients = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradients), value

    losses = []
    for _ in range(12):
        state, value = step(state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]


def test_kinds_of_an_nnx_model():
    """Under NNX the paths given to init end in ``.value``, those given to update do not: same labels."""
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    labels = ro.parameter_kinds(state)
    assert nnx.to_pure_dict(labels) == KINDS
    assert ro.parameter_kinds(nnx.to_pure_dict(state)) == KINDS


def test_kinds_of_a_linen_model():
    params = LinenModel().init(jax.random.key(0), TOKENS)["params"]
    assert ro.parameter_kinds(params) == KINDS
    abstract = jax.eval_shape(LinenModel().init, jax.random.key(0), TOKENS)["params"]
    assert ro.parameter_kinds(abstract) == KINDS


def test_each_kind_gets_its_own_optimiser():
    """A rate per kind, read off the updates under a gradient of ones."""
    rates = {"matrix": 1.0, "embedding": 2.0, "bias": 3.0, "norm": 4.0, "vector": 5.0}
    params = LinenModel().init(jax.random.key(0), TOKENS)["params"]
    by_kind = {kind: optax.sgd(rate) for kind, rate in rates.items() if kind != "matrix"}
    tx = ro.partition_by_kind(riemannian_sgd(1.0, alpha=1.0), **by_kind)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    # Matrices have a metric: under a gradient of 1, E = 1 + 1.
    expected = jax.tree.map(
        lambda p, kind: np.full(p.shape, -0.5 if kind == "matrix" else -rates[kind]), params, KINDS
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_tied_weights_are_one_leaf_with_one_label_and_one_metric():
    """The read-out shares the embedding: its gradient is the sum of both uses, and so is what phi sees."""
    model = Model(nnx.Rngs(0))
    labels = jax.tree.leaves(ro.parameter_kinds(nnx.state(model, nnx.Param)))
    assert labels.count("embedding") == 1
    tx = ro.partition_by_kind(optax.sgd(0.1), embedding=riemannian_sgd(0.1, alpha=4.0))
    graph, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    gradients = jax.grad(lambda p: cross_entropy(nnx.merge(graph, p)(TOKENS)))(params)
    assert np.all(gradients["embed"]["embedding"] != 0)  # through the read-out every row gets a gradient
    metric = ro.metric_at(tx, gradients, tx.init(params), params)
    expected = 1 + 4 * np.abs(gradients["embed"]["embedding"])
    np.testing.assert_allclose(metric["embed"]["embedding"], expected, rtol=1e-5)
    np.testing.assert_array_equal(metric["dense"]["kernel"], np.ones([6, 6]))


def embedding_gradient(table, rows):
    return jax.grad(lambda t: jnp.sum(jnp.sin(t[jnp.array(rows)])))(table)


def test_rows_of_an_embedding_without_gradient_do_not_move_but_age():
    """As partition_by_kind documents it: phi forgets per update, so that a rare row comes back freer."""
    decay = 0.5
    table = nnx.Embed(VOCABULARY, 3, rngs=nnx.Rngs(0)).embedding[...]
    tx = ro.partition_by_kind(
        optax.sgd(0.1), embedding=riemannian_sgd(0.1, phi=ro.phi.activity(decay=decay), alpha=10.0)
    )
    params = {"embed": {"embedding": table}}
    gradient = {"embed": {"embedding": embedding_gradient(table, [1, 2])}}
    rare = {"embed": {"embedding": embedding_gradient(table, [2])}}
    state = tx.init(params)
    updates, state = tx.update(gradient, state, params)
    assert np.all(updates["embed"]["embedding"][jnp.array([0, 3, 4, 5, 6])] == 0)
    first = ro.metric_at(tx, gradient, tx.init(params), params)["embed"]["embedding"]
    np.testing.assert_array_equal(first[0], np.ones(3))  # never a gradient: never a metric

    for _ in range(3):  # row 1 does not occur
        updates, state = tx.update(rare, state, params)
        assert np.all(updates["embed"]["embedding"][1] == 0)
        assert np.all(updates["embed"]["embedding"][2] != 0)
    metric = ro.metric_at(tx, gradient, state, params)["embed"]["embedding"]
    size = np.abs(gradient["embed"]["embedding"])
    # Of the five updates row 1 took part in the first and the last, row 2 in all.
    weights = decay ** np.arange(4, -1, -1)
    share = (weights[0] + weights[-1]) / weights.sum()
    np.testing.assert_allclose(metric[1], 1 + 10 * np.sqrt(share) * size[1], rtol=1e-5)
    np.testing.assert_allclose(metric[2], 1 + 10 * size[2], rtol=1e-5)
    assert np.all(metric[1] < first[1])


@pytest.mark.parametrize("option", ["momentum", "weight_decay"])
def test_momentum_and_decay_do_move_rows_without_gradient(option):
    table = jnp.ones([VOCABULARY, 3])
    tx = riemannian_sgd(0.1, **{option: 0.5})
    state = tx.init(table)
    _, state = tx.update(embedding_gradient(table, [1, 2]), state, table)
    updates, _ = tx.update(embedding_gradient(table, [2]), state, table)
    assert np.all(updates[1] != 0)
    assert np.all(updates[0] != 0) == (option == "weight_decay")


def test_a_module_called_value_is_a_module():
    """As of attention, or of an actor with a critic: the name of a box's content is the last one alone."""
    dense = {"kernel": jnp.ones([3, 3]), "bias": jnp.ones(3)}
    labels = ro.parameter_kinds({"scale": jnp.ones(3), "value": dense, "query": dense})
    assert labels["value"] == labels["query"] == {"kernel": "matrix", "bias": "bias"}


def test_a_bias_beside_the_norm_of_another_layer_of_a_list_is_a_bias():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(2, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
    )
    kinds = ro.parameter_kinds(nnx.to_pure_dict(nnx.state(model, nnx.Param)))["layers"]
    assert [kinds[layer]["bias"] for layer in range(3)] == ["bias", "norm", "bias"]
    layers = [{"kernel": jnp.ones([2, 3]), "bias": jnp.ones(3)}, {"scale": jnp.ones(3), "bias": jnp.ones(3)}]
    assert [layer["bias"] for layer in ro.parameter_kinds(layers)] == ["bias", "norm"]
    assert ro.parameter_kinds({"bias": [1.0, 2.0], "a": 1.0}) == {"bias": ["bias", "bias"], "a": "vector"}


def test_raw_tables_are_embeddings_and_a_layer_of_patches_is_none():
    params = {
        "pos_embedding": jnp.zeros([1, 4, 3]),  # as in Flax's Vision Transformer
        "token_embed": jnp.zeros([5, 3]),
        "patch_embed": jnp.zeros([3, 4]),
        "embed_scale": jnp.zeros([]),
    }
    assert ro.parameter_kinds(params) == {
        "pos_embedding": "embedding",
        "token_embed": "embedding",
        "patch_embed": "matrix",
        "embed_scale": "vector",
    }


def test_a_model_of_nnx_is_labelled_by_its_parameters():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert jax.tree.leaves(ro.parameter_kinds(model)) == ["bias", "matrix"]

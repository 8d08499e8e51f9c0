"""What layers receive and send on, of each library, held to a forward pass by hand."""

import functools
import re

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import riemann_optax as ro

from . import models
from .models import Net, close


def test_inputs_of_an_nnx_model():
    model = Net(nnx.Rngs(0))
    _, _, extra = ro.value_and_grad(models.of_convnet, "inputs")(model, models.IMAGES)
    inputs = nnx.to_pure_dict(extra["inputs"])
    images = models.IMAGES["images"]
    padded = jnp.pad(images, [(0, 0), (0, 1), (0, 1), (0, 0)])  # "SAME" for stride 2
    patches = jnp.stack(
        [jnp.stack([padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for j in range(2)], 1) for i in range(2)],
        1,
    )
    close(inputs["convolution"]["kernel"], patches)
    sent = model.convolution(images)
    spread = (sent - sent.mean(-1, keepdims=True)) / jnp.sqrt(sent.var(-1, keepdims=True) + 1e-6)
    chex.assert_trees_all_close(inputs["norm"]["scale"], spread, rtol=1e-3, atol=1e-4)
    close(inputs["head"]["kernel"], nnx.relu(model.norm(sent)).reshape(models.EXAMPLES, -1))
    assert [inputs[name]["bias"] for name in ("convolution", "norm", "head")] == [1.0] * 3


def test_activities_of_an_nnx_model():
    """After the nonlinearity; a normalisation belongs to the layer before it; logits are as they are."""
    model = models.ConvNet(nnx.Rngs(0))
    _, _, extra = ro.value_and_grad(models.of_convnet, ("activities", "outputs_fn"))(
        nnx.clone(model), models.IMAGES
    )
    activities = nnx.to_pure_dict(extra["activities"])
    hidden = nnx.relu(model.norm(model.convolution(models.IMAGES["images"])))
    for name in ("convolution", "norm"):
        for leaf in activities[name].values():
            close(leaf, hidden)
    logits = extra["outputs_fn"](nnx.state(model, nnx.Param))
    close(activities["head"]["kernel"], logits)


def layer_calls(params, tokens):
    """The transformer by hand, without dropout: what each layer receives and sends on."""

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    block, attention = params["block"], params["block"]["attention"]
    stream = params["embed"]["embedding"][tokens]
    one = norm(stream)
    normed = one * block["attention_norm"]["scale"] + block["attention_norm"]["bias"]
    query, key, value = (
        jnp.einsum("bld,dhs->blhs", normed, attention[name]["kernel"]) + attention[name]["bias"]
        for name in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("bqhs,bkhs->bhqk", query, key) / jnp.sqrt(2.0))
    mixed = jnp.einsum("bhqk,bkhs->bqhs", weights, value)
    stream = (
        stream + jnp.einsum("bqhs,hsd->bqd", mixed, attention["out"]["kernel"]) + attention["out"]["bias"]
    )
    two = norm(stream)
    normed_two = two * block["mlp_norm"]["scale"] + block["mlp_norm"]["bias"]
    hidden = jax.nn.gelu(dense(block["mlp_in"], normed_two))
    stream = stream + dense(block["mlp_out"], hidden)
    inputs = {
        "one": one,
        "normed": normed,
        "mixed": mixed,
        "two": two,
        "normed_two": normed_two,
        "hidden": hidden,
        "stream": stream,
        "query": query,
        "logits": dense(params["head"], stream),
    }
    return inputs


def test_signals_of_a_linen_transformer():
    params, tokens = models.CASES["linen"].make(), models.TOKENS["tokens"]

    def loss(params, batch):
        return models.TRANSFORMER.apply({"params": params}, batch["tokens"]).var()

    _, _, extra = ro.value_and_grad(loss, ("inputs", "activities"))(params, models.TOKENS)
    by_hand = layer_calls(params, tokens)
    inputs, activities = extra["inputs"], extra["activities"]
    assert jax.tree.structure(inputs) == jax.tree.structure(activities) == jax.tree.structure(params)
    near = functools.partial(chex.assert_trees_all_close, rtol=1e-3, atol=1e-4)
    near(inputs["embed"]["embedding"], jax.nn.one_hot(tokens, 7))
    block = inputs["block"]
    near(block["attention_norm"]["scale"], by_hand["one"])
    for name in ("query", "key", "value"):
        near(block["attention"][name]["kernel"], by_hand["normed"])
    near(block["attention"]["out"]["kernel"], by_hand["mixed"])
    near(block["mlp_norm"]["scale"], by_hand["two"])
    near(block["mlp_in"]["kernel"], by_hand["normed_two"])
    near(block["mlp_out"]["kernel"], by_hand["hidden"])
    near(inputs["head"]["kernel"], by_hand["stream"])
    near(activities["block"]["mlp_in"]["bias"], by_hand["hidden"])
    near(activities["block"]["attention"]["query"]["kernel"], by_hand["query"])
    near(activities["head"]["kernel"], by_hand["logits"])


@pytest.mark.parametrize("name", ["equinox", "haiku"])
def test_signals_of_perceptrons(name):
    case = models.CASES[name]
    model = case.make()
    _, _, extra = ro.value_and_grad(case.loss, ("inputs", "activities"))(model, case.batch)
    first, first_bias, second, second_bias = (
        [model.layers[0].weight.T, model.layers[0].bias, model.layers[1].weight.T, model.layers[1].bias]
        if name == "equinox"
        else [model[f"mlp/~/linear_{i}"][leaf] for i in (0, 1) for leaf in ("w", "b")]
    )
    x = case.batch["x"]
    hidden = jax.nn.relu(x @ first + first_bias)
    logits = hidden @ second + second_bias
    inputs, activities = jax.tree.leaves(extra["inputs"]), jax.tree.leaves(extra["activities"])
    kernels = [leaf for leaf in inputs if jnp.ndim(leaf)]
    assert [leaf for leaf in inputs if not jnp.ndim(leaf)] == [1.0, 1.0]
    close(kernels, [x, hidden])
    close(activities, [hidden, hidden, logits, logits])


@pytest.mark.parametrize("wrapped", ["jit", "remat", "vmap"])
def test_layers_are_seen_inside_of_transformations(wrapped):
    class Wrapped(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)

        def __call__(self, x):
            def inner(dense, x):
                return jnp.tanh(dense(x))

            transformed = {
                "jit": nnx.jit(inner),
                "remat": nnx.remat(inner),
                "vmap": nnx.vmap(inner, in_axes=(None, 0)),
            }
            return transformed[wrapped](self.dense, x)

    def loss(model, batch):
        return model(batch["x"]).sum()

    model = Wrapped(nnx.Rngs(0))
    x = models.VECTORS["x"]
    _, _, extra = ro.value_and_grad(loss, ("inputs", "activities"))(model, {"x": x})
    close(extra["inputs"]["dense"]["kernel"], x)
    close(extra["activities"]["dense"]["bias"], jnp.tanh(model.dense(x)))


def test_scanned_layers_are_seen_with_their_stack():
    def loss(params, batch):
        def layer(x, parameters):
            y = jnp.tanh(x @ parameters["w"])
            return y, None

        return jax.lax.scan(layer, batch["x"], params)[0].sum()

    def observed(params, batch):
        def layer(x, parameters):
            y = jnp.tanh(x @ parameters["w"])
            ro.supply.observe(parameters["w"], inputs=x, activities=y)
            return y, None

        return jax.lax.scan(layer, batch["x"], params)[0].sum()

    params = {"w": models.array(0, 2, 3, 3)}
    with pytest.raises(ValueError, match=r"^inputs: the layers of leaf \['w'\] cannot be observed"):
        ro.value_and_grad(loss, "inputs")(params, {"x": models.VECTORS["x"]})
    with pytest.raises(ValueError, match=r"^observe: parameter is none of the arrays that the loss"):
        ro.value_and_grad(observed, "inputs")(params, {"x": models.VECTORS["x"]})


def test_linen_layers_of_a_scan():
    model, x = models.Scanned(3, 2), models.VECTORS["x"]
    params = model.init(jax.random.key(0), x)["params"]

    def loss(params, batch):
        return model.apply({"params": params}, batch["x"]).sum()

    _, _, extra = ro.value_and_grad(loss, ("inputs", "activities"))(params, {"x": x})
    dense = params["layers"]["dense"]
    hidden = jnp.tanh(x @ dense["kernel"][0] + dense["bias"][0])
    last = jnp.tanh(hidden @ dense["kernel"][1] + dense["bias"][1])
    close(extra["inputs"]["layers"]["dense"]["kernel"], jnp.stack([x, hidden], 1))
    close(extra["activities"]["layers"]["dense"]["bias"], jnp.stack([hidden, last], 1))
    for phi in (ro.phi.idbd(axes="scanned"), ro.phi.sliding_threshold(axes="scanned")):
        phi.update(params, phi.init(params), params, **extra)


def test_a_layer_that_cannot_be_observed_is_named():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.temperature = nnx.Param(jnp.ones(4))

        def __call__(self, x):
            return self.dense(x) * self.temperature[...]

    def loss(model, batch):
        return model(batch["x"]).sum()

    with pytest.raises(ValueError, match=re.escape("layers of leaf ['temperature'] cannot be observed")):
        ro.value_and_grad(loss, "inputs")(Own(nnx.Rngs(0)), {"x": models.VECTORS["x"]})

    class Told(Own):
        def __call__(self, x):
            y = self.dense(x)
            ro.supply.observe(self.temperature, inputs=y, activities=y * self.temperature[...])
            return y * self.temperature[...]

    model = Told(nnx.Rngs(0))
    _, _, extra = ro.value_and_grad(loss, "inputs")(model, {"x": models.VECTORS["x"]})
    close(extra["inputs"]["temperature"], model.dense(models.VECTORS["x"]))


def test_a_layer_that_is_called_twice_has_seen_both():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(jnp.tanh(self.dense(x)))

    def loss(model, batch):
        return model(batch["x"]).sum()

    model, x = Twice(nnx.Rngs(0)), models.VECTORS["x"]
    _, _, extra = ro.value_and_grad(loss, "inputs")(model, {"x": x})
    close(extra["inputs"]["dense"]["kernel"], jnp.concatenate([x, jnp.tanh(model.dense(x))]))


def test_tied_weights_are_observed_where_they_are_a_layer():
    """A variable that two modules share is one parameter."""

    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 3, rngs=rngs)
            self.second = nnx.Linear(3, 3, rngs=rngs)
            self.second.kernel = self.first.kernel

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    def loss(model, batch):
        return model(batch["x"]).sum()

    model, x = Tied(nnx.Rngs(0)), models.VECTORS["x"]
    _, gradients, extra = ro.value_and_grad(loss, "inputs")(model, {"x": x})
    assert "kernel" not in nnx.to_pure_dict(gradients)["second"]
    close(extra["inputs"]["first"]["kernel"], jnp.concatenate([x, jnp.tanh(model.first(x))]))


class LinenTied(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        embed = linen.Embed(5, 3, name="embed")
        return embed.attend(jnp.tanh(embed(tokens)))


class NNXTied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 3, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(jnp.tanh(self.embed(tokens)))


@pytest.mark.parametrize("signal", ["inputs", "activities"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_table_that_reads_out_as_well_is_refused(library, signal):
    """Its inputs are those of two layers, of two shapes: one of the two alone would be wrong."""
    tokens = jnp.array([[0, 1], [4, 2]])
    if library == "nnx":
        model, loss = NNXTied(nnx.Rngs(0)), lambda model, tokens: model(tokens).var()
    else:
        model = LinenTied().init(jax.random.key(0), tokens)["params"]
        loss = lambda params, tokens: LinenTied().apply({"params": params}, tokens).var()  # noqa: E731
    with pytest.raises(
        ValueError, match=r"\['embedding'\] \(a table that reads out as well, by attend\) cannot be"
    ):
        ro.value_and_grad(loss, signal)(model, tokens)


def _max_pool(x):
    return nnx.max_pool(x, (2, 2), (2, 2))


def _flat(x):
    return x.reshape(x.shape[0], -1)


BEFORE_THE_NONLINEARITY = {
    "max pooling": (lambda y, x: _max_pool(y), _max_pool),
    "average pooling": (
        lambda y, x: nnx.avg_pool(y, (2, 2), (2, 2)),
        lambda y: nnx.avg_pool(y, (2, 2), (2, 2)),
    ),
    "a residual sum": (lambda y, x: y + x, None),
    "a mask": (lambda y, x: jnp.where(x > 0, y, 0), None),
    "flattening": (lambda y, x: _flat(y), lambda y: y),
    "pooling and flattening": (lambda y, x: _flat(_max_pool(y)), _max_pool),
}


@pytest.mark.parametrize("name", BEFORE_THE_NONLINEARITY)
def test_a_nonlinearity_behind_what_carries_units_on_is_found(name):
    """Else a dead unit would pass for a busy one: what its layer gives may be far from 0."""
    between, shaped = BEFORE_THE_NONLINEARITY[name]
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))

    class Bent(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(2, 2, (3, 3), rngs=nnx.Rngs(0))

        def __call__(self, x):
            return jnp.tanh(between(self.conv(x), x))

    model = Bent()
    _, _, extra = ro.value_and_grad(lambda model, x: jnp.sum(model(x)), "activities")(model, x)
    given = model.conv(x)
    expected = jnp.tanh(between(given, x) if shaped is None else shaped(given))
    close(extra["activities"]["conv"]["kernel"], expected)


def test_channels_first_are_found_behind_a_flattening():
    conv = eqx.nn.Conv2d(2, 3, 3, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 2, 6, 6))

    def loss(conv, x):
        return jnp.sum(jnp.tanh(jax.vmap(lambda one: conv(one).ravel())(x)))

    _, _, extra = ro.value_and_grad(loss, "activities")(conv, x)
    expected = jnp.moveaxis(jnp.tanh(jax.vmap(conv)(x)), 1, -1)
    close(extra["activities"].weight.reshape(expected.shape), expected)


def test_a_window_over_the_units_mixes_them_and_is_no_nonlinearity_of_theirs():
    class Maxout(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(3, 6, rngs=nnx.Rngs(0))

        def __call__(self, x):
            largest = jax.lax.reduce_window(self.dense(x), -jnp.inf, jax.lax.max, (1, 2), (1, 2), "VALID")
            return jnp.tanh(largest)

    model, x = Maxout(), jax.random.normal(jax.random.key(0), (5, 3))
    _, _, extra = ro.value_and_grad(lambda model, x: jnp.sum(model(x)), "activities")(model, x)
    close(extra["activities"]["dense"]["kernel"], model.dense(x))


def test_what_the_next_layer_is_given_is_not_carried_on():
    first, second = nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 3, rngs=nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (5, 3))

    def loss(model, x):
        stream = model["first"](x)
        return jnp.sum(jnp.tanh(stream + x)) + jnp.sum(jnp.tanh(x + model["second"](stream)))

    model = nnx.Dict(first=first, second=second)
    _, _, extra = ro.value_and_grad(loss, "activities")(model, x)
    close(extra["activities"]["first"]["kernel"], first(x))
    close(extra["activities"]["second"]["kernel"], jnp.tanh(x + second(first(x))))

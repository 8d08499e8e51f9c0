"""Every extra argument, held to one that is computed another way."""

import functools
import re

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import riemann_optax as ro

from . import models

close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=1e-6)


class Net(nnx.Module):
    """A network without randomness, one of each usual layer."""

    def __init__(self, rngs):
        self.convolution = nnx.Conv(1, 3, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.convolution(images)))
        return self.head(hidden.reshape(images.shape[0], -1))


def quadratic(w, batch):
    """Curvature that is not diagonal."""
    return jnp.mean((jnp.tanh(batch["x"] @ w) - batch["y"]) ** 2)


W = models.array(5, 3)
DATA = {"x": models.array(6, 6, 3), "y": models.array(7, 6)}


def sgd_with(phi, **arguments):
    arguments = {"alpha": 1.0, "momentum": None, "conformal": None} | arguments
    return ro.riemannian_sgd(0.1, phi=phi, **arguments)


def test_value_and_gradient_are_those_of_jax():
    value, gradients, extra = ro.value_and_grad(quadratic)(W, DATA)
    expected = jax.value_and_grad(quadratic)(W, DATA)
    close((value, gradients), expected)
    assert extra == {}


def test_value_and_gradient_are_those_of_nnx():
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    value, gradients, _ = ro.value_and_grad(models.of_convnet)(ours, models.IMAGES)
    expected, their_gradients = nnx.value_and_grad(models.of_convnet)(theirs, models.IMAGES)
    close(value, expected)
    close(nnx.to_pure_dict(gradients), nnx.to_pure_dict(their_gradients))
    assert jax.tree.structure(gradients) == jax.tree.structure(their_gradients)


def test_statistics_and_counters_of_nnx_are_those_after_one_evaluation():
    """Whatever is evaluated beside: as if the loss had been differentiated once."""
    ours, theirs = models.ConvNet(nnx.Rngs(0)), models.ConvNet(nnx.Rngs(0))
    needs = ("per_example_gradients", "activities", "inputs", "outputs_fn", "output_norm_gradients")
    _, gradients, extra = ro.value_and_grad(models.of_convnet, needs, statistics="running")(
        ours, models.IMAGES
    )
    extra["outputs_fn"](nnx.state(ours, nnx.Param))
    _, their_gradients = nnx.value_and_grad(models.of_convnet)(theirs, models.IMAGES)
    close(nnx.to_pure_dict(gradients), nnx.to_pure_dict(their_gradients))
    for kind in (nnx.BatchStat, nnx.RngCount, nnx.Param):
        close(nnx.to_pure_dict(nnx.state(ours, kind)), nnx.to_pure_dict(nnx.state(theirs, kind)))
    assert ours.norm.mean[...].any()
    assert type(ours.norm) is nnx.BatchNorm


def test_the_gradient_of_an_equinox_model_is_that_of_equinox():
    case = models.CASES["equinox"]
    model = case.make()
    value, gradients, _ = ro.value_and_grad(case.loss)(model, case.batch)
    expected, theirs = eqx.filter_value_and_grad(case.loss)(model, case.batch)
    close(value, expected)
    assert jax.tree.structure(gradients) == jax.tree.structure(theirs)
    close(jax.tree.leaves(gradients), jax.tree.leaves(theirs))


def test_aux_is_that_of_the_gradient():
    def loss(w, batch, scale):
        return scale * quadratic(w, batch), {"scaled": scale}

    (value, aux), _, _ = ro.value_and_grad(loss, "obj_fn", has_aux=True)(W, DATA, 2.0)
    close(value, 2 * quadratic(W, DATA))
    assert aux == {"scaled": 2.0}


def test_the_loss_as_a_function_gives_the_hessian():
    _, _, extra = ro.value_and_grad(quadratic, ro.phi.hutchinson_curvature())(W, DATA)
    assert set(extra) == {"obj_fn"}
    close(jax.hessian(extra["obj_fn"])(W), jax.hessian(quadratic)(W, DATA))


def test_dropout_masks_are_those_of_the_gradient_wherever_the_loss_is_evaluated():
    model = models.ConvNet(nnx.Rngs(0), rate=0.5)
    params = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    step = ro.value_and_grad(models.of_convnet, ("value", "value_fn", "outputs_fn", "outputs_loss_fn"))
    value, _, extra = step(model, models.IMAGES)
    close(extra["value_fn"](params), value)
    close(extra["outputs_loss_fn"](extra["outputs_fn"](params)), value)
    again, _, _ = step(model, models.IMAGES)  # the next step has other masks
    assert abs(float(again - value)) > 1e-3


def test_a_key_is_the_same_for_all_evaluations():
    case = models.CASES["linen"]
    params = case.make()
    step = ro.value_and_grad(case.loss, ("value", "value_fn"))
    value, _, extra = step(params, case.batch, key=jax.random.key(3))
    close(extra["value_fn"](params), value)
    other, _, _ = step(params, case.batch, key=jax.random.key(4))
    assert abs(float(other - value)) > 1e-3


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 100])
def test_per_example_gradients_are_those_of_a_loop(chunk_size):
    step = ro.value_and_grad(models.of_convnet, "per_example_gradients", chunk_size=chunk_size)
    model = Net(nnx.Rngs(0))
    _, _, extra = step(model, models.IMAGES)
    expected = []
    for index in range(models.EXAMPLES):
        one = jax.tree.map(lambda x, i=index: x[i : i + 1], models.IMAGES)
        expected.append(nnx.to_pure_dict(nnx.grad(models.of_convnet)(model, one)))
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *expected)
    close(nnx.to_pure_dict(extra["per_example_gradients"]), stacked)


def test_output_norm_gradients_are_those_of_a_loop():
    case = models.CASES["haiku"]
    params = case.make()
    _, _, extra = ro.value_and_grad(case.loss, "output_norm_gradients")(params, case.batch)

    def norm(params, x):
        return jnp.sum(models.PERCEPTRON.apply(params, x[None]) ** 2)

    expected = [jax.grad(norm)(params, x) for x in case.batch["x"]]
    close(extra["output_norm_gradients"], jax.tree.map(lambda *g: jnp.stack(g), *expected))


def test_batch_norm_is_refused_by_name_or_takes_running_statistics():
    model = models.ConvNet(nnx.Rngs(0), rate=0.0)
    with pytest.raises(
        ValueError, match=r"BatchNorm \(norm\), which mixes the examples of a batch: give value"
    ):
        ro.value_and_grad(models.of_convnet, "per_example_gradients")(model, models.IMAGES)
    step = ro.value_and_grad(models.of_convnet, "per_example_gradients", statistics="running")
    # The statistics as they are before this step.
    frozen = nnx.clone(model)
    frozen.norm.use_running_average = True
    _, _, extra = step(model, models.IMAGES)
    mean = jax.tree.map(lambda g: g.mean(0), nnx.to_pure_dict(extra["per_example_gradients"]))
    close(mean, nnx.to_pure_dict(nnx.grad(models.of_convnet)(frozen, models.IMAGES)))


class LinenNorm(linen.Module):
    by_call: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4, name="dense")(x)
        if self.by_call:
            return linen.BatchNorm(name="norm")(x, use_running_average=False)
        return linen.BatchNorm(use_running_average=False, name="norm")(x)


@pytest.mark.parametrize("by_call", [False, True])
def test_batch_norm_of_linen(by_call):
    model = LinenNorm(by_call)
    variables = model.init(jax.random.key(0), models.VECTORS["x"])

    def loss(params, batch, statistics):
        out, updated = model.apply({"params": params, **statistics}, batch["x"], mutable=["batch_stats"])
        return jnp.mean((out - 1.0) ** 2), updated

    statistics = {"batch_stats": variables["batch_stats"]}
    arguments = variables["params"], {"x": models.VECTORS["x"]}, statistics
    with pytest.raises(ValueError, match=r"BatchNorm \(norm\), which mixes"):
        ro.value_and_grad(loss, "per_example_gradients", has_aux=True)(*arguments)
    step = ro.value_and_grad(loss, "per_example_gradients", has_aux=True, statistics="running")
    (_, updated), _, extra = step(*arguments)
    assert updated["batch_stats"]["norm"]["mean"].any()

    def frozen(params, x):
        dense, norm = params["dense"], params["norm"]
        out = (x @ dense["kernel"] + dense["bias"]) / jnp.sqrt(1 + 1e-5) * norm["scale"] + norm["bias"]
        return jnp.mean((out - 1.0) ** 2)

    expected = [jax.grad(frozen)(variables["params"], x) for x in models.VECTORS["x"]]
    close(extra["per_example_gradients"], jax.tree.map(lambda *g: jnp.stack(g), *expected))


def test_batch_norm_of_haiku():
    network = hk.without_apply_rng(
        hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), is_training=True))
    )
    params, state = network.init(jax.random.key(0), models.VECTORS["x"])

    def loss(params, batch, state):
        return jnp.mean(network.apply(params, state, batch["x"])[0] ** 2)

    with pytest.raises(ValueError, match=r"BatchNorm \(batch_norm\), which mixes"):
        ro.value_and_grad(loss, "per_example_gradients")(params, {"x": models.VECTORS["x"]}, state)


def test_a_single_example_has_a_mask_of_its_own():
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.weight = nnx.Param(jnp.ones(40))
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(x * self.weight[...])

    def loss(model, batch):
        return jnp.sum(model(batch["x"])) / batch["x"].shape[0]

    batch = {"x": jnp.ones([3, 40])}
    _, _, extra = ro.value_and_grad(loss, "per_example_gradients")(Dropped(nnx.Rngs(0)), batch)
    masks = np.asarray(extra["per_example_gradients"]["weight"])
    assert set(np.unique(masks)) == {0.0, 2.0}
    assert len({row.tobytes() for row in masks}) == 3


@pytest.mark.parametrize("num_terms", [None, 30, lambda batch: 5 * batch["y"].size])
def test_perturbed_gradients_are_of_the_summed_loss_at_the_perturbed_weights(num_terms):
    tx = sgd_with(ro.phi.mesu(prior_deviation=0.06))
    step = ro.value_and_grad(quadratic, tx, samples=4, num_terms=num_terms)
    state = tx.init(W)
    value, gradients, extra = step(W, DATA, state=state)
    assert set(extra) == {"perturbed_gradients", "perturbations"}
    places = [W + 0.06 * noise for noise in extra["perturbations"]]
    terms = 6 if num_terms is None else 30
    expected = jnp.stack([terms * jax.grad(quadratic)(place, DATA) for place in places])
    close(extra["perturbed_gradients"], expected)
    close(gradients, expected.mean(0) / terms)
    close(value, quadratic(W, DATA))


def test_the_gradient_at_the_previous_weights_is_of_this_batch():
    tx = sgd_with(ro.phi.secant_curvature())
    step = ro.value_and_grad(quadratic, tx)
    state, w, previous = tx.init(W), W, None
    for index in range(3):
        batch = {"x": models.array(10 + index, 6, 3), "y": DATA["y"]}
        _, gradients, extra = step(w, batch, state=state)
        if index:
            close(extra["gradients_at_previous_params"], jax.grad(quadratic)(previous, batch))
        updates, state = tx.update(gradients, state, w, **extra)
        previous, w = w, optax.apply_updates(w, updates)


def test_the_outputs_and_the_loss_of_the_outputs():
    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    _, _, extra = ro.value_and_grad(models.of_convnet, ro.phi.gauss_newton_curvature())(model, models.IMAGES)
    assert set(extra) == {"outputs_fn", "outputs_loss_fn"}
    close(extra["outputs_fn"](params), model(models.IMAGES["images"]))
    logits = models.array(1, models.EXAMPLES, 4)
    close(extra["outputs_loss_fn"](logits), models.cross_entropy(logits, models.LABELS))


def test_outputs_that_are_not_seen_are_asked_for():
    _, _, extra = ro.value_and_grad(quadratic, ro.phi.gauss_newton_curvature())(W, DATA)
    with pytest.raises(
        ValueError, match=r"outputs of the model were not seen in the loss function: mark them"
    ):
        extra["outputs_fn"](W)


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
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return jnp.tanh(linen.Dense(3, name="dense")(x)), None

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            layers = linen.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return layers(name="layers")(x, None)[0]

    model, x = Model(), models.VECTORS["x"]
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


@pytest.mark.parametrize("need", ["gradients_at_previous_params", "perturbed_gradients"])
def test_a_state_that_is_needed_is_asked_for(need):
    phi = ro.phi.secant_curvature() if need.startswith("grad") else ro.phi.mesu()
    step = ro.value_and_grad(quadratic, phi)
    with pytest.raises(ValueError, match=rf"^{need} depends on the optimiser's state: give it to the step"):
        step(W, DATA)
    with pytest.raises(ValueError, match=rf"^{need}: the state holds 0 of "):
        step(W, DATA, state=optax.sgd(0.1).init(W))
    matrix = {"w": models.array(0, 4, 4)}
    turned = ro.in_eigenbasis(sgd_with(phi))
    with pytest.raises(
        ValueError, match=rf"^{need}: the phi that reads it works in the coordinates of in_eig"
    ):
        ro.value_and_grad(lambda p, b: jnp.sum(p["w"] ** 2), turned)(matrix, DATA, state=turned.init(matrix))


def test_a_train_state_is_taken_as_the_state():
    tx = sgd_with(ro.phi.secant_curvature())
    state = TrainState.create(apply_fn=None, params=W, tx=tx)
    _, _, extra = ro.value_and_grad(quadratic, tx)(W, DATA, state=state)
    assert set(extra) == {"gradients_at_previous_params"}


def test_what_no_loss_tells_is_passed_on():
    tx = sgd_with(ro.phi.synaptic_intelligence())
    step = ro.value_and_grad(quadratic, tx)
    _, _, extra = step(W, DATA)
    assert extra == {}
    _, _, extra = step(W, DATA, task_boundary=True)
    assert extra == {"task_boundary": True}


@pytest.mark.parametrize("search", ["zoom", "backtracking"])
def test_optax_line_searches_get_what_they_read(search):
    searches = {
        "zoom": lambda: optax.scale_by_zoom_linesearch(max_linesearch_steps=5),
        "backtracking": lambda: optax.scale_by_backtracking_linesearch(max_backtracking_steps=5),
    }
    # A phi that reads the loss, and one that reads gradients, before the search.
    tx = optax.chain(
        ro.scale_by_metric(ro.phi.secant_curvature(), 1.0), optax.scale(-1.0), searches[search]()
    )
    step = ro.value_and_grad(quadratic, tx)
    w, state = W, tx.init(W)
    values = []
    for _ in range(4):
        value, gradients, extra = step(w, DATA, state=state)
        assert set(extra) == {"value", "grad", "value_fn", "gradients_at_previous_params"}
        updates, state = tx.update(gradients, state, w, **extra)
        w = optax.apply_updates(w, updates)
        values.append(float(value))
    assert values == sorted(values, reverse=True)


def test_what_a_state_does_not_tell_is_asked_for_by_name():
    tx = optax.polyak_sgd()
    value, _, extra = ro.value_and_grad(quadratic, (tx, "value"))(W, DATA)
    assert extra == {"value": value}
    plateau = optax.contrib.reduce_on_plateau()
    assert set(ro.value_and_grad(quadratic, plateau)(W, DATA)[2]) == {"value"}
    with pytest.raises(
        ValueError, match=r"^needs must be an optimiser or names of extra arguments, got 'val'"
    ):
        ro.value_and_grad(quadratic, "val")


def test_batches_that_are_no_batches():
    step = ro.value_and_grad(lambda w, b: jnp.sum(w * b["x"].sum() * b["y"].sum()), "per_example_gradients")
    with pytest.raises(ValueError, match=r"^batch: its arrays have first axes of lengths \[2, 3\]"):
        step(jnp.ones([]), {"x": jnp.ones(2), "y": jnp.ones(3)})


def test_complex_gradients_are_as_optax_takes_them():
    def loss(z, batch):
        return jnp.mean(jnp.abs(z * batch["x"] - batch["y"]) ** 2)

    z, batch = jnp.array(1.0 + 2.0j), {"x": DATA["y"], "y": DATA["y"]}
    _, gradient, extra = ro.value_and_grad(loss, "per_example_gradients")(z, batch)
    assert loss(z - 0.1 * gradient, batch) < loss(z, batch)
    close(extra["per_example_gradients"].mean(0), gradient)


def test_the_step_is_scanned_and_sharded():
    """The same under lax.scan, and with the examples spread over eight devices."""
    case = models.CASES["haiku"]
    params = case.make()
    tx = sgd_with(ro.phi.online_ewc(memory=0.9))
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), case.batch)
    step = ro.value_and_grad(case.loss, tx, chunk_size=8)

    def update(carry, boundary, batch=batch):
        params, state = carry
        value, gradients, extra = step(params, batch, state=state, task_boundary=boundary)
        updates, state = tx.update(gradients, state, params, **extra)
        return (optax.apply_updates(params, updates), state), value

    boundaries = jnp.array([False, True, False])
    start = params, tx.init(params)
    scanned, _ = jax.jit(lambda: jax.lax.scan(update, start, boundaries))()
    looped = start
    for boundary in boundaries:
        looped, _ = update(looped, boundary)
    close(scanned[0], looped[0])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    sharded = jax.jit(lambda carry, batch: update(carry, jnp.array(True), batch)[0])(start, spread)
    close(sharded[0], update(start, jnp.array(True))[0][0])

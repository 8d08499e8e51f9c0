"""Each numeric extra argument in float64, held to NumPy: closed forms, and backpropagation by hand."""

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import riemann_optax as ro

from .models import sgd_with

RANDOM = np.random.default_rng(0)
N = 7
X, Y = RANDOM.standard_normal([N, 4]), RANDOM.standard_normal([N, 2])
BATCH = {"x": X, "y": Y}
PERCEPTRON = {
    "hidden": {"w": RANDOM.standard_normal([4, 5]), "b": RANDOM.standard_normal(5)},
    "head": {"w": RANDOM.standard_normal([5, 2]), "b": RANDOM.standard_normal(2)},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def exact(found, expected, rtol=1e-12):
    """Equal but for rounding in float64: float32 anywhere on the way would show at 1e-7."""
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float64)}
    chex.assert_trees_all_close(jax.tree.map(np.asarray, found), expected, rtol=rtol, atol=1e-13)


def perceptron(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["head"]["w"] + params["head"]["b"]


def squared_error(params, batch):
    outputs = ro.supply.outputs(perceptron(params, batch["x"]))
    return jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, axis=1))


def backpropagate(params, x, slope_of_outputs):
    """The gradients of each example's loss, by the chain rule in NumPy."""
    hidden = np.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    outputs = hidden @ params["head"]["w"] + params["head"]["b"]
    slope = slope_of_outputs(outputs)
    back = (slope @ params["head"]["w"].T) * (1 - hidden**2)
    return {
        "hidden": {"w": x[:, :, None] * back[:, None, :], "b": back},
        "head": {"w": hidden[:, :, None] * slope[:, None, :], "b": slope},
    }


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_per_example_gradients(chunk_size):
    params = jax.tree.map(jnp.asarray, PERCEPTRON)
    step = ro.value_and_grad(squared_error, "per_example_gradients", chunk_size=chunk_size)
    value, gradients, extra = step(params, jax.tree.map(jnp.asarray, BATCH))
    expected = backpropagate(PERCEPTRON, X, lambda outputs: 2 * (outputs - Y))
    exact(extra["per_example_gradients"], expected)
    exact(gradients, jax.tree.map(lambda g: g.mean(0), expected))
    hidden = np.tanh(X @ PERCEPTRON["hidden"]["w"] + PERCEPTRON["hidden"]["b"])
    outputs = hidden @ PERCEPTRON["head"]["w"] + PERCEPTRON["head"]["b"]
    exact(value, np.mean(np.sum((outputs - Y) ** 2, axis=1)))


def test_output_norm_gradients():
    params = jax.tree.map(jnp.asarray, PERCEPTRON)
    batch = jax.tree.map(jnp.asarray, BATCH)
    _, _, extra = ro.value_and_grad(squared_error, "output_norm_gradients")(params, batch)
    exact(extra["output_norm_gradients"], backpropagate(PERCEPTRON, X, lambda outputs: 2 * outputs))


LABELS = (np.arange(N) % 2).astype(np.float64)


def logistic(w, batch):
    logits = batch["x"] @ w
    return jnp.mean(jnp.logaddexp(0.0, logits) - batch["label"] * logits)


@pytest.mark.parametrize("name", ["obj_fn", "value_fn"])
def test_products_with_the_hessian_of_logistic_regression(name):
    w, batch = RANDOM.standard_normal(4), {"x": jnp.asarray(X), "label": jnp.asarray(LABELS)}
    _, gradient, extra = ro.value_and_grad(logistic, name)(jnp.asarray(w), batch)
    probability = 1 / (1 + np.exp(-X @ w))
    exact(gradient, X.T @ (probability - LABELS) / N)
    hessian = X.T @ ((probability * (1 - probability))[:, None] * X) / N
    for vector in np.eye(4):
        product = jax.jvp(jax.grad(extra[name]), (jnp.asarray(w),), (jnp.asarray(vector),))[1]
        exact(product, hessian @ vector)
    elsewhere = RANDOM.standard_normal(4)
    logits = X @ elsewhere
    exact(extra[name](jnp.asarray(elsewhere)), np.mean(np.log1p(np.exp(logits)) - LABELS * logits))


def test_the_hessian_product_that_hutchinson_takes():
    """Of a diagonal Hessian one probe tells the diagonal, whatever its signs."""
    curvature = np.array([3.0, 0.5, 20.0])
    tx = sgd_with(ro.phi.hutchinson_curvature(decay=0.0))
    w = jnp.array([1.0, -2.0, 0.5])
    step = ro.value_and_grad(lambda w, batch: 0.5 * jnp.sum(batch * w**2), tx)
    _, gradients, extra = step(w, jnp.asarray(curvature))
    metric = ro.metric_at(tx, gradients, tx.init(w), w, **extra)
    exact(metric, 1 + curvature)


def test_the_loss_is_taken_under_the_name_of_a_line_search():
    phi, w = ro.phi.hutchinson_curvature(decay=0.0), jnp.array([1.0, -2.0])
    values, _ = phi.update(w, phi.init(w), w, value_fn=lambda w: 2.0 * w[0] ** 2 + w[1] ** 2)
    exact(values, np.array([4.0, 2.0]))


def test_gauss_newton_products():
    w = RANDOM.standard_normal(4)

    def loss(w, batch):
        return jnp.mean((ro.supply.outputs(jnp.tanh(batch["x"] @ w)) - batch["y"][:, 0]) ** 2)

    needs = ("outputs_fn", "outputs_loss_fn")
    _, _, extra = ro.value_and_grad(loss, needs)(jnp.asarray(w), jax.tree.map(jnp.asarray, BATCH))
    outputs = np.tanh(X @ w)
    jacobian = (1 - outputs**2)[:, None] * X
    exact(extra["outputs_fn"](jnp.asarray(w)), outputs)
    other = RANDOM.standard_normal(N)
    exact(extra["outputs_loss_fn"](jnp.asarray(other)), np.mean((other - Y[:, 0]) ** 2))
    for vector in np.eye(4):
        found, pushed = jax.jvp(extra["outputs_fn"], (jnp.asarray(w),), (jnp.asarray(vector),))
        _, curved = jax.jvp(jax.grad(extra["outputs_loss_fn"]), (found,), (pushed,))
        (product,) = jax.vjp(extra["outputs_fn"], jnp.asarray(w))[1](curved)
        exact(product, jacobian.T @ (jacobian @ vector) * 2 / N)


def linear(w, batch):
    return jnp.mean((batch["x"] @ w - batch["y"][:, 0]) ** 2)


def gradient_of_linear(w, x, y):
    return 2 * x.T @ (x @ w - y) / len(x)


def test_the_gradient_at_the_previous_weights_is_of_the_new_batch():
    tx = sgd_with(ro.phi.secant_curvature(decay=0.0))
    step = ro.value_and_grad(linear, tx)
    w = jnp.asarray(RANDOM.standard_normal(4))
    state, previous = tx.init(w), None
    for number in range(4):
        x, y = np.random.default_rng(number).standard_normal([N, 4]), Y + number
        batch = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
        _, gradients, extra = step(w, batch, state=state)
        exact(gradients, gradient_of_linear(np.asarray(w), x, y[:, 0]))
        if number:
            exact(extra["gradients_at_previous_params"], gradient_of_linear(previous, x, y[:, 0]))
            # Of a quadratic loss the change of the gradient is its Hessian times that of the weights.
            moved = np.asarray(w) - previous
            secant = np.abs(2 * x.T @ (x @ moved) / N) / np.abs(moved)
            exact(ro.metric_at(tx, gradients, state, w, **extra), 1 + secant, rtol=1e-9)
        updates, state = tx.update(gradients, state, w, **extra)
        previous, w = np.asarray(w), optax.apply_updates(w, updates)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_perturbed_gradients_of_a_quadratic(chunk_size):
    tx = sgd_with(ro.phi.bayesian_gradient_descent(initial_deviation=0.3))
    w = RANDOM.standard_normal(4)
    step = ro.value_and_grad(linear, tx, samples=3, chunk_size=chunk_size)
    state = tx.init(jnp.asarray(w))
    value, gradients, extra = step(jnp.asarray(w), jax.tree.map(jnp.asarray, BATCH), state=state)
    noise = np.asarray(extra["perturbations"])
    assert noise.shape == (3, 4)
    at_places = np.stack([gradient_of_linear(w + 0.3 * eps, X, Y[:, 0]) for eps in noise])
    exact(extra["perturbed_gradients"], N * at_places)
    exact(gradients, at_places.mean(0))
    exact(value, np.mean((X @ w - Y[:, 0]) ** 2))


IMAGES = RANDOM.standard_normal([3, 5, 4, 2])


class Net(linen.Module):
    """A convolution, a normalisation and a read-out."""

    @linen.compact
    def __call__(self, images):
        wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        hidden = linen.Conv(3, (3, 2), strides=(2, 1), padding="VALID", name="conv", **wide)(images)
        hidden = linen.relu(linen.LayerNorm(name="norm", use_fast_variance=False, **wide)(hidden))
        return linen.Dense(2, name="head", **wide)(hidden.reshape(len(images), -1))


def by_hand(params):
    """Inputs and activities of :class:`Net`, in NumPy."""
    rows, columns = (0, 2), (0, 1, 2)
    patches = np.stack([np.stack([IMAGES[:, i : i + 3, j : j + 2] for j in columns], 1) for i in rows], 1)
    sent = np.einsum("nijabc,abcd->nijd", patches, params["conv"]["kernel"]) + params["conv"]["bias"]
    normed = (sent - sent.mean(-1, keepdims=True)) / np.sqrt(sent.var(-1, keepdims=True) + 1e-6)
    active = np.maximum(normed * params["norm"]["scale"] + params["norm"]["bias"], 0)
    flat = active.reshape(len(IMAGES), -1)
    logits = flat @ params["head"]["kernel"] + params["head"]["bias"]
    inputs = {"conv": patches, "norm": normed, "head": flat}
    return inputs, {"conv": active, "norm": active, "head": logits}


def test_inputs_and_activities_of_a_convolution_a_norm_and_a_readout():
    model = Net()
    params = model.init(jax.random.key(0), jnp.asarray(IMAGES))["params"]
    params = jax.tree.map(lambda p: p + 0.1 * RANDOM.standard_normal(p.shape), params)

    def loss(params, images):
        return model.apply({"params": params}, images).var()

    _, _, extra = ro.value_and_grad(loss, ("inputs", "activities"))(params, jnp.asarray(IMAGES))
    inputs, activities = by_hand(jax.tree.map(np.asarray, params))
    for layer, weight in (("conv", "kernel"), ("norm", "scale"), ("head", "kernel")):
        exact(extra["inputs"][layer][weight], inputs[layer])
        assert extra["inputs"][layer]["bias"] == 1.0
        for leaf in extra["activities"][layer].values():
            exact(leaf, activities[layer])


def equinox_perceptron():
    model = eqx.nn.MLP(4, 2, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
    for number, values in enumerate(PERCEPTRON.values()):
        new = jnp.asarray(values["w"].T), jnp.asarray(values["b"])
        model = eqx.tree_at(lambda m, i=number: (m.layers[i].weight, m.layers[i].bias), model, new)
    return model


def test_inputs_and_activities_of_perceptrons_of_three_libraries():
    hidden = np.tanh(X @ PERCEPTRON["hidden"]["w"] + PERCEPTRON["hidden"]["b"])
    logits = hidden @ PERCEPTRON["head"]["w"] + PERCEPTRON["head"]["b"]
    batch, needs, mark = jnp.asarray(X), ("inputs", "activities"), ro.supply.outputs

    model = equinox_perceptron()
    _, _, extra = ro.value_and_grad(lambda m, x: jnp.mean(mark(jax.vmap(m)(x)) ** 2), needs)(model, batch)
    found = {"equinox": [(extra[need].layers[0].weight, extra[need].layers[1].weight) for need in needs]}

    network = hk.without_apply_rng(
        hk.transform(lambda x: hk.Linear(2, name="head")(jnp.tanh(hk.Linear(5, name="hidden")(x))))
    )
    params = jax.tree.map(jnp.asarray, PERCEPTRON)
    _, _, extra = ro.value_and_grad(lambda p, x: jnp.mean(mark(network.apply(p, x)) ** 2), needs)(
        params, batch
    )
    found["haiku"] = [(extra[need]["hidden"]["w"], extra[need]["head"]["w"]) for need in needs]

    class Perceptron(nnx.Module):
        def __init__(self):
            wide = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
            self.hidden, self.head = nnx.Linear(4, 5, **wide), nnx.Linear(5, 2, **wide)
            for layer, values in ((self.hidden, PERCEPTRON["hidden"]), (self.head, PERCEPTRON["head"])):
                layer.kernel[...], layer.bias[...] = jnp.asarray(values["w"]), jnp.asarray(values["b"])

        def __call__(self, x):
            return self.head(jnp.tanh(self.hidden(x)))

    _, _, extra = ro.value_and_grad(lambda m, x: jnp.mean(m(x) ** 2), needs)(Perceptron(), batch)
    pure = [nnx.to_pure_dict(extra[need]) for need in needs]
    found["nnx"] = [(tree["hidden"]["kernel"], tree["head"]["kernel"]) for tree in pure]

    for inputs, activities in found.values():
        exact(inputs, (X, hidden))
        exact(activities, (hidden, logits))

"""Layers whose weights are stacked: those that are run by scan or vmap, and those that are taken out."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import riemann_optax as ro

from .models import array, close

SIZE = 4  # of the stack, of the batch and of the features, so that no shape tells one axis from another
LAYER = linen.Dense(SIZE)
X = array(30, SIZE, SIZE)
KEYS = jax.random.split(jax.random.key(0), SIZE)
STACK = jax.vmap(lambda key: LAYER.init(key, X)["params"])(KEYS)
STACK["bias"] = array(31, SIZE, SIZE)
NEEDS = ("inputs", "activities")
REFUSED = r"\['kernel'\] \(layers that are taken out of their stack by an index, .*keep the layers apart"


def run(params, x):
    return jnp.tanh(LAYER.apply({"params": params}, x))


def of_rows(stack, rows):
    return jax.tree.map(lambda leaf: leaf[rows], stack)


def one_after_the_other(stack, x):
    return jax.lax.scan(lambda x, row: (run(row, x), None), x, stack)[0]


def unrolled(stack, x):
    for row in range(SIZE):
        x = run(of_rows(stack, row), x)
    return x


def by_a_counter(stack, x):
    return jax.lax.scan(lambda x, row: (run(of_rows(stack, row), x), None), x, jnp.arange(SIZE)[::-1])[0]


def mixed(stack, x):
    def of_example(shares, one):
        return run(jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, 1), stack), one)

    return jax.vmap(of_example)(jax.nn.softmax(x), x)


SIDE_BY_SIDE = jax.vmap(run, in_axes=(0, None))
TAKEN_OUT = {
    "one": lambda stack, x: run(of_rows(stack, 2), x),
    "the last": lambda stack, x: run(of_rows(stack, -1), x),
    "an index of the data": lambda stack, x: run(of_rows(stack, (x[0, 0] > 0).astype(int)), x),
    "unrolled": unrolled,
    "by a counter": by_a_counter,
    "in reverse": lambda stack, x: one_after_the_other(of_rows(stack, jnp.s_[::-1]), x),
    "reordered": lambda stack, x: SIDE_BY_SIDE(of_rows(stack, jnp.array([1, 0, 3, 2])), x),
    "rolled": lambda stack, x: SIDE_BY_SIDE(jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), stack), x),
    "in part": lambda stack, x: one_after_the_other(of_rows(stack, jnp.s_[:2]), x),
    "one for each example": lambda stack, x: jax.vmap(lambda row, one: run(of_rows(stack, row), one))(
        jnp.argmax(x, -1), x
    ),
    "along another axis": lambda stack, x: jax.vmap(run, in_axes=(1, None))(stack, x),
}


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize("name", TAKEN_OUT)
def test_layers_that_are_taken_out_of_their_stack_are_refused(name, need):
    def loss(stack, x):
        return jnp.mean(TAKEN_OUT[name](stack, x) ** 2)

    step = ro.value_and_grad(loss, needs=need)
    for one in (step, jax.jit(step)):
        with pytest.raises(ValueError, match=rf"^{need}: .*{REFUSED}"):
            one(STACK, X)


def test_a_mixture_of_layers_for_each_example_is_refused():
    step = ro.value_and_grad(lambda stack, x: jnp.mean(mixed(stack, x) ** 2), needs="activities")
    with pytest.raises(ValueError, match=REFUSED):
        step(STACK, X)


def test_an_optimiser_that_reads_activities_is_refused():
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.sliding_threshold(axes="scanned"))
    with pytest.raises(ValueError, match=REFUSED):
        ro.value_and_grad(lambda stack, x: jnp.mean(unrolled(stack, x) ** 2), tx)(STACK, X)


class Modules(nnx.Module):
    def __init__(self):
        make = nnx.split_rngs(splits=SIZE)(nnx.vmap(lambda rngs: nnx.Linear(SIZE, SIZE, rngs=rngs)))
        self.layers = make(nnx.Rngs(0))


def of_a_row(model, x):
    graph, state = nnx.split(model.layers)
    return jnp.tanh(nnx.merge(graph, jax.tree.map(lambda leaf: leaf[2], state))(x))


def scanned(model, x):
    body = nnx.scan(lambda x, layer: jnp.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return body(x, model.layers)


@pytest.mark.parametrize("need", NEEDS)
def test_modules_of_nnx_that_are_taken_out_of_their_stack_are_refused(need):
    with pytest.raises(ValueError, match=REFUSED):
        ro.value_and_grad(lambda model, x: jnp.mean(of_a_row(model, x) ** 2), need)(Modules(), X)


def one_by_one(kernels, biases, x):
    """What layers receive and send on, by hand: one layer after the other, in axes before the features."""
    received, sent = [], []
    for kernel, bias in zip(kernels, biases, strict=True):
        received.append(x)
        x = jnp.tanh(x @ kernel + bias)
        sent.append(x)
    return jnp.stack(received, -2), jnp.stack(sent, -2)


def test_modules_of_nnx_in_a_scan_are_seen():
    model = Modules()
    _, _, extra = ro.value_and_grad(lambda model, x: jnp.mean(scanned(model, x) ** 2), NEEDS)(model, X)
    expected = one_by_one(model.layers.kernel[...], model.layers.bias[...], X)
    for need, values in zip(NEEDS, expected, strict=True):
        close(nnx.to_pure_dict(extra[need])["layers"]["kernel"], values)


def centred(stack):
    """Each kernel without its own mean, as a weight standardisation has it."""
    return stack | {"kernel": stack["kernel"] - stack["kernel"].mean((1, 2), keepdims=True)}


def scaled(stack):
    """Each kernel divided by one norm, of them all."""
    return stack | {"kernel": stack["kernel"] / jnp.linalg.norm(stack["kernel"])}


WHOLE = {
    "a scan": one_after_the_other,
    "a scan of half precision": lambda stack, x: one_after_the_other(
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), stack), x
    ),
    "a scan of the whole stack": lambda stack, x: one_after_the_other(of_rows(stack, jnp.s_[:SIZE]), x),
    "a scan that begins at the end": lambda stack, x: jax.lax.scan(
        lambda x, row: (run(row, x), None), x, stack, reverse=True
    )[0],
    "remat": lambda stack, x: jax.lax.scan(jax.checkpoint(lambda x, row: (run(row, x), None)), x, stack)[0],
    "changed before": lambda stack, x: one_after_the_other(centred(stack), x),
    "scaled before": lambda stack, x: one_after_the_other(scaled(stack), x),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_stack_in_a_scan_is_seen(name):
    _, _, extra = ro.value_and_grad(lambda stack, x: jnp.mean(WHOLE[name](stack, x) ** 2), "activities")(
        STACK, X
    )
    stack = {"changed before": centred, "scaled before": scaled}.get(name, lambda stack: stack)(STACK)
    kernels, biases = stack["kernel"], stack["bias"]
    if "end" in name:
        _, values = one_by_one(kernels[::-1], biases[::-1], X)
        values = values[:, ::-1]
    else:
        _, values = one_by_one(kernels, biases, X)
    tolerance = 3e-2 if "half" in name else 1e-5
    assert jnp.allclose(extra["activities"]["kernel"], values, atol=tolerance)


def test_layers_in_a_scan_in_each_step_of_time_keep_their_axis():
    """A scan over time around one over the layers: the layers are not the steps."""

    def loss(stack, x):
        def step(state, now):
            return jnp.tanh(one_after_the_other(stack, state + now)), None

        return jnp.mean(jax.lax.scan(step, jnp.zeros(SIZE), x)[0] ** 2)

    state, received = jnp.zeros(SIZE), []
    for now in X:
        values, sent = one_by_one(STACK["kernel"], STACK["bias"], state + now)
        received.append(values)
        state = jnp.tanh(sent[-1])
    seen = ro.value_and_grad(loss, "inputs")(STACK, X)[2]["inputs"]["kernel"]
    close(seen, jnp.stack(received))


def test_what_is_told_stands_in_the_place_of_what_an_index_has_taken():
    """As the error advises: a loop that tells what all of its layers were given."""

    def loss(stack, x):
        given = []
        for row in range(SIZE):
            given.append(x)
            x = run(of_rows(stack, row), x)
        ro.supply.observe(stack["kernel"], inputs=jnp.stack(given, 1))
        return jnp.mean(x**2)

    # The bias is not told: it stays the number 1.
    found = ro.value_and_grad(loss, "inputs")(STACK, X)[2]["inputs"]
    close(found["kernel"], one_by_one(STACK["kernel"], STACK["bias"], X)[0])
    assert found["bias"] == 1.0

"""Losses with several networks, or several calls: what is seen belongs to the weights that are trained."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import riemann_optax as ro

from .models import Scanned, close

X, Y = jax.random.normal(jax.random.key(0), (5, 4)), 10 * jax.random.normal(jax.random.key(1), (6, 4))


class Net(linen.Module):
    outputs: int = 2

    @linen.compact
    def __call__(self, x):
        hidden = linen.relu(linen.Dense(6, name="hidden")(x))
        return linen.Dense(self.outputs, name="out")(hidden)


NET = Net()
STUDENT, TEACHER = (NET.init(jax.random.key(seed), X)["params"] for seed in (2, 3))


def apply(params, x):
    return NET.apply({"params": params}, x)


def hidden_of(params, x):
    return jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])


def signals(loss, params, *batch):
    return [ro.value_and_grad(loss, needs=need)(params, *batch)[2][need] for need in ("inputs", "activities")]


def is_of_the_student_alone(loss, *batch):
    inputs, activities = signals(loss, STUDENT, *batch)
    close(inputs["hidden"]["kernel"], X)
    close(inputs["out"]["kernel"], hidden_of(STUDENT, X))
    close(activities["hidden"]["kernel"], hidden_of(STUDENT, X))
    assert inputs["out"]["bias"] == 1.0


TARGETS = {
    "a teacher": lambda params, frozen: apply(frozen, Y),
    "a teacher that follows": lambda params, frozen: apply(
        jax.tree.map(lambda t, p: 0.9 * t + 0.1 * jax.lax.stop_gradient(p), frozen, params), Y
    ),
    "itself, without a gradient": lambda params, frozen: apply(jax.lax.stop_gradient(params), Y),
    "its result, without a gradient": lambda params, frozen: jax.lax.stop_gradient(apply(params, Y)),
    "what it would choose": lambda params, frozen: jnp.argmax(apply(params, Y), axis=-1).astype(float),
    "a teacher in half precision": lambda params, frozen: apply(
        jax.tree.map(lambda t: t.astype(jnp.bfloat16), frozen), Y
    ),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_target_network_with_the_same_names_is_not_the_trained_one(name, compiled):
    def loss(params, x, frozen):
        target = TARGETS[name](params, frozen).mean()
        return jnp.mean((apply(params, x) - target) ** 2)

    if compiled:
        step = jax.jit(ro.value_and_grad(loss, needs="inputs"))
        close(step(STUDENT, X, TEACHER)[2]["inputs"]["hidden"]["kernel"], X)
    else:
        is_of_the_student_alone(loss, X, TEACHER)


def test_a_generator_with_the_same_names_is_not_the_discriminator():
    generator = Net(outputs=4)
    frozen = generator.init(jax.random.key(4), X)["params"]
    fake = generator.apply({"params": frozen}, X)

    def loss(params, x):
        return jnp.mean(apply(params, generator.apply({"params": frozen}, x)))

    inputs, _ = signals(loss, STUDENT, X)
    close(inputs["hidden"]["kernel"], fake)


def test_what_a_teacher_cannot_show_is_not_asked_of_the_student():
    class Tied(linen.Module):
        reads_out: bool = False

        @linen.compact
        def __call__(self, tokens):
            table = linen.Embed(5, 3, name="table")
            embedded = table(tokens)
            return table.attend(embedded) if self.reads_out else linen.Dense(5, name="out")(embedded)

    tokens = jnp.arange(5)
    params = Tied().init(jax.random.key(0), tokens)["params"]
    frozen = Tied(reads_out=True).init(jax.random.key(1), tokens)

    def loss(params, tokens):
        target = Tied(reads_out=True).apply(frozen, tokens)
        return jnp.mean((Tied().apply({"params": params}, tokens) - target) ** 2)

    inputs, _ = signals(loss, params, tokens)
    close(inputs["table"]["embedding"], jnp.eye(5))


def test_a_part_that_a_loss_freezes_is_seen_nevertheless():
    def loss(params, x):
        params = params | {"hidden": jax.lax.stop_gradient(params["hidden"])}
        return jnp.mean(apply(params, x) ** 2) + jnp.mean(apply(TEACHER, Y) ** 2)

    is_of_the_student_alone(loss, X)


def test_two_trained_networks_with_the_same_names_are_told_apart_where_their_weights_are_converted():
    def loss(params, x):
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
        return jnp.mean(apply(half["actor"], x) ** 2) + jnp.mean(apply(half["critic"], Y) ** 2)

    inputs, _ = signals(loss, {"actor": STUDENT, "critic": TEACHER}, X)
    close(inputs["actor"]["hidden"]["kernel"], X)
    close(inputs["critic"]["hidden"]["kernel"], Y)


@pytest.mark.parametrize("of", ["another", "stopped", "its own"])
def test_scanned_layers_of_a_teacher_are_not_those_of_the_student(of):
    stack = Scanned(4, 3)
    params, other = (stack.init(jax.random.key(seed), X)["params"] for seed in (0, 1))
    kernels, biases = params["layers"]["dense"]["kernel"], params["layers"]["dense"]["bias"]

    def loss(params, x):
        frozen = other if of == "another" else jax.lax.stop_gradient(params) if of == "stopped" else params
        target = jax.lax.stop_gradient(stack.apply({"params": frozen}, Y)).mean()
        return jnp.mean((stack.apply({"params": params}, x) - target) ** 2)

    received, value = [], X
    for kernel, bias in zip(kernels, biases, strict=True):
        received.append(value)
        value = jnp.tanh(value @ kernel + bias)
    inputs, _ = signals(loss, params, X)
    close(inputs["layers"]["dense"]["kernel"], jnp.stack(received, 1))


class Shared(linen.Module):
    by_name: bool

    @linen.compact
    def __call__(self, x):
        layer = linen.Dense(4, name="shared")
        hidden = linen.tanh(layer(x))
        hidden = linen.tanh(layer(inputs=hidden) if self.by_name else layer(hidden))
        return linen.Dense(2, name="out")(hidden)


class SharedNNX(nnx.Module):
    def __init__(self, by_name):
        self.shared, self.by_name = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), by_name

    def __call__(self, x):
        hidden = jnp.tanh(self.shared(x))
        return self.shared(inputs=hidden) if self.by_name else self.shared(hidden)


class SharedEquinox(eqx.Module):
    shared: eqx.nn.Linear
    by_name: bool

    def __call__(self, x):
        hidden = jnp.tanh(self.shared(x))
        return self.shared(x=hidden) if self.by_name else self.shared(hidden)


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_an_argument_may_be_given_by_its_name(library):
    def seen(by_name):
        if library == "linen":
            net = Shared(by_name)
            params = net.init(jax.random.key(0), X)["params"]
            inputs, _ = signals(lambda p, x: jnp.mean(net.apply({"params": p}, x) ** 2), params, X)
            return inputs["shared"]["kernel"]
        if library == "nnx":
            inputs, _ = signals(lambda model, x: jnp.mean(model(x) ** 2), SharedNNX(by_name), X)
            return nnx.to_pure_dict(inputs)["shared"]["kernel"]
        model = SharedEquinox(eqx.nn.Linear(4, 4, key=jax.random.key(0)), by_name)
        inputs, _ = signals(lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2), model, X)
        return inputs.shared.weight

    assert seen(True).shape == (10, 4)
    close(seen(True), seen(False))


class Gate(linen.Module):
    @linen.compact
    def __call__(self, x):
        gate = linen.sigmoid(linen.Dense(4, name="gate")(x))
        moved = linen.relu(linen.Dense(4, name="moved")(x))
        return linen.Dense(1, name="out")(gate * moved + (1 - gate) * x)


def test_a_gate_that_is_read_twice_sends_on_what_both_readings_share():
    params = Gate().init(jax.random.key(0), X)["params"]
    _, activities = signals(lambda p, x: jnp.mean(Gate().apply({"params": p}, x) ** 2), params, X)
    gate = X @ params["gate"]["kernel"] + params["gate"]["bias"]
    close(activities["gate"]["kernel"], jax.nn.sigmoid(gate))


def test_what_is_read_before_and_after_a_nonlinearity_has_none_of_its_own():
    params = Gate().init(jax.random.key(0), X)["params"]

    def loss(params, x):
        raw = x @ params["gate"]["kernel"]
        ro.supply.observe(params["gate"]["kernel"], activities=raw)
        return jnp.mean(raw * jnp.flip(X) + jnp.tanh(raw) * X)

    found = ro.value_and_grad(loss, needs="activities")
    with pytest.raises(ValueError, match="moved"):
        found(params, X)
    _, _, extra = found({"gate": {"kernel": params["gate"]["kernel"]}}, X)
    close(extra["activities"]["gate"]["kernel"], X @ params["gate"]["kernel"])


@pytest.mark.parametrize("cell", [nnx.GRUCell, nnx.OptimizedLSTMCell])
def test_gates_of_one_kernel_have_each_its_own_nonlinearity(cell):
    """One time step from a state of 0, with random biases; by hand."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.rnn, self.out = nnx.RNN(cell(4, 3, rngs=rngs)), nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.rnn(x)[:, -1])

    model = Model(nnx.Rngs(0))
    layers = model.rnn.cell
    hidden = layers.dense_i if cell is nnx.GRUCell else layers.dense_h
    hidden.bias[...] = jax.random.normal(jax.random.key(5), hidden.bias.shape)
    _, activities = signals(lambda model, x: jnp.mean(model(x) ** 2), model, X[:, None])
    found = nnx.to_pure_dict(activities)["rnn"]["cell"]["dense_i"]["kernel"].reshape(5, -1)
    received, recurrent = layers.dense_i(X), layers.dense_h(jnp.zeros((5, 3)))
    if cell is nnx.GRUCell:
        first, second, candidate = jnp.split(received, 3, axis=-1)
        *gates, fed_back = jnp.split(recurrent, 3, axis=-1)
        reset, update = (jax.nn.sigmoid(a + b) for a, b in zip((first, second), gates, strict=True))
        expected = [reset, update, jnp.tanh(candidate + reset * fed_back)]
    else:
        one, two, three, four = jnp.split(received + recurrent, 4, axis=-1)
        expected = [jax.nn.sigmoid(one), jax.nn.sigmoid(two), jnp.tanh(three), jax.nn.sigmoid(four)]
    close(found, jnp.concatenate(expected, axis=-1))


@pytest.mark.parametrize("how", ["split", "sliced", "in part"])
def test_a_half_without_a_nonlinearity_is_as_it_is(how):
    class Gated(linen.Module):
        @linen.compact
        def __call__(self, x):
            both = linen.Dense(6, name="both")(x)
            if how == "split":
                left, right = jnp.split(both, 2, axis=-1)
            else:
                left, right = both[:, :3], both[:, 4 if how == "in part" else 3 :]
            return linen.Dense(1, name="out")(left @ jnp.ones((3, 2))) + jnp.sum(linen.sigmoid(right))

    params = Gated().init(jax.random.key(0), X)["params"]
    _, activities = signals(lambda p, x: jnp.mean(Gated().apply({"params": p}, x) ** 2), params, X)
    raw = X @ params["both"]["kernel"] + params["both"]["bias"]
    start = 4 if how == "in part" else 3
    close(activities["both"]["kernel"], raw.at[:, start:].set(jax.nn.sigmoid(raw[:, start:])))


class AutoEncoder(linen.Module):
    inside: bool = False

    def setup(self):
        self.encoder, self.decoder = linen.Dense(3), linen.Dense(4)

    def encode(self, x):
        sent = self.encoder(x)
        return jnp.tanh(sent) if self.inside else sent

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(jnp.tanh(self.encode(x)))


@pytest.mark.parametrize("inside", [False, True])
def test_a_nonlinearity_between_two_calls_of_a_model_is_found(inside):
    """Where there is one inside of the first call, that is the layer's, whatever follows."""
    model = AutoEncoder(inside)
    params = AutoEncoder().init(jax.random.key(0), X)["params"]
    raw = X @ params["encoder"]["kernel"] + params["encoder"]["bias"]

    def loss(params, x):
        code = model.apply({"params": params}, x, method="encode")
        code = 3 * code if inside else jnp.tanh(code)
        return jnp.mean((model.apply({"params": params}, code, method="decode") - x) ** 2)

    _, activities = signals(loss, params, X)
    close(activities["encoder"]["kernel"], jnp.tanh(raw))
    sent = jnp.tanh(raw) * (3 if inside else 1)
    close(activities["decoder"]["kernel"], sent @ params["decoder"]["kernel"] + params["decoder"]["bias"])


def test_a_number_beside_the_outputs_is_no_nonlinearity():
    class WithLoss(linen.Module):
        @linen.compact
        def __call__(self, x):
            return jnp.tanh(linen.Dense(3, name="layer")(x)), 0.0

    params = WithLoss().init(jax.random.key(0), X)["params"]

    def loss(params, x):
        sent, extra = WithLoss().apply({"params": params}, x)
        return jnp.mean(sent**2) + extra

    _, activities = signals(loss, params, X)
    close(activities["layer"]["kernel"], jnp.tanh(X @ params["layer"]["kernel"] + params["layer"]["bias"]))

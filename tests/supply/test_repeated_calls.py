"""What is traced once and called several times, what is called for its derivatives, what stands in a call."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import riemann_optax as ro

from .models import close

X = jax.random.normal(jax.random.key(0), (5, 4))
Y = X + 5
BOTH = jnp.concatenate([X, Y])
LAYER = linen.Dense(3)
PARAMS = LAYER.init(jax.random.key(1), X)


def signal(loss, params, batch, need):
    return ro.value_and_grad(loss, needs=need)(params, batch)[2][need]


def inputs_of_the_layer(loss):
    return signal(loss, PARAMS, (X, Y), "inputs")["params"]["kernel"]


WRAPPERS = {"plain": lambda f: f, "jit": jax.jit, "checkpoint": jax.checkpoint}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_function_that_is_traced_once_and_called_twice_shows_both_calls(name):
    def loss(params, batch):
        apply = WRAPPERS[name](LAYER.apply)
        return sum(jnp.mean(apply(params, x) ** 2) for x in batch)

    close(inputs_of_the_layer(loss), BOTH)


@pytest.mark.parametrize("target_first", [False, True])
def test_a_function_that_two_networks_share_shows_the_trained_one(target_first):
    target = jax.tree.map(lambda leaf: 2 * leaf, PARAMS)

    def loss(params, batch):
        apply, found = jax.jit(LAYER.apply), {}
        for of_target in (target_first, not target_first):
            found[of_target] = apply(target if of_target else params, batch[int(of_target)])
        return jnp.mean((found[False] - found[True]) ** 2)

    close(inputs_of_the_layer(loss), X)


@pytest.mark.parametrize("remat", [False, True])
def test_one_block_that_is_applied_three_times_shows_all(remat):
    class Albert(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def __call__(self, hidden):
            def block(layer, hidden):
                return hidden + jnp.tanh(layer(hidden))

            block = nnx.remat(block) if remat else block
            for _ in range(3):
                hidden = block(self.layer, hidden)
            return hidden

    model, received, sent, hidden = Albert(), [], [], X
    for _ in range(3):
        received.append(hidden)
        sent.append(jnp.tanh(model.layer(hidden)))
        hidden = hidden + sent[-1]
    for need, expected in (("inputs", received), ("activities", sent)):
        found = nnx.to_pure_dict(signal(lambda m, x: jnp.mean(m(x) ** 2), model, X, need))
        close(found["layer"]["kernel"], jnp.concatenate(expected))


class Critic(linen.Module):
    nonlinearity: object = linen.relu

    @linen.compact
    def __call__(self, x):
        return linen.Dense(1, name="out")(self.nonlinearity(linen.Dense(3, name="hidden")(x)))


@pytest.mark.parametrize("nonlinearity", [linen.relu, jnp.tanh])
def test_a_penalty_on_a_gradient_is_a_call_that_learns(nonlinearity):
    """WGAN-GP. The output of the inner function is not used, only its derivatives are."""
    critic = Critic(nonlinearity)
    params = critic.init(jax.random.key(0), X)["params"]

    def penalty(params, x):
        slopes = jax.vmap(jax.grad(lambda one: critic.apply({"params": params}, one)[0]))(x)
        return jnp.mean((jnp.linalg.norm(slopes, axis=-1) - 1) ** 2)

    def loss(params, x):
        return jnp.mean(critic.apply({"params": params}, x)) + penalty(params, x + 5)

    found = signal(loss, params, X, "inputs")
    for name in ("hidden", "out"):
        assert jnp.any(jax.grad(penalty)(params, Y)[name]["kernel"] != 0)
    close(found["hidden"]["kernel"], BOTH)
    hidden = nonlinearity(BOTH @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    close(found["out"]["kernel"], hidden)


def difference(value, target):
    return jnp.mean((value - jax.lax.stop_gradient(target)) ** 2)


def scanned_difference(value, target):
    def add(total, pair):
        return total + difference(*pair), None

    return jax.lax.scan(add, 0.0, (value, target))[0]


DIFFERENCES = {
    "plain": difference,
    "vmap": lambda value, target: jax.vmap(difference)(value, target).sum(),
    "jit": jax.jit(difference),
    "checkpoint": jax.checkpoint(difference),
    "scan": scanned_difference,
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_target_may_be_stopped_inside_of_a_call(name):
    def loss(params, batch):
        value, target = (LAYER.apply(params, x) for x in batch)
        return DIFFERENCES[name](value, target)

    close(inputs_of_the_layer(loss), X)


def test_weights_may_be_stopped_inside_of_a_call():
    freeze = jax.jit(lambda params: jax.tree.map(jax.lax.stop_gradient, params))

    def loss(params, batch):
        return jnp.mean((LAYER.apply(params, batch[0]) - LAYER.apply(freeze(params), batch[1])) ** 2)

    close(inputs_of_the_layer(loss), X)


def in_a_loop(x):
    teacher = jax.tree.map(lambda leaf: 2 * leaf, SQUARE_PARAMS)
    rounds = (lambda carry: carry[0] < 5, lambda c: (c[0] + 1, jnp.tanh(SQUARE.apply(teacher, c[1]))), (0, x))
    return jax.lax.while_loop(*rounds)[1]


def in_a_branch(x):
    return jax.lax.cond(x.sum() > 0, lambda: SQUARE.apply(SQUARE_PARAMS, x), lambda: x)


SQUARE = linen.Dense(4)
SQUARE_PARAMS = SQUARE.init(jax.random.key(2), X)


@pytest.mark.parametrize("teacher", [in_a_loop, in_a_branch])
def test_a_teacher_may_stand_in_a_loop_or_a_branch(teacher):
    def loss(params, x):
        return jnp.mean((SQUARE.apply(params, x) - teacher(x)) ** 2)

    start = jax.tree.map(lambda leaf: 3 * leaf, SQUARE_PARAMS)
    close(signal(loss, start, X, "inputs")["params"]["kernel"], X)


def test_a_kernel_that_is_computed_from_a_leaf_of_the_same_name_is_not_it():
    """A hypernetwork makes the kernel of another layer."""

    class Hyper(linen.Module):
        @linen.compact
        def __call__(self, code):
            return linen.Dense(12)(code)

    class Main(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3, use_bias=False)(x)

    code = jnp.array([[10.0, 20.0]])
    params = Hyper().init(jax.random.key(0), code)

    def loss(params, x):
        kernel = Hyper().apply(params, code).reshape(4, 3)
        return jnp.mean(Main().apply({"params": {"Dense_0": {"kernel": kernel}}}, x) ** 2)

    close(signal(loss, params, X, "inputs")["params"]["Dense_0"]["kernel"], code)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_two_calls_of_a_layer_and_then_two_of_its_norm(library):
    class Siamese(linen.Module):
        @linen.compact
        def __call__(self, left, right):
            layer, norm = linen.Dense(3, name="layer"), linen.LayerNorm(name="norm")
            left, right = layer(left), layer(right)
            return norm(left) - norm(right)

    class SiameseNNX(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            self.norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, left, right):
            left, right = self.layer(left), self.layer(right)
            return self.norm(left) - self.norm(right)

    if library == "linen":
        model = Siamese()
        params = model.init(jax.random.key(0), X, Y)["params"]
        found = signal(
            lambda p, batch: jnp.mean(model.apply({"params": p}, *batch) ** 2), params, (X, Y), "activities"
        )
        raw = BOTH @ params["layer"]["kernel"] + params["layer"]["bias"]
    else:
        model = SiameseNNX()
        raw = model.layer(BOTH)
        found = nnx.to_pure_dict(signal(lambda m, b: jnp.mean(m(*b) ** 2), model, (X, Y), "activities"))
    expected = (raw - raw.mean(-1, keepdims=True)) / jnp.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    for one in found["layer"].values():
        assert jnp.allclose(one, expected, atol=1e-4)


RELUS = {
    "of an array of zeros": lambda h: jnp.maximum(h, jnp.zeros_like(h)),
    "where": lambda h: jnp.where(h > 0, h, jnp.zeros_like(h)),
    "select": lambda h: jax.lax.select(h > 0, h, jnp.zeros_like(h)),
    "in a call": jax.jit(lambda h: linen.relu(h) @ jnp.ones((3, 3))),
}


@pytest.mark.parametrize("name", RELUS)
def test_a_relu_is_a_relu_however_it_is_written(name):
    critic = Critic(RELUS[name])
    params = critic.init(jax.random.key(0), X)["params"]
    found = signal(lambda p, x: jnp.mean(critic.apply({"params": p}, x) ** 2), params, X, "activities")
    close(found["hidden"]["kernel"], jax.nn.relu(X @ params["hidden"]["kernel"] + params["hidden"]["bias"]))


@pytest.mark.parametrize("gate", [jax.nn.glu, jax.checkpoint(lambda h: jax.nn.glu(h))])
def test_a_gate_of_a_library_is_read_as_one_by_hand(gate):
    class Gated(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(1, name="out")(gate(linen.Dense(6, name="both")(x)))

    params = Gated().init(jax.random.key(0), X)["params"]
    found = signal(lambda p, x: jnp.mean(Gated().apply({"params": p}, x) ** 2), params, X, "activities")
    raw = X @ params["both"]["kernel"] + params["both"]["bias"]
    close(found["both"]["kernel"], raw.at[:, 3:].set(jax.nn.sigmoid(raw[:, 3:])))


@pytest.mark.parametrize("lift", [lambda layer: layer, linen.remat, linen.jit])
def test_a_dead_unit_is_drawn_anew_behind_a_layer_in_a_call_of_its_own(lift):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            hidden = linen.relu(lift(linen.Dense)(4, name="hidden")(x))
            return linen.Dense(1, name="head")(hidden)

    params = {
        "hidden": {"kernel": jnp.eye(3, 4), "bias": jnp.zeros(4).at[3].set(-1.0)},
        "head": {"kernel": jnp.ones([4, 1]), "bias": jnp.zeros(1)},
    }

    def loss(params, x):
        return jnp.mean((Net().apply({"params": params}, x) - 1.0) ** 2)

    tx = ro.reset_units(optax.adam(0.01), ro.dormant_units(threshold=0.1, every=1))
    x = jnp.abs(X[:, :3])
    _, gradients, extra = ro.value_and_grad(loss, needs=tx)(params, x, state=tx.init(params))
    _, state = tx.update(gradients, tx.init(params), params, **extra)
    assert int(state.resets) == 1


@pytest.mark.parametrize("keep", [jax.jit, jax.checkpoint], ids=["jit", "checkpoint"])
def test_what_an_earlier_evaluation_has_left_in_the_caches_is_not_taken(keep):
    apply = keep(LAYER.apply)

    def loss(params, batch):
        return jnp.mean(apply(params, batch[0]) ** 2) + jnp.mean(LAYER.apply(params, batch[1]) ** 2)

    jax.jit(loss)(PARAMS, (X, Y))
    jax.grad(loss)(PARAMS, (X, Y))
    step = ro.value_and_grad(loss, needs=("inputs", "activities"))
    for run in (step, step, jax.jit(step)):
        _, _, extra = run(PARAMS, (X, Y))
        close(extra["inputs"]["params"]["kernel"], BOTH)
        close(extra["activities"]["params"]["kernel"][5:], LAYER.apply(PARAMS, Y))


class Small(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def small(seed):
    first, second = jax.random.split(jax.random.key(seed))
    return Small(eqx.nn.Linear(4, 4, key=first), eqx.nn.Linear(4, 4, key=second))


def over_rows(model, x):
    return jax.vmap(model)(x)


def in_half(model, x):
    return over_rows(jax.tree.map(lambda a: a.astype(jnp.bfloat16), model), x)


FORMS = {
    "plain": over_rows,
    "half": in_half,
    "jit": eqx.filter_jit(over_rows),
    "checkpoint": eqx.filter_checkpoint(over_rows),
    "half, jit": eqx.filter_jit(in_half),
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_of_equinox_are_known_by_what_they_are_computed_from(name):
    """Both kernels, and those of the teacher, have one shape."""
    teacher = small(1)

    def loss(model, x):
        return jnp.mean((FORMS[name](model, x) - FORMS[name](teacher, x + 5)) ** 2)

    model = small(0)
    loss(model, X)
    found = signal(loss, model, X, "inputs")
    hidden = jnp.tanh(jax.vmap(model.first)(X))
    tolerance = 0.05 if "half" in name else 1e-6
    for one, expected in ((found.first, X), (found.second, hidden)):
        assert one.bias == 1.0
        assert jnp.allclose(one.weight.astype(float), expected, atol=tolerance)


def test_weights_of_equinox_that_another_layer_has_transposed_are_refused():
    class Tied(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            back = eqx.tree_at(lambda layer: layer.weight, self.layer, self.layer.weight.T)
            return back(jnp.tanh(self.layer(x)))

    model = Tied(eqx.nn.Linear(4, 4, use_bias=False, key=jax.random.key(0)))
    with pytest.raises(
        ValueError, match=r"leaf \.layer\.weight \(a layer whose weights are computed from these"
    ):
        signal(lambda m, x: jnp.mean(jax.vmap(m)(x) ** 2), model, X, "inputs")


def test_rows_of_weights_that_a_loss_takes_apart_are_asked_for():
    class Stack(eqx.Module):
        layers: eqx.nn.Linear

        def __call__(self, x):
            for row in range(2):
                x = jnp.tanh(jax.tree.map(lambda leaf, row=row: leaf[row], self.layers)(x))
            return x

    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))
    model = Stack(make(jax.random.split(jax.random.key(0), 2)))
    with pytest.raises(ValueError, match=r"called with arrays that are computed from these parameters"):
        signal(lambda m, x: jnp.mean(jax.vmap(m)(x) ** 2), model, X, "inputs")


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_of_haiku_are_known_inside_of_a_call(compiled):
    haiku = pytest.importorskip("haiku")
    net = haiku.without_apply_rng(haiku.transform(lambda x: haiku.Linear(2)(jnp.tanh(haiku.Linear(3)(x)))))
    params = net.init(jax.random.key(0), X)
    apply = jax.jit(net.apply) if compiled else net.apply
    found = signal(lambda p, x: jnp.mean(apply(p, x) ** 2), params, X, "inputs")
    close(found["linear_1"]["w"], X)
    close(found["linear"]["w"], jnp.tanh(X @ params["linear_1"]["w"] + params["linear_1"]["b"]))

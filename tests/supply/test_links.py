"""Units that an optimiser resets, followed in the loss: whether only the layers read them that it says."""

import warnings

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

BATCH = {"x": np.random.default_rng(0).normal(size=[8, 5]).astype("float32"), "y": np.ones([8, 3], "float32")}


class Chain(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (8, 16, 12):
            x = nn.relu(nn.LayerNorm()(nn.Dense(features)(x)))
            x = nn.Dropout(0.1, deterministic=False)(x)
        return nn.Dense(3)(x)


class Residual(nn.Module):
    """The units of Dense_0 and Dense_1 go around the next layer too, and Dense_2 and 3 read sums."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        for _ in range(2):
            x = x + nn.relu(nn.Dense(16)(x))
        return nn.Dense(3)(x)


class OfTheData(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(5, name="hidden")(x)
        return nn.Dense(3, name="head")(x + nn.relu(hidden))


class Beside(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(16)(x))
        further = nn.relu(nn.Dense(12)(hidden))
        return nn.Dense(3)(further) + hidden[:, :3]


class Block(nn.Module):
    """A block of a Transformer: its hidden units go nowhere else, though the block adds to the stream."""

    @nn.compact
    def __call__(self, x):
        stream = x[:, :, None] * jnp.ones(6)
        stream = stream + nn.Dense(6, name="down")(nn.gelu(nn.Dense(16, name="up")(stream)))
        return nn.Dense(3, name="head")(nn.LayerNorm()(stream).mean(1))


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        images = jnp.tile(x[:, :4].reshape(-1, 2, 2, 1), (1, 2, 2, 1))
        pooled = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), name="hidden")(images)), (2, 2), (2, 2))
        return nn.Dense(3, name="head")(pooled.reshape(len(x), -1))


class Gated(nn.Module):
    """A unit that is multiplied by a gate is silent where its weights are 0, whatever the gate is."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(16, name="hidden")(x)) * nn.sigmoid(nn.Dense(16, name="gate")(x))
        return nn.Dense(3, name="head")(hidden)


def optimizer(outgoing=None, axes="flax"):
    return ro.reset_units(optax.adam(1e-3), ro.dormant_units(every=10), outgoing=outgoing, axes=axes)


def messages(loss, model, tx, state=None):
    """Return what is warned of while one step is made."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ro.value_and_grad(loss, needs=tx)(model, BATCH, state=tx.init(model) if state is None else state)
    return [str(one.message) for one in found]


def linen_messages(module, outgoing=None):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = module.init(keys, BATCH["x"])["params"]

    def loss(params, batch):
        outputs = module.apply({"params": params}, batch["x"], rngs={"dropout": jax.random.key(1)})
        return jnp.mean((outputs - batch["y"]) ** 2)

    return messages(loss, params, optimizer(outgoing))


@pytest.mark.parametrize(
    ("module", "outgoing"),
    [
        (Chain(), None),
        (Block(), {"up": "down"}),
        (Convolutional(), {"hidden": "head"}),
        (Gated(), {"hidden": "head"}),
    ],
    ids=["chain", "block", "convolution", "gate"],
)
def test_nothing_is_said_where_only_the_named_layers_read_the_units(module, outgoing):
    assert linen_messages(module, outgoing) == []


def test_warns_of_a_residual_network_whose_names_look_like_a_chain():
    past, beside = linen_messages(Residual())
    assert "'Dense_0' (to 'Dense_1'), 'Dense_1' (to 'Dense_2'). That is well" in past
    assert "'Dense_1' (in 'Dense_2'), 'Dense_2' (in 'Dense_3'). A reset" in beside


def test_the_data_may_be_what_is_added():
    (beside,) = linen_messages(OfTheData(), {"hidden": "head"})
    assert "'hidden' (in 'head')" in beside
    assert beside.endswith("Reset none of these layers.")


def test_warns_of_units_that_go_around_their_reader():
    (past,) = linen_messages(Beside())
    assert "'Dense_0' (to 'Dense_1')" in past


def test_the_remedy_has_the_layers_that_are_left():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="first")(x)
            x = x + nn.relu(nn.Dense(8, name="second")(x))
            return nn.Dense(3, name="head")(nn.relu(nn.Dense(8, name="third")(x)))

    (beside,) = linen_messages(Two(), {"second": "third", "third": "head"})
    assert beside.endswith("Leave these layers out: outgoing={'third': 'head'}.")


def test_a_warning_means_that_a_reset_changes_what_it_should_not():
    """The oracle: without the weights that read them, outputs depend on hidden units where a warning is."""
    for module, is_chain in ((Chain(), True), (Residual(), False), (Beside(), False)):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        params = module.init(keys, BATCH["x"])["params"]

        def outputs(kernel, module=module, params=params):
            cut = params | {
                "Dense_1": params["Dense_1"] | {"kernel": jnp.zeros_like(params["Dense_1"]["kernel"])}
            }
            cut["Dense_0"] = params["Dense_0"] | {"kernel": kernel}
            return module.apply({"params": cut}, BATCH["x"], rngs={"dropout": jax.random.key(1)})

        change = jax.jvp(
            outputs, (params["Dense_0"]["kernel"],), (jnp.ones_like(params["Dense_0"]["kernel"]),)
        )[1]
        assert (np.max(np.abs(change)) == 0) == is_chain
        assert any("'Dense_0' (to 'Dense_1')" in one for one in linen_messages(module)) == (not is_chain)


class TwoHeads(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 16, rngs=rngs)
        self.policy = nnx.Linear(16, 3, rngs=rngs)
        self.value = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        hidden = jax.nn.relu(self.hidden(x))
        return self.policy(hidden), self.value(hidden)


@pytest.mark.parametrize(("readers", "number"), [(("policy", "value"), 0), ("policy", 1)])
def test_several_heads_under_compilation(readers, number):
    model = TwoHeads(nnx.Rngs(0))
    state = nnx.Optimizer(model, optimizer({"hidden": readers}), wrt=nnx.Param)

    def loss(model, batch):
        policy, value = model(batch["x"])
        return jnp.mean((policy - batch["y"]) ** 2) + jnp.mean(value**2)

    step = nnx.jit(lambda model, state: ro.value_and_grad(loss, needs=state)(model, BATCH, state=state)[0])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        step(model, state)
    assert len(found) == number
    assert all("'hidden' (to 'policy')" in str(one.message) for one in found)


def test_an_equinox_model_of_single_examples_and_a_part_of_the_weights():
    model = eqx.nn.MLP(5, 3, 16, 2, key=jax.random.key(0))
    own = optimizer({"layers/0": "layers/1", "layers/1": "layers/2"}, "equinox")
    tx = optax.partition({"all": own}, lambda params: jax.tree.map(lambda _: "all", params))

    def loss(model, batch):
        return jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)

    def skipping(model, batch):
        hidden = jax.vmap(lambda x: jax.nn.relu(model.layers[0](x)))(batch["x"])
        return loss(model, batch) + jnp.mean((hidden[:, :3] - batch["y"]) ** 2)

    state = tx.init(eqx.filter(model, eqx.is_array))
    assert messages(loss, model, tx, state) == []
    (past,) = messages(skipping, model, tx, state)
    assert "'layers/0' (to 'layers/1')" in past


def test_a_layer_that_the_user_tells_of():
    params = {"hidden": {"kernel": jnp.ones([5, 4])}, "head": {"kernel": jnp.ones([4, 3])}}

    def loss(params, batch, skipping=False):
        hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"])
        ro.supply.observe(params["hidden"]["kernel"], activities=hidden)
        outputs = hidden @ params["head"]["kernel"]
        ro.supply.observe(params["head"]["kernel"], activities=outputs)
        outputs = outputs + hidden[:, :3] if skipping else outputs
        return jnp.mean((outputs - batch["y"]) ** 2)

    tx = optimizer({"hidden": "head"})
    assert messages(loss, params, tx) == []
    (past,) = messages(lambda params, batch: loss(params, batch, True), params, tx)
    assert "'hidden' (to 'head')" in past


def test_what_stands_in_a_loop_is_taken_to_hold():
    """A head that a scan calls reads the units there; nothing is said of what is not looked into."""
    params = {"hidden": {"kernel": jnp.ones([5, 4])}, "head": {"kernel": jnp.ones([4, 3])}}

    def loss(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"])
        ro.supply.observe(params["hidden"]["kernel"], activities=hidden)

        def row(total, one):
            outputs = one @ params["head"]["kernel"]
            ro.supply.observe(params["head"]["kernel"], activities=outputs)
            return total + outputs, None

        return jnp.sum(jax.lax.scan(row, jnp.zeros(3), hidden)[0] ** 2)

    assert messages(loss, params, optimizer({"hidden": "head"})) == []


class Pair(nn.Module):
    act: str = "tanh"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(getattr(nn, self.act)(nn.Dense(5, name="a")(x)))


def of_pair(loss):
    module = Pair()
    params = module.init(jax.random.key(0), BATCH["x"])["params"]
    apply = lambda params, x: module.apply({"params": params}, x)  # noqa: E731
    return messages(lambda params, batch: loss(apply, params, batch), params, optimizer({"a": "b"}))


def error(apply, params, batch):
    return jnp.mean((apply(params, batch["x"]) - batch["y"]) ** 2)


def after_a_step(apply, params, batch):
    gradients = jax.grad(lambda p: error(apply, p, batch))(params)
    return error(apply, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), batch)


TEACHER = {
    "a": {"kernel": jnp.ones([5, 5]), "bias": jnp.ones(5)},
    "b": {"kernel": jnp.ones([5, 3]), "bias": jnp.ones(3)},
}


@pytest.mark.parametrize(
    "loss",
    [
        error,
        after_a_step,
        lambda apply, params, batch: jnp.mean((apply(params, batch["x"]) - apply(TEACHER, batch["x"])) ** 2),
        lambda apply, params, batch: (
            error(apply, params, batch)
            + jnp.mean(jax.grad(lambda x: apply(params, x).sum())(batch["x"]) ** 2)
        ),
        lambda apply, params, batch: jnp.mean(
            jax.jvp(lambda x: apply(params, x), (batch["x"],), (jnp.ones_like(batch["x"]),))[1] ** 2
        ),
        lambda apply, params, batch: jnp.mean(
            jax.vmap(jax.hessian(lambda x: apply(params, x).sum()))(jnp.asarray(batch["x"])) ** 2
        ),
    ],
    ids=["plain", "after a step", "teacher", "penalty on a gradient", "forward", "second derivatives"],
)
def test_nothing_is_said_of_other_networks_and_derivatives(loss):
    """What is silent has silent derivatives, and a teacher's layer of the same name is another's."""
    assert of_pair(loss) == []


def plain(combined):
    """Return a loss of two matrices in which the second reads what ``combined`` makes of hidden and data."""

    def loss(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["a"]["kernel"])
        ro.supply.observe(params["a"]["kernel"], activities=hidden)
        outputs = combined(hidden, batch["x"]) @ params["b"]["kernel"]
        ro.supply.observe(params["b"]["kernel"], activities=outputs)
        return jnp.mean((outputs - batch["y"]) ** 2)

    params = {"a": {"kernel": jnp.ones([5, 5])}, "b": {"kernel": jnp.ones([5, 3])}}
    return messages(loss, params, optimizer({"a": "b"}))


@pytest.mark.parametrize(
    "combined",
    [
        lambda h, x: h + x,
        lambda h, x: jnp.stack([h, x]).sum(0),
        lambda h, x: h.at[:, :3].add(x[:, :3]),
        lambda h, x: h.at[:, :3].set(x[:, :3]),
        lambda h, x: jnp.maximum(h, x),
    ],
    ids=["sum", "stack", "add at", "set at", "largest"],
)
def test_sums_of_any_kind_are_seen(combined):
    (beside,) = plain(combined)
    assert "'a' (in 'b')" in beside


def test_a_constant_for_each_unit_is_a_bias():
    assert plain(lambda h, x: nn.relu(h - np.ones([1, 5], "float32"))) == []

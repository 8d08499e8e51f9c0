"""Networks as people write them: metrics beside the loss, derived layers, masks, casts, other axes."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import riemann_optax as ro

from .models import close

X = jax.random.normal(jax.random.key(0), (5, 6))
IMAGES = jax.random.normal(jax.random.key(2), (4, 6, 6, 3))


def mean_square(module, need, x, params=None, **keywords):
    """Return parameters of a Linen module, and what its loss shows of a signal."""
    params = module.init(jax.random.key(1), x)["params"] if params is None else params

    def loss(params, x):
        outputs = module.apply({"params": params}, x, **keywords)
        return jnp.mean(jax.tree.leaves(outputs)[0] ** 2)

    return params, ro.value_and_grad(loss, needs=need)(params, x)[2][need]


class Logged(linen.Module):
    log: str = "nothing"

    @linen.compact
    def __call__(self, x):
        hidden = linen.Dense(8, name="hidden")(x)
        if self.log == "printed":
            jax.debug.callback(lambda value: None, hidden.std())
        kinds = {
            "share": lambda: jnp.mean(hidden < 0),
            "mean": lambda: jnp.mean(hidden),
            "stopped": lambda: jnp.mean(jax.lax.stop_gradient(hidden)),
        }
        return linen.Dense(3, name="out")(linen.relu(hidden)), kinds.get(self.log, lambda: 0.0)()


@pytest.mark.parametrize("log", ["nothing", "share", "mean", "stopped", "printed"])
def test_what_is_logged_changes_no_reset(log):
    module = Logged(log)
    params = module.init(jax.random.key(1), X)["params"]
    params["hidden"]["bias"] = params["hidden"]["bias"].at[:3].set(-50.0)

    def loss(params, x):
        outputs, logged = module.apply({"params": params}, x)
        return jnp.mean(outputs**2), logged

    tx = ro.reset_units(optax.sgd(0.0), ro.dormant_units(0.1, every=1))
    _, gradients, extra = ro.value_and_grad(loss, tx, has_aux=True)(params, X)
    updates, state = tx.update(gradients, tx.init(params), params, **extra)
    kernel = optax.apply_updates(params, updates)["out"]["kernel"]
    assert int(state.resets) == 3
    assert np.flatnonzero((kernel == 0).all(axis=1)).tolist() == [0, 1, 2]


class Branched(linen.Module):
    shift: float

    @linen.compact
    def __call__(self, x):
        hidden = linen.Dense(8, name="hidden")(x)
        branch = linen.Dense(8, name="branch")(linen.relu(hidden - self.shift))
        return linen.Dense(3, name="out")(hidden + branch)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_what_is_read_beside_a_shifted_nonlinearity_is_sent_on_as_it_is(shift):
    params, seen = mean_square(Branched(shift), "activities", X)
    close(seen["hidden"]["kernel"], X @ params["hidden"]["kernel"] + params["hidden"]["bias"])


SLOPES = jnp.linspace(0.2, 1.5, 8)
LEARNED = {
    "swish": lambda h, a: h * jax.nn.sigmoid(a * h),
    "snake": lambda h, a: h + jnp.sin(a * h) ** 2 / a,
    "prelu": lambda h, a: jnp.where(h > 0, h, a * h),
    "shifted relu": lambda h, a: jax.nn.relu(h - a),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_number_for_each_unit_belongs_to_the_nonlinearity(name):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            slopes = self.param("slopes", lambda key: SLOPES)
            ro.supply.observe(slopes, activities=jnp.zeros(8))
            return linen.Dense(3, name="out")(LEARNED[name](linen.Dense(8, name="hidden")(x), slopes))

    params, seen = mean_square(Net(), "activities", X)
    hidden = X @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    close(seen["hidden"]["kernel"], LEARNED[name](hidden, SLOPES))


@pytest.mark.parametrize("function", [lambda h: jnp.arctan2(h, 1.0), lambda h: jnp.mod(h, 1.0)])
def test_further_functions_of_one_value_are_nonlinearities(function):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3, name="out")(function(linen.Dense(8, name="hidden")(x)))

    params, seen = mean_square(Net(), "activities", X)
    close(seen["hidden"]["kernel"], function(X @ params["hidden"]["kernel"] + params["hidden"]["bias"]))


class Doubled(linen.Dense):
    @linen.compact
    def __call__(self, x):
        return super().__call__(2 * x)


class DoubledNNX(nnx.Linear):
    def __call__(self, x):
        return super().__call__(2 * x)


class DoubledEquinox(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return super().__call__(2 * x, key=key)


class DoubledHaiku(hk.Linear):
    def __call__(self, x):
        return super().__call__(2 * x)


def _of_linen():
    return mean_square(Doubled(4), "inputs", X)[1]["kernel"]


def _of_nnx():
    step = ro.value_and_grad(lambda model, x: jnp.mean(model(x) ** 2), needs="inputs")
    return step(DoubledNNX(6, 4, rngs=nnx.Rngs(0)), X)[2]["inputs"]["kernel"]


def _of_equinox():
    step = ro.value_and_grad(lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2), needs="inputs")
    return step(DoubledEquinox(6, 4, key=jax.random.key(0)), X)[2]["inputs"].weight


def _of_haiku():
    net = hk.without_apply_rng(hk.transform(lambda x: DoubledHaiku(4, name="doubled")(x)))
    step = ro.value_and_grad(lambda params, x: jnp.mean(net.apply(params, x) ** 2), needs="inputs")
    return step(net.init(jax.random.key(0), X), X)[2]["inputs"]["doubled"]["w"]


@pytest.mark.parametrize("seen", [_of_linen, _of_nnx, _of_equinox, _of_haiku])
def test_a_derived_layer_shows_what_it_gives_the_layer_it_is_derived_from(seen):
    close(seen(), 2 * X)


def standardised(kernel):
    kernel = kernel - kernel.mean((0, 1, 2))
    return kernel / (kernel.std((0, 1, 2)) + 1e-5)


class Standardised(linen.Conv):
    def param(self, name, *arguments, **keywords):
        found = super().param(name, *arguments, **keywords)
        return standardised(found) if name == "kernel" else found


class OwnCall(nnx.Conv):
    def __call__(self, x):
        kernel = standardised(self.kernel[...])
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class OwnKernel(nnx.Conv):
    def __call__(self, x):
        kept = self.kernel
        self.kernel = nnx.Param(standardised(kept[...]))
        sent = super().__call__(x)
        self.kernel = kept
        return sent


@pytest.mark.parametrize("kind", [OwnCall, OwnKernel])
def test_standardised_kernels_of_nnx_are_refused(kind):
    step = ro.value_and_grad(lambda model, x: jnp.mean(model(x) ** 2), needs="inputs")
    with pytest.raises(ValueError, match=r"inputs: the layers of leaf \['kernel'\]"):
        step(kind(3, 4, (1, 1), use_bias=False, rngs=nnx.Rngs(0)), IMAGES)


def test_a_standardised_kernel_of_linen_is_refused():
    with pytest.raises(ValueError, match=r"\['kernel'\] \(a layer whose class changes its parameters\)"):
        mean_square(Standardised(4, (1, 1), use_bias=False), "inputs", IMAGES)


def test_a_normalised_weight_is_refused_and_a_masked_one_is_not():
    class Spectral(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.SpectralNorm(linen.Dense(4, name="dense"), name="norm")(x, update_stats=False)

    module = Spectral()
    variables = module.init(jax.random.key(1), X)

    def loss(params, x):
        return jnp.mean(module.apply({**variables, "params": params}, x) ** 2)

    with pytest.raises(
        ValueError, match=r"\['dense'\]\['kernel'\] \(a layer whose weights are computed from"
    ):
        ro.value_and_grad(loss, needs="inputs")(variables["params"], X)

    dense = linen.Dense(4)
    params = dense.init(jax.random.key(1), X)["params"]
    mask = jnp.eye(6, 4)

    def of_masked(params, x):
        return jnp.mean(dense.apply({"params": {**params, "kernel": mask * params["kernel"]}}, x) ** 2)

    close(ro.value_and_grad(of_masked, needs="inputs")(params, X)[2]["inputs"]["kernel"], X)


@pytest.mark.parametrize("between", ["a cast", "a reshape"])
def test_a_layer_and_its_norm_are_one_with_a_conversion_between(between):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            hidden = linen.Dense(8, use_bias=False, name="hidden")(x)
            hidden = hidden.astype(jnp.float16) if between == "a cast" else hidden.reshape(5, 1, 8)
            hidden = linen.LayerNorm(name="norm")(hidden.astype(jnp.float32))
            return linen.Dense(3, name="out")(linen.relu(hidden))

    params, seen = mean_square(Net(), "activities", X)
    hidden = X @ params["hidden"]["kernel"]
    hidden = hidden.astype(jnp.float16).astype(jnp.float32) if between == "a cast" else hidden
    normal = (hidden - hidden.mean(-1, keepdims=True)) / jnp.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
    for name, leaf in (("hidden", "kernel"), ("norm", "scale")):
        np.testing.assert_allclose(seen[name][leaf].reshape(5, 8), jax.nn.relu(normal), rtol=1e-3, atol=1e-4)


def test_a_norm_of_a_branch_is_not_that_of_a_layer_that_others_read():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            hidden = linen.Dense(8, use_bias=False, name="hidden")(x)
            branch = linen.LayerNorm(name="norm")(hidden.astype(jnp.float16).astype(jnp.float32))
            return linen.Dense(3, name="out")(linen.relu(branch) + hidden)

    params, seen = mean_square(Net(), "activities", X)
    close(seen["hidden"]["kernel"], X @ params["hidden"]["kernel"])


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_contracted_axes_are_in_their_order(library):
    x = jax.random.normal(jax.random.key(3), (5, 4, 6))
    if library == "linen":
        params, seen = mean_square(linen.DenseGeneral(3, axis=(-1, -2)), "inputs", x)
        kernel = params["kernel"]
    else:
        layer = nnx.LinearGeneral((4, 6), 3, axis=(-1, -2), rngs=nnx.Rngs(0))
        seen = ro.value_and_grad(lambda m, x: jnp.mean(m(x) ** 2), needs="inputs")(layer, x)[2]["inputs"]
        kernel = layer.kernel[...]
    assert seen["kernel"].shape == (5, 4, 6) == (5, *kernel.shape[:2])
    close(seen["kernel"], x)


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("kind", ["LayerNorm", "BatchNorm"])
def test_features_that_lie_along_another_axis_come_last(library, kind):
    x = jax.random.normal(jax.random.key(3), (5, 4, 4)) * jnp.arange(1, 5)
    over = 1 if kind == "LayerNorm" else (0, 2)
    options = {"reduction_axes": (1,), "feature_axes": (1,)} if kind == "LayerNorm" else {"axis": 1}
    if library == "linen":
        module = getattr(linen, kind)(
            **options, **({} if kind == "LayerNorm" else {"use_running_average": False})
        )
        variables = module.init(jax.random.key(0), x)

        def loss(params, x):
            outputs, _ = module.apply({**variables, "params": params}, x, mutable=True)
            return jnp.mean(outputs**2)

        seen = ro.value_and_grad(loss, needs="inputs")(variables["params"], x)[2]["inputs"]
    else:
        layer = getattr(nnx, kind)(4, **options, rngs=nnx.Rngs(0))
        seen = ro.value_and_grad(lambda m, x: jnp.mean(m(x) ** 2), needs="inputs")(layer, x)[2]["inputs"]
    normal = (x - x.mean(over, keepdims=True)) / jnp.sqrt(x.var(over, keepdims=True) + 1e-6)
    np.testing.assert_allclose(seen["scale"], jnp.swapaxes(normal, 1, 2), rtol=1e-3, atol=1e-4)


class Block(linen.Module):
    @linen.compact
    def __call__(self, carry, _):
        return linen.tanh(linen.Dense(4, name="dense")(carry)), None


@pytest.mark.parametrize("need", ["inputs", "activities"])
@pytest.mark.parametrize("along", [0, 1])
def test_layers_that_are_stacked_along_another_axis_than_the_first_are_refused(along, need):
    stack = linen.scan(Block, variable_axes={"params": along}, split_rngs={"params": True}, length=4)()
    x = jax.random.normal(jax.random.key(0), (5, 4)) * jnp.arange(1, 5)
    params = stack.init(jax.random.key(1), x, None)["params"]

    def loss(params, x):
        return jnp.mean(stack.apply({"params": params}, x, None)[0] ** 2)

    step = ro.value_and_grad(loss, needs=need)
    if along:
        with pytest.raises(ValueError, match="stacked along another axis than the first"):
            step(params, x)
        return
    values, carry = [], x
    for kernel, bias in zip(params["dense"]["kernel"], params["dense"]["bias"], strict=True):
        sent = jnp.tanh(carry @ kernel + bias)
        values.append(carry if need == "inputs" else sent)
        carry = sent
    close(step(params, x)[2][need]["dense"]["kernel"], jnp.stack(values, axis=1))


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_negative_index_looks_up_from_the_last_row(library):
    tokens = jnp.array([[0, 1, -1], [2, -1, -1]])
    if library == "linen":
        _, seen = mean_square(linen.Embed(5, 3), "inputs", tokens)
    else:
        table = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
        seen = ro.value_and_grad(lambda m, t: jnp.mean(m(t) ** 2), needs="inputs")(table, tokens)[2]["inputs"]
    assert seen["embedding"].sum((0, 1)).tolist() == [1, 1, 1, 0, 3]


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_masked_convolution_is_given_the_patches_of_a_plain_one(library):
    mask = jnp.ones((3, 3, 3, 4)).at[0].set(0.0)

    def of(mask):
        if library == "linen":
            return mean_square(linen.Conv(4, (3, 3), mask=mask), "inputs", IMAGES)[1]
        layer = nnx.Conv(3, 4, (3, 3), mask=mask, rngs=nnx.Rngs(0))
        return ro.value_and_grad(lambda m, x: jnp.mean(m(x) ** 2), needs="inputs")(layer, IMAGES)[2]["inputs"]

    close(of(mask)["kernel"], of(None)["kernel"])


class Sowing(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 8, rngs=rngs)

    def __call__(self, x):
        hidden = self.linear(x)
        self.sow(nnx.Intermediate, "hidden", hidden)
        return hidden


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@pytest.mark.parametrize("need", [(), "activities"])
def test_what_a_model_sows_is_there_after_the_step(need):
    model, reference = Sowing(nnx.Rngs(0)), Sowing(nnx.Rngs(0))

    def loss(model, x):
        return jnp.mean(model(x) ** 2)

    for calls in (1, 2):
        value, _ = nnx.value_and_grad(loss)(reference, X)
        close(ro.value_and_grad(loss, needs=need)(model, X)[0], value)
        sown, wanted = (one.hidden.get_raw_value() for one in (model, reference))
        assert len(sown) == len(wanted) == calls
        close(sown[-1], wanted[-1])


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.linear(x))


class DroppingStack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Dropping, in_axes=0, out_axes=0))(rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.blocks)


def test_examples_draw_numbers_of_their_own_in_stacked_layers():
    rows = jnp.tile(X[:1], (4, 1))
    step = ro.value_and_grad(lambda model, x: jnp.mean(model(x) ** 2), needs="per_example_gradients")
    found = step(DroppingStack(nnx.Rngs(0)), rows)[2]["per_example_gradients"]["blocks"]["linear"]["kernel"]
    assert found.shape == (4, 3, 6, 6)
    assert bool(jnp.isfinite(found).all())
    assert not np.allclose(found[0], found[1])  # equal examples, other masks

"""Which arrays belong to a hidden unit, in several libraries and transforms; what is not clear is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding

import riemann_optax as ro
from riemann_optax.wrappers._hidden_layers import hidden_layers

from .small_resets import kernels, reset, seen_like

AMBIGUOUS = {
    "all fit": kernels(hidden=(5, 4), one=(4, 2), two=(4, 3)),
    "may all come before it": kernels(one=(5, 4), two=(6, 4), head=(4, 2)),
    "all fit: say": kernels(Dense_0=(4, 4), Dense_1=(4, 4), Dense_2=(4, 4)),
    "fit in a circle": kernels(one=(3, 4), two=(4, 3)),
    "nothing reads the units of": kernels(one=(4, 6), two=(5, 2)),
}


@pytest.mark.parametrize(
    ("names", "outgoing"),
    [
        (["input", "hidden", "output"], {"input": "hidden", "hidden": "output"}),  # hidden is the first leaf
        ([f"Dense_{number}" for number in range(12)], None),  # Dense_10 is before Dense_2
        ([f"Dense_{number}" for number in (2, 1, 0)], None),  # as Linen numbers one nested expression
    ],
    ids=["names", "more than ten", "downward"],
)
def test_the_order_of_reading_is_not_that_of_the_leaves(names, outgoing):
    """The units of the second layer that are dead are drawn anew, and no others."""
    width = [3] + [4 + number for number in range(len(names) - 1)] + [2]
    params = {
        name: {"kernel": jnp.ones([rows, columns]), "bias": jnp.ones(columns)}
        for name, rows, columns in zip(names, width, width[1:], strict=False)
    }
    dead = names[1]
    seen = {
        name: {"kernel": jnp.ones([5, layer["bias"].size]), "bias": 0.0} for name, layer in params.items()
    }
    seen[dead]["kernel"] = seen[dead]["kernel"].at[:, 0].set(0.0)
    tx = ro.reset_units(optax.sgd(0.0), ro.dormant_units(0.0, every=1), outgoing=outgoing)
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(gradients, tx.init(params), params, activities=seen)
    after = optax.apply_updates(params, updates)
    assert int(state.resets) == 1
    for name in names:
        changed = np.flatnonzero(np.any(after[name]["kernel"] != params[name]["kernel"], axis=0))
        if name == dead:
            assert changed.tolist() == [0]
        elif name == names[2]:
            np.testing.assert_array_equal(after[name]["kernel"][0], 0.0)
            np.testing.assert_array_equal(after[name]["kernel"][1:], 1.0)
        else:
            assert changed.size == 0


def test_a_remedy_has_the_names_of_the_model():
    sizes = {"in": (20, 64), "mid": (64, 64), "more": (64, 64), "out": (64, 5)}
    params = {name: {"kernel": jnp.ones(size)} for name, size in sizes.items()}
    with pytest.raises(ValueError, match=r'such as outgoing=\{"in": "mid"\}'):
        hidden_layers(params, None, "flax")


@pytest.mark.parametrize("why", AMBIGUOUS)
def test_what_is_not_clear_is_refused_with_the_name_of_a_leaf(why):
    with pytest.raises(ValueError, match=rf"\['\w+'\]\['kernel'\].*{why}|{why}.*\['\w+'\]\['kernel'\]"):
        reset(AMBIGUOUS[why])


def test_outgoing_says_which_layers_read_which():
    params = AMBIGUOUS["all fit"]
    after, _ = reset(params, outgoing={"hidden": ("one", "two/kernel")})
    for name in ("one", "two"):
        np.testing.assert_array_equal(after[name]["kernel"][-1], 0)
        np.testing.assert_array_equal(after[name]["kernel"][:-1], params[name]["kernel"][:-1])
    after, _ = reset(params, outgoing={"hidden": "one"})
    np.testing.assert_array_equal(after["two"]["kernel"], params["two"]["kernel"])


@pytest.mark.parametrize(
    ("outgoing", "message"),
    [
        ({"hidde": "one"}, r"has the name 'hidde', which 0 kernels have; .*'hidden/kernel'"),
        ({"one": "two"}, r"\['two'\]\['kernel'\] is inputs 4, outputs 3, and cannot read the 2 units of"),
        ({"hidden": "hidden"}, "back to itself"),
    ],
)
def test_a_wrong_name_is_refused(outgoing, message):
    with pytest.raises(ValueError, match=message):
        reset(AMBIGUOUS["all fit"], outgoing=outgoing)


def test_channels_of_a_convolution_and_their_flattened_outputs():
    params = {
        "conv": {"kernel": jnp.ones([3, 3, 2, 4]), "bias": jnp.ones(4)},
        "next_conv": {"kernel": jnp.ones([3, 3, 4, 2]), "bias": jnp.ones(2)},
        "head": {"kernel": jnp.ones([6, 5]), "bias": jnp.ones(5)},  # three places of two channels
    }
    after, state = reset(params, outgoing={"conv": "next_conv", "next_conv": "head"})
    assert state.resets == 2
    np.testing.assert_array_equal(after["conv"]["bias"], [1, 1, 1, 0])
    np.testing.assert_array_equal(after["next_conv"]["kernel"][:, :, 3, 0], 0)
    np.testing.assert_array_equal(after["next_conv"]["kernel"][:, :, :3, 0], 1)
    np.testing.assert_array_equal(after["head"]["kernel"][:, 0], [1, 0, 1, 0, 1, 0])


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden, self.head = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def mean_square(model, batch):
    return jnp.mean(jnp.square(model(batch)))


def test_value_and_grad_supplies_the_activities_of_a_flax_module():
    model, batch = Network(), jnp.ones([4, 3])
    model.hidden.bias[...] = jnp.full(8, -100.0).at[:5].set(100.0)  # three units that never fire
    optimizer = nnx.Optimizer(
        model, ro.reset_units(optax.adam(0.01), ro.dormant_units(0.0, every=1)), wrt=nnx.Param
    )
    step = ro.value_and_grad(mean_square, needs=optimizer.tx)

    @nnx.jit
    def train(model, optimizer):
        _, gradients, extra = step(model, batch, state=optimizer)
        optimizer.update(model, gradients, **extra)

    train(model, optimizer)
    np.testing.assert_array_equal(model.hidden.bias[...] == 0, np.arange(8) >= 5)
    np.testing.assert_array_equal((model.head.kernel[...] == 0).all(1), np.arange(8) >= 5)


def test_a_parameter_that_is_no_hidden_layer_need_not_be_observed():
    class WithPositions(nnx.Module):
        def __init__(self):
            self.positions = nnx.Param(jnp.ones([3]))
            self.up, self.down = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.down(jax.nn.relu(self.up(x + self.positions[...])))

    model = WithPositions()
    model.up.bias[...] = jnp.array([9.0, -99.0, 9.0, 9.0])  # unit 1 is dead
    tx = ro.reset_units(optax.sgd(0.0), ro.dormant_units(0.0, every=1), outgoing={"up": "down"})
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = ro.value_and_grad(lambda model, x: jnp.mean(model(x) ** 2), needs=optimizer)
    before = model.up.kernel[...]
    _, gradients, extra = step(model, jnp.ones([5, 3]), state=optimizer)
    optimizer.update(model, gradients, **extra)
    assert (model.up.kernel[...] != before).any(0).tolist() == [False, True, False, False]


def test_value_and_grad_supplies_those_of_linen_in_a_scan():
    class Hidden(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(linen.relu(linen.Dense(6)(x)))

    module, batch = Hidden(), jnp.ones([4, 3])
    params = module.init(jax.random.key(0), batch)["params"]
    tx = ro.reset_units(optax.adam(0.01), ro.least_useful_units(0.1, maturity=2))
    step = ro.value_and_grad(lambda p, x: jnp.mean(module.apply({"params": p}, x) ** 2), needs=tx)

    def train(carry, _):
        params, state = carry
        _, gradients, extra = step(params, batch, state=state)
        updates, state = tx.update(gradients, state, params, **extra)
        return (optax.apply_updates(params, updates), state), state.resets

    start = params, tx.init(params)
    (_, state), resets = jax.lax.scan(train, start, None, length=20)
    assert resets[-1] > 5
    assert jax.tree.structure(state) == jax.tree.structure(start[1])


def test_several_runs_side_by_side():
    params = AMBIGUOUS["all fit"]
    scales = jnp.array([1.0, 2.0, 3.0])

    def run(scale):
        after, state = reset(jax.tree.map(lambda w: scale * w, params), outgoing={"hidden": ("one", "two")})
        return after, state.resets

    together = jax.vmap(run)(scales)
    for number, scale in enumerate(scales):
        alone = run(scale)
        jax.tree.map(lambda a, b, n=number: np.testing.assert_allclose(a[n], b, rtol=1e-6), together, alone)


def test_a_state_without_the_axes_of_the_weights_is_refused_by_name():
    tx = ro.reset_units(optax.adafactor(0.1, min_dim_size_to_factor=2), ro.dormant_units(0.0, every=1))
    with pytest.raises(ValueError, match=r"FactoredState\.v_row, of shape .* is not known"):
        reset(kernels(hidden=(5, 4), head=(4, 3)), tx)


def test_without_activities_it_says_how_to_make_them():
    params = kernels(hidden=(5, 4), head=(4, 3))
    tx = ro.reset_units(optax.sgd(0.1), ro.dormant_units())
    with pytest.raises(ValueError, match=r"^reset_units needs the extra argument activities"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"activities has shape \(2, 5\) at a kernel of 4 units.*axes="):
        reset(params, tx, seen=seen_like(params, outputs=0))


def test_narrow_state_keeps_its_types():
    params = kernels(hidden=(4, 3), head=(3, 2))
    tx = ro.reset_units(ro.low_precision_state(optax.adam(0.1)), ro.dormant_units(0.0, every=1))
    first = tx.init(params)
    _, state = reset(params, tx)
    types = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), one) for one in (first, state)]
    assert types[0] == types[1]
    assert not state.inner_state.inner_state[0].mu["hidden"]["kernel"][:, -1].any()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_the_same_units_are_drawn_to_the_same_weights(kind):
    params, seen = kernels(hidden=(4, 8), head=(8, 2)), {"hidden": {"kernel": jnp.ones([4, 8])}}
    seen["hidden"]["kernel"] = seen["hidden"]["kernel"].at[:, 3::4].set(0.0)
    seen["head"] = {"kernel": jnp.ones([4, 2])}
    tx = ro.reset_units(optax.adam(0.1), ro.least_useful_units(0.25, maturity=0))
    expected, own = jax.jit(tx.update)(params, tx.init(params), params, activities=seen)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        specs = {"hidden": jax.P("x", "y"), "head": jax.P("y", None)}
        placed = {
            name: {"kernel": jax.device_put(layer["kernel"], NamedSharding(mesh, specs[name]))}
            for name, layer in params.items()
        }
        spread = jax.tree.map(lambda h: jax.device_put(h, NamedSharding(mesh, jax.P("x", None))), seen)
        found, state = jax.jit(tx.update)(placed, tx.init(placed), placed, activities=spread)
    assert state.resets == own.resets == 2
    for name, layer in found.items():
        np.testing.assert_allclose(layer["kernel"], expected[name]["kernel"], rtol=1e-5, atol=1e-6)
        assert layer["kernel"].sharding.is_equivalent_to(placed[name]["kernel"].sharding, 2)
    first = state.inner_state[0].mu["hidden"]["kernel"]
    np.testing.assert_array_equal(np.asarray(first)[:, 3::4], 0)


def test_a_layer_that_comes_later_is_drawn_as_large_as_it_was_then():
    tx = ro.reset_units(optax.sgd(0.0), ro.dormant_units(0.0, every=1))
    small, large = (
        kernels(Dense_0=(5, 4), Dense_1=(4, 3)),
        kernels(Dense_0=(5, 4), Dense_1=(4, 3), Dense_2=(3, 2)),
    )
    _, state = reset(small, tx)
    state, _ = ro.checkpoint.transplant(state, tx, large, old_params=small)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, large), state, large, activities=seen_like(large))
    for layer, spread in (("Dense_0", small["Dense_0"]), ("Dense_1", large["Dense_1"])):
        np.testing.assert_allclose(state.spread[layer]["kernel"], jnp.std(spread["kernel"]), rtol=1e-6)


TURNED = ro.in_eigenbasis(optax.scale_by_adam(), sides="input", update_every=1)


@pytest.mark.parametrize("inner", [optax.adam(0.1), TURNED], ids=["adam", "eigenbasis"])
def test_labels_and_masks_may_be_a_prefix_of_the_parameters(inner):
    """What is kept of a unit is forgotten as it is where each leaf has a label of its own."""
    params = kernels(hidden=(5, 4), head=(4, 3))

    def state_with(labels, mask):
        mixed = optax.chain(
            optax.partition({"turned": inner, "plain": optax.sgd(0.1, momentum=0.9)}, labels),
            optax.masked(optax.trace(0.5), mask),
        )
        tx = ro.reset_units(mixed, ro.dormant_units(0.0, every=1))
        _, state = tx.update(params, tx.init(params), params, activities=seen_like(params))
        return jax.tree.leaves(state.inner_state)

    short = state_with({"hidden": "turned", "head": "plain"}, {"hidden": False, "head": True})
    long = state_with(
        {"hidden": {"kernel": "turned"}, "head": {"kernel": "plain"}},
        {"hidden": {"kernel": False}, "head": {"kernel": True}},
    )
    assert any(leaf.shape == (5, 4) and not leaf[:, -1].any() and leaf.any() for leaf in short)
    jax.tree.map(np.testing.assert_array_equal, short, long)


def test_a_state_that_is_one_vector_of_all_weights_is_refused():
    tx = ro.reset_units(optax.flatten(optax.adam(0.1)), ro.dormant_units(0.0, every=1))
    with pytest.raises(ValueError, match=r"ScaleByAdamState\.mu is one vector of all 32 weights"):
        reset(kernels(hidden=(5, 4), head=(4, 3)), tx)


@pytest.mark.parametrize("readers", [(), None, 3, (3,), ["head", None]])
def test_readers_that_are_no_paths_are_refused(readers):
    params = kernels(hidden=(5, 4), head=(4, 3))
    with pytest.raises(TypeError, match="outgoing must have paths of layers for each layer, one or more"):
        reset(params, outgoing={"hidden": readers})


def test_two_layers_with_one_reader_are_refused():
    """A row of the reader is of a unit of each: without one of the two the other would not stay as it is."""
    params = kernels(gate=(5, 4), up=(5, 4), down=(4, 3))
    with pytest.raises(ValueError, match=r"leaf \['down'\]\['kernel'\] reads both .*'gate'.*'up'"):
        reset(params, outgoing={"gate": "down", "up": "down"})


def test_a_layer_of_one_unit_may_have_a_bias_that_is_a_number():
    params = kernels(hidden=(5, 1), head=(1, 3))
    params["hidden"]["bias"] = jnp.ones([])
    seen = {
        "hidden": {"kernel": jnp.zeros([2, 1]), "bias": jnp.zeros([])},
        "head": {"kernel": jnp.ones([2, 3])},
    }
    after, state = reset(params, seen=seen)
    assert state.resets == 1
    assert not after["head"]["kernel"].any()


@pytest.mark.parametrize("name", ["reset_units", "soft_resets", "add_spectral_pull"])
def test_gradients_that_lack_a_leaf_are_refused_by_its_name(name):
    tx = {
        "reset_units": ro.reset_units(optax.sgd(0.1), ro.dormant_units()),
        "soft_resets": ro.soft_resets(optax.sgd(0.1), 0.1),
        "add_spectral_pull": ro.add_spectral_pull(0.1),
    }[name]
    params = kernels(hidden=(5, 4), head=(4, 3))
    gradients = {**params, "hidden": {"kernel": None}}
    extra = {"obj_fn": jnp.sum, "activities": seen_like(params)}
    with pytest.raises(ValueError, match=r"lacks leaf \['hidden'\]\['kernel'\] of params: .*None in both"):
        tx.update(gradients, tx.init(params), params, **extra)

"""What names and shapes tell: windows of convolutions, and stacks of layers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import riemann_optax as ro
from riemann_optax import _axes

CHANNELS = False  # rows are not looked up
VOLUME, STACK = ((0, 1, 2, 3), (4,), CHANNELS, (0, 1, 2)), ((1, 2, 3), (4,), CHANNELS, (1, 2))
OF_EQUINOX = ((1, 2, 3, 4), (0,), CHANNELS, (2, 3, 4)), ((2, 3, 4), (1,), CHANNELS, (3, 4))


def keys(preset, path):
    """The path of a leaf in a tree of modules; Haiku's has one name for all of them."""
    parts = path.rsplit("/", 1) if preset == "haiku" else path.split("/")
    return tuple(map(jax.tree_util.DictKey, parts))


@pytest.mark.parametrize(
    ("preset", "path", "shape", "axes", "certain"),
    [
        ("flax", "Conv_0/kernel", (3, 3, 3, 1, 8), VOLUME, False),
        ("flax", "conv/kernel", (1, 3, 3, 8, 8), VOLUME, False),
        ("flax", "conv/kernel", (3, 1, 1, 8, 8), VOLUME, False),  # in time alone
        ("flax", "conv/kernel", (3, 7, 7, 3, 64), VOLUME, False),
        ("flax", "tubes/kernel", (2, 16, 16, 3, 768), VOLUME, False),  # patches of a video
        ("flax", "conv/kernel", (12, 3, 3, 64, 64), STACK, False),
        ("flax", "conv/kernel", (12, 1, 1, 64, 64), STACK, False),
        ("flax", "conv/kernel", (4, 3, 3, 64, 64), STACK, False),
        ("flax", "block/kernel", (12, 3, 3, 64, 64), STACK, False),
        ("flax", "conv/kernel", (2, 64, 64, 8, 8), STACK, False),
        ("flax", "ScanConv_0/kernel", (3, 3, 3, 8, 8), STACK, False),
        ("flax", "VmapBlock_0/conv/kernel", (3, 3, 3, 8, 8), STACK, False),
        ("flax", "Conv2D_0/kernel", (3, 3, 3, 8, 8), STACK, True),
        ("flax", "conv3d/kernel", (9, 3, 3, 8, 8), VOLUME, True),
        ("haiku", "net/~/conv3_d/w", (9, 3, 3, 8, 8), VOLUME, True),
        ("haiku", "net/~/conv2_d/w", (3, 3, 3, 8, 8), STACK, True),
        ("scanned", "conv/kernel", (3, 3, 3, 8, 8), STACK, True),
        ("convolution", "conv/kernel", (12, 3, 3, 8, 8), VOLUME, True),
        ({"conv": "flax"}, "conv/kernel", (3, 3, 3, 8, 8), VOLUME, True),
        ("equinox", "conv/weight", (8, 1, 3, 3, 3), OF_EQUINOX[0], False),
        ("equinox", "conv/weight", (7, 8, 16, 3, 3), OF_EQUINOX[1], False),
        ("equinox", "conv3d/weight", (8, 4, 9, 3, 3), OF_EQUINOX[0], True),
        ("equinox", "conv2d/weight", (7, 8, 3, 3, 3), OF_EQUINOX[1], True),
    ],
)
def test_five_axes_are_a_window_of_three_or_a_stack_and_rarely_for_certain(
    preset, path, shape, axes, certain
):
    assert _axes.read_leaf(keys(preset, path), jnp.zeros(shape), preset)[:2] == (
        ro.MatrixAxes(*axes),
        certain,
    )


def test_six_axes_are_stacked_convolutions_of_three_dimensions():
    axes = ro.MatrixAxes((1, 2, 3, 4), (5,), CHANNELS, (1, 2, 3))
    assert ro.kernel_axes("['conv']['kernel']", jnp.zeros([5, 3, 3, 3, 8, 8])) == axes


def test_a_neuron_of_a_convolution_of_three_dimensions_is_an_output():
    """The memory of a neuron is of all of its window; that of a stacked convolution would be of a part."""
    conv = nnx.Conv(2, 4, (3, 3, 3), rngs=nnx.Rngs(0))
    gradients = {"conv": {"kernel": jax.random.normal(jax.random.key(1), conv.kernel.shape)}}
    phi = ro.phi.per_neuron(decay=0.0)
    _, state = phi.update(gradients, phi.init(gradients))
    expected = np.mean(np.square(np.asarray(gradients["conv"]["kernel"], np.float64)), (0, 1, 2, 3))
    np.testing.assert_allclose(state.second_moment["conv"]["kernel"].ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize(("axes", "warned"), [("flax", True), ({"conv": "flax"}, False)])
def test_five_axes_are_told_of(axes, warned):
    params = {"conv": {"kernel": jnp.ones([3, 3, 3, 2, 4])}}
    tx = ro.riemannian_eigenbasis(0.1, axes=axes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.init(params)
    said = [str(one.message) for one in caught]
    assert any("inputs 3*3*3*2, outputs 4, by default" in one for one in said) == warned
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = str(ro.describe(tx, params))
    assert ("by default" in told) == warned
    assert "inputs 3*3*3*2, outputs 4" in told


# --- stacks of layers ---

DEPTH, WIDTH = 4, 8


class Linen(nn.Module):
    """One layer of each kind, which a scan or a vmap of Linen stacks."""

    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.Conv(WIDTH, (3,))(x)
        return x + nn.Dense(WIDTH)(x), None


class Stacked(nn.Module):
    """Layers stacked as Linen's users do it, under the names that Linen gives."""

    form: str

    @nn.compact
    def __call__(self, x):
        each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        layers = {
            "scan": lambda: nn.scan(Linen, length=DEPTH, **each),
            "scan of remat": lambda: nn.scan(nn.remat(Linen), length=DEPTH, **each),
            "remat of scan": lambda: nn.remat(nn.scan(Linen, length=DEPTH, **each)),
            "vmap": lambda: nn.vmap(Linen, axis_size=DEPTH, in_axes=(None, None), **each),
            "vmap of scan": lambda: nn.vmap(
                nn.scan(Linen, length=DEPTH, **each), axis_size=2, in_axes=(None, None), **each
            ),
        }[self.form]()
        return layers()(x, None)


@pytest.mark.parametrize("form", ["scan", "scan of remat", "remat of scan", "vmap", "vmap of scan"])
def test_layers_that_linen_stacks_are_updated_each_as_if_it_were_alone(form):
    """Without a warning, for Linen's own names say what the first axes are."""
    params = Stacked(form).init(jax.random.key(0), jnp.zeros([1, 5, WIDTH]))["params"]
    (block,) = params.values()
    stack = block["Dense_0"]["kernel"].shape[:-2]
    assert int(np.prod(stack)) == (2 * DEPTH if form == "vmap of scan" else DEPTH)

    def updates_of(params):
        tx = ro.in_eigenbasis(optax.scale_by_adam(), update_every=1)
        state, found = tx.init(params), []
        step = jax.jit(tx.update)
        for number in range(3):
            gradients = jax.tree.map(lambda w, number=number: jnp.cos(w * (1 + number)) * w, params)
            updates, state = step(gradients, state, params)
            found.append(updates)
        return found

    with warnings.catch_warnings(action="error"):
        together = updates_of(params)
        for place in np.ndindex(stack):
            alone = updates_of(jax.tree.map(lambda w, place=place: w[place], block))
            for found, expected in zip(together, alone, strict=True):
                (found,) = found.values()
                jax.tree.map(
                    lambda all_layers, one, place=place: np.testing.assert_allclose(
                        all_layers[place], one, rtol=1e-3, atol=1e-4
                    ),
                    found,
                    expected,
                )


@pytest.mark.parametrize("axes", [{"layers": "scanned"}, {"layers": {"conv": "scanned"}}])
def test_convolutions_that_nnx_stacks_are_asked_about_and_then_updated_one_by_one(axes):
    """NNX gives no name to a stack, and the window (4, 3) of such a kernel would be a rare one."""

    class Model(nnx.Module):
        def __init__(self):
            @nnx.split_rngs(splits=DEPTH)
            @nnx.vmap
            def make(rngs):
                return nnx.Dict(conv=nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs))

            self.layers = make(nnx.Rngs(0))

        def __call__(self, x):
            body = nnx.scan(
                lambda x, layer: jnp.tanh(layer["conv"](x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            return body(x, self.layers)

    model = Model()
    gradients = nnx.grad(lambda model: jnp.sum(model(jnp.linspace(0, 1, 5 * WIDTH).reshape(1, 5, -1)) ** 2))(
        model
    )
    params = nnx.state(model, nnx.Param)
    with pytest.warns(UserWarning, match=r"\['layers'\]\['conv'\]\['kernel'\].* by default"):
        ro.in_eigenbasis(optax.identity()).init(params)

    def updates_of(params, gradients, axes):
        tx = ro.in_eigenbasis(optax.scale_by_adam(), update_every=1, axes=axes)
        _, state = tx.update(gradients, tx.init(params), params)
        return jax.tree.leaves(tx.update(gradients, state, params)[0])

    with warnings.catch_warnings(action="error"):
        together = updates_of(params, gradients, axes)
        for layer in range(DEPTH):
            one, slope = (
                {"conv": jax.tree.map(lambda w, layer=layer: w[layer], tree["layers"]["conv"])}
                for tree in (nnx.to_pure_dict(params), nnx.to_pure_dict(gradients))
            )
            for found, expected in zip(together, updates_of(one, slope, "flax"), strict=True):
                np.testing.assert_allclose(found[layer], expected, rtol=1e-3, atol=1e-4)


OF_ONE, OF_TWO, MATRICES, DEEP = (
    ((1, 2), (3,), CHANNELS, (1,)),
    ((0, 1, 2), (3,), CHANNELS, (0, 1)),
    ((1,), (2,)),
    ((2,), (3,)),
)


@pytest.mark.parametrize(
    ("preset", "path", "shape", "axes", "certain"),
    [
        ("flax", "ScanBlock_0/Conv_0/kernel", (4, 3, 8, 8), OF_ONE, True),
        ("flax", "ScanCheckpointBlock_0/Conv_0/kernel", (4, 3, 8, 8), OF_ONE, True),
        ("flax", "ScanBlock_0/Conv_0/kernel", (12, 3, 3, 8, 8), STACK, True),
        (
            "flax",
            "ScanBlock_0/Conv_0/kernel",
            (12, 3, 3, 3, 8, 8),
            ((1, 2, 3, 4), (5,), CHANNELS, (1, 2, 3)),
            False,
        ),
        ("flax", "ScanBlock_0/Dense_0/kernel", (4, 8, 8), MATRICES, True),
        ("flax", "ScanBlock_0/VmapDense_0/kernel", (4, 3, 8, 8), DEEP, True),
        ("flax", "VmapScanBlock_0/Dense_0/kernel", (2, 4, 8, 8), DEEP, True),
        ("flax", "ScanBlock_0/blend/kernel", (4, 3, 8, 8), DEEP, False),  # perhaps a convolution
        ("flax", "Remat_scanBlock_0/Dense_0/kernel", (4, 8, 8), MATRICES, True),
        (
            "flax",
            "Remat_scanBlock_0/Dense_0/kernel",
            (5, 4, 8, 8),
            DEEP,
            False,
        ),  # it stacks any number of axes
        ("flax", "Remat_scanBlock_0/Conv_0/kernel", (4, 3, 8, 8), OF_ONE, False),
        ("haiku", "__layer_stack_no_per_layer/linear/w", (4, 8, 8), MATRICES, True),
        # Weights that all steps share: their windows have equal sides, or no axis is left for a stack.
        ("flax", "VmapNetwork_0/Conv_0/kernel", (3, 3, 8, 8), OF_TWO, False),
        ("flax", "ScanConvLSTMCell_0/hh/kernel", (3, 3, 8, 32), OF_TWO, False),
        ("flax", "VmapNetwork_0/Conv_0/kernel", (1, 1, 8, 8), OF_ONE, True),  # either way the same matrix
        ("flax", "ScanBlock_0/Conv_0/kernel", (3, 8, 8), ((0, 1), (2,), CHANNELS, (0,)), True),
        ("flax", "VmapNetwork_0/query/kernel", (64, 4, 16), ((0,), (1, 2)), True),
        # Dense layers that go by the names of attention's projections.
        ("flax", "ScanBlock_0/query/kernel", (12, 8, 8), MATRICES, True),
        ("flax", "ScanBlock_0/out/kernel", (2, 64, 64), MATRICES, True),
        ("flax", "ScanBlock_0/attention/query/kernel", (3, 16, 4, 4), ((1,), (2, 3)), True),
        # The preset takes the axis of the scan; the name does not take one more.
        ("scanned", "ScanBlock_0/Conv_0/kernel", (4, 3, 3, 8, 8), STACK, True),
        ("scanned", "ScanBlock_0/Conv_0/kernel", (4, 3, 8, 8), OF_ONE, True),
        ("scanned", "ScanBlock_0/VmapDense_0/kernel", (4, 3, 8, 8), DEEP, True),
        # Without a name from Linen: sides of a window that differ, and are no 1, may be a stack.
        ("flax", "layers/conv/kernel", (4, 3, 8, 8), OF_TWO, False),
        ("flax", "conv/kernel", (3, 5, 8, 8), OF_TWO, False),
        ("flax", "conv2d/kernel", (3, 5, 8, 8), OF_TWO, True),
        ("flax", "conv/kernel", (1, 7, 8, 8), OF_TWO, True),
        ("flax", "conv/kernel", (3, 3, 8, 8), OF_TWO, True),
        ("flax", "Scanner_0/conv/kernel", (3, 3, 8, 8), OF_TWO, True),
        ("equinox", "conv/weight", (7, 8, 16, 3), ((1, 2, 3), (0,), CHANNELS, (2, 3)), False),
    ],
)
def test_names_of_linen_say_which_axes_are_stacked(preset, path, shape, axes, certain):
    assert _axes.read_leaf(keys(preset, path), jnp.zeros(shape), preset)[:2] == (
        ro.MatrixAxes(*axes),
        certain,
    )


# --- what a function may answer ---


@pytest.mark.parametrize(
    "where", [lambda choose: choose, lambda choose: {"blocks": choose}], ids=["alone", "named"]
)
@pytest.mark.parametrize("preset", _axes.PRESETS)
def test_a_function_may_answer_with_the_name_of_a_preset(preset, where):
    params = {"blocks": {"kernel": jnp.ones([3, 4, 5]), "bias": jnp.ones([3, 5])}}
    heard = []

    def choose(name, leaf):
        heard.append((name, leaf.shape))
        return preset

    assert _axes.read(params, where(choose)) == _axes.read(params, preset)
    assert heard == [("['blocks']['bias']", (3, 5)), ("['blocks']['kernel']", (3, 4, 5))]
    ro.riemannian_adamw(0.003, axes=where(choose)).init(params)


@pytest.mark.parametrize(
    ("choose", "warned"),
    [
        (lambda name, leaf: "scanned", False),
        (lambda name, leaf: "convolution", False),
        (lambda name, leaf: "flax", True),  # it has decided nothing
        ({"blocks": lambda name, leaf: "flax"}, False),  # who names the module has
    ],
)
def test_the_answer_of_a_function_counts_as_the_preset_does(choose, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ro.riemannian_eigenbasis(0.003, axes=choose).init({"blocks": {"kernel": jnp.ones([3, 4, 5])}})
    assert bool(caught) == warned


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (((1,), (2,)), r"\(\(1,\), \(2,\)\)"),
        ("torch", "'torch'"),
        ({"kernel": "flax"}, r"\{'kernel': 'flax'\}"),
        (ro.MatrixAxes(1, 2), r"MatrixAxes\(inputs=1, outputs=2"),
        (ro.MatrixAxes((0, 1), (2,), window=0), r"MatrixAxes\(inputs=\(0, 1\)"),
        (ro.MatrixAxes(("in",), (2,)), r"MatrixAxes\(inputs=\('in',\)"),
        (3, "3"),
    ],
)
@pytest.mark.parametrize("make", [ro.riemannian_adamw, ro.riemannian_eigenbasis, ro.soap])
def test_another_answer_is_refused_with_the_name_of_the_leaf(make, answer, got):
    params = {"blocks": {"kernel": jnp.ones([3, 4, 5])}}
    message = (
        r"^axes of leaf \['blocks'\]\['kernel'\] must be one of 'flax', 'equinox', .*None for single "
        r"weights, or ro\.MatrixAxes of two tuples, such as ro\.MatrixAxes\(\(0,\), \(1,\)\), got "
    )
    with pytest.raises(ValueError, match=message + got):
        make(0.003, axes=lambda name, leaf: answer).init(params)


def test_lists_of_axes_are_tuples():
    found = _axes.read({"w": jnp.ones([3, 4, 5])}, ro.MatrixAxes([0, 1], [2], window=[0]))
    assert found == [ro.MatrixAxes((0, 1), (2,), window=(0,))]

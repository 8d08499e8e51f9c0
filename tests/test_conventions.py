"""Arrays of five axes and more: convolutions of three dimensions, and stacks of those of two."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax import _axes

CHANNELS = False  # rows are not looked up
VOLUME, STACK = ((0, 1, 2, 3), (4,), CHANNELS, (0, 1, 2)), ((1, 2, 3), (4,), CHANNELS, (1, 2))
OF_EQUINOX = ((1, 2, 3, 4), (0,), CHANNELS, (2, 3, 4)), ((2, 3, 4), (1,), CHANNELS, (3, 4))


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
    keys = tuple(map(jax.tree_util.DictKey, path.rsplit("/", 1)))
    if preset != "haiku":
        keys = tuple(map(jax.tree_util.DictKey, path.split("/")))
    assert _axes.read_leaf(keys, jnp.zeros(shape), preset) == (ro.MatrixAxes(*axes), certain)


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

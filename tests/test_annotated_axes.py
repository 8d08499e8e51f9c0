"""annotated_axes: real Linen and NNX models against axes that were written by hand."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import riemann_optax as ro
from riemann_optax import MatrixAxes

EMBED, HEADS, SIZE, MLP, VOCAB, LAYERS = 8, 2, 4, 12, 11, 3
PROJECTION, BACK = ("embed", "heads", "kv"), ("heads", "kv", "embed")


def normal(*names):
    return nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        attention = nn.MultiHeadDotProductAttention(
            HEADS, kernel_init=normal(*PROJECTION), out_kernel_init=normal(*BACK), name="attention"
        )
        x = attention(x, x)
        x = nn.Dense(MLP, kernel_init=normal("embed", "mlp"), name="up")(x)
        return nn.Dense(EMBED, kernel_init=normal("mlp", "embed"), name="down")(x), None


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, EMBED, embedding_init=normal("vocab", "embed"), name="words")(tokens)
        x = nn.Conv(EMBED, (3,), kernel_init=normal("window", "conv_in", "conv_out"), name="mixing")(x)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 1},  # as MaxText stacks layers
            split_rngs={"params": True},
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(name="layers")(x, None)
        return nn.Dense(VOCAB, kernel_init=normal("embed", "vocab"), name="logits")(x)


BY_HAND = {
    "words": {"embedding": MatrixAxes((0,), (1,), lookup=True)},
    "mixing": {"kernel": MatrixAxes((0, 1), (2,), window=(0,))},
    "layers": {
        "attention": {
            "query": {"kernel": MatrixAxes((0,), (2, 3))},
            "key": {"kernel": MatrixAxes((0,), (2, 3))},
            "value": {"kernel": MatrixAxes((0,), (2, 3))},
            "out": {"kernel": MatrixAxes((0, 2), (3,))},
        },
        "up": {"kernel": MatrixAxes((0,), (2,))},
        "down": {"kernel": MatrixAxes((0,), (2,))},
    },
    "logits": {"kernel": MatrixAxes((0,), (1,))},
}


@pytest.fixture(scope="module")
def boxed():
    return jax.eval_shape(Linen().init, jax.random.key(0), jnp.zeros([2, 5], jnp.int32))["params"]


def test_a_linen_model_is_read_as_by_hand(boxed):
    assert ro.annotated_axes(boxed) == BY_HAND
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), boxed)
    assert ro.annotated_axes(arrays) == BY_HAND
    assert ro.annotated_axes({"params": boxed}) == {"params": BY_HAND}


def test_the_optimiser_walks_as_with_axes_by_hand_and_is_in_no_doubt(boxed):
    """Layers are stacked on the second axis: name and shape alone would read other matrices."""
    boxed = {"layers": {name: boxed["layers"][name] for name in ("up", "attention")}}
    boxed["layers"]["attention"] = {"out": boxed["layers"]["attention"]["out"]}
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), nn.meta.unbox(boxed))

    def one_step(axes):
        tx = ro.in_eigenbasis(optax.scale_by_adam(), axes=axes)
        return jax.jit(lambda x: tx.update(x, tx.init(x))[0])(params)["layers"]

    def by_hand(name, leaf):
        if leaf.ndim < 3:
            return MatrixAxes((0,), ())
        return MatrixAxes((0, 2), (3,)) if "out" in name else MatrixAxes((0,), (2,))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = one_step(ro.annotated_axes(boxed))
    expected = one_step(by_hand)
    jax.tree.map(np.testing.assert_array_equal, found["attention"], expected["attention"])
    np.testing.assert_array_equal(found["up"]["kernel"], expected["up"]["kernel"])
    assert np.abs(one_step("flax")["up"]["kernel"] - expected["up"]["kernel"]).max() > 1e-2


class Nnx(nnx.Module):
    def __init__(self, rngs):
        def init(*names):
            return nnx.with_partitioning(nnx.initializers.lecun_normal(), names, eager_sharding=False)

        zeros = nnx.with_partitioning(nnx.initializers.zeros_init(), ("heads", "kv"), eager_sharding=False)
        self.words = nnx.Embed(VOCAB, EMBED, embedding_init=init("vocab", "embed"), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS,
            EMBED,
            kernel_init=init(*PROJECTION),
            out_kernel_init=init(*BACK),
            bias_init=zeros,
            out_bias_init=nnx.initializers.zeros_init(),
            decode=False,
            rngs=rngs,
        )

        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stacked(key):
            return nnx.Linear(EMBED, MLP, kernel_init=init("embed", "mlp"), rngs=nnx.Rngs(key))

        self.layers = stacked(jax.random.split(jax.random.key(0), LAYERS))


def test_an_nnx_model_is_read_as_by_hand():
    model = nnx.eval_shape(lambda: Nnx(nnx.Rngs(0)))
    axes = ro.annotated_axes(nnx.state(model, nnx.Param))
    projection = {"kernel": MatrixAxes((0,), (1, 2)), "bias": MatrixAxes((0, 1), ())}
    assert axes == {
        "words": {"embedding": MatrixAxes((0,), (1,), lookup=True)},
        "attention": {
            **dict.fromkeys(("query", "key", "value"), projection),
            "out": {"kernel": MatrixAxes((0, 1), (2,))},
        },
        "layers": {"kernel": MatrixAxes((1,), (2,))},
    }


def test_an_nnx_model_is_trained():
    init = nnx.with_partitioning(nnx.initializers.ones_init(), ("embed", "heads", "kv"), eager_sharding=False)
    model = nnx.LinearGeneral(4, (2, 3), kernel_init=init, rngs=nnx.Rngs(0))
    tx = ro.in_eigenbasis(optax.sgd(0.1), axes=ro.annotated_axes(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    before = model.kernel[...]
    gradients = nnx.grad(lambda model: jnp.sum(model(jnp.arange(8.0).reshape(2, 4)) ** 2) / 1e3)(model)
    optimizer.update(model, gradients)
    expected = before - 0.1 * gradients.kernel[...]  # gradient descent is the same in every basis
    np.testing.assert_allclose(model.kernel[...], expected, rtol=1e-5)
    assert optimizer.opt_state.left_bases.kernel[...].shape == (1, 4, 4)
    assert optimizer.opt_state.right_bases.kernel[...].shape == (1, 6, 6)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("embed", "mlp"), ((0,), (1,))),
        (("embed", "layers", "num_heads", "kv"), ((0,), (2, 3))),
        (("stage", "layers", "heads", "kv", "embed"), ((2, 3), (4,))),
        (("experts", "embed", "mlp"), ((1,), (2,))),
        (("embed", "experts"), ((0,), (1,))),  # a router
        (("height", "width", "in", "out"), ((0, 1, 2), (3,), False, (0, 1))),
        (("window", "embed"), ((0,), (1,), False, (0,))),  # one filter for each channel
        (("embed", "embed"), ((0,), (1,))),
        (("vocab", "embed"), ((0,), (1,), True)),
        (("layers", "vocab", "embed"), ((1,), (2,), True)),
        (("heads", "relpos_buckets"), ((0,), (1,))),
        (("embed", "qkv", "heads", "kv"), ((0,), (1, 2, 3))),
        (("norm", "layers"), ((0,), ())),
        (("layers",), ((), ())),
        (("embed", "layers", None), ((0,), (2,))),
        ((("fsdp", "tensor"), "model"), ((0,), (1,))),
        (("embed", None, None), None),  # which of both is on which side it does not say
    ],
)
def test_what_names_mean(names, expected):
    shape = jax.ShapeDtypeStruct([3 + axis for axis in range(len(names))], jnp.float32)
    box = nn.Partitioned(shape, names=names)
    more = {"num_heads": "heads", ("fsdp", "tensor"): None, "model": None}
    found = ro.annotated_axes({"kernel": box}, more)
    assert found == ({} if expected is None else {"kernel": MatrixAxes(*expected)})


def test_a_bias_that_says_nothing_is_read_by_its_name():
    box = nn.Partitioned(jnp.zeros([3, 4]), names=(None, "mlp"))
    assert ro.annotated_axes({"bias": box, "kernel": box}) == {"kernel": MatrixAxes((0,), (1,))}


def test_one_array_gives_its_axes():
    box = nn.Partitioned(jnp.zeros([2, 3, 4]), names=PROJECTION)
    assert ro.annotated_axes(box) == MatrixAxes((0,), (1, 2))


def refusal(names, shape=(4, 4), path=("dense", "kernel"), box=nn.Partitioned):
    tree = box(jnp.zeros(shape), names=names)
    for name in reversed(path):
        tree = {name: tree}
    with pytest.raises(ValueError, match=r"^annotated_axes: ") as error:
        ro.annotated_axes(tree)
    return str(error.value)


def test_errors_name_the_array_and_the_remedy():
    unknown = refusal(("embed", "model"))
    assert "['dense']['kernel']" in unknown
    assert "names={'model': ...}" in unknown
    assert "nnx.PARTITION_NAME" in refusal(("embed", "mlp"), shape=(3, 4, 4))
    assert "3 sides" in refusal(("embed", "mlp", "norm"), shape=(2, 3, 4))
    with pytest.raises(ValueError, match=r"no array of params has names.*before nn.meta.unbox"):
        ro.annotated_axes({"kernel": jnp.zeros([2, 3])})


def test_one_initialiser_for_all_projections_names_the_last_wrongly():
    """Flax's attention takes kernel_init for its output too, where the axes have another order."""
    model = nn.MultiHeadDotProductAttention(HEADS, kernel_init=normal(*PROJECTION))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 3, EMBED]))["params"]
    with pytest.raises(ValueError, match=r"\['out'\]\['kernel'\].*out_kernel_init"):
        ro.annotated_axes(params)

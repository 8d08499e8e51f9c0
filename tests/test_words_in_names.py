"""Names are read word by word: a word inside of another one says nothing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import riemann_optax as ro
from riemann_optax import _axes

from .test_conventions import CHANNELS, MATRICES, OF_ONE, OF_TWO, keys

VECTOR, TRANSPOSED, ROWS = ((1,), ()), ((1,), (0,)), ((0,), (1,), True)


def test_a_model_of_equinox_is_read_as_by_hand():
    class Vision(eqx.Module):
        patch_embed: eqx.nn.Conv2d
        pos_embed: jax.Array
        token_embed: eqx.nn.Embedding
        time_linear_embed: eqx.nn.Linear
        norm1: eqx.nn.LayerNorm
        normal_head: eqx.nn.Linear
        unembed: eqx.nn.Linear

    random = iter(jax.random.split(jax.random.key(0), 5))
    model = Vision(
        patch_embed=eqx.nn.Conv2d(3, 64, 4, stride=4, key=next(random)),
        pos_embed=jnp.zeros([49, 64]),
        token_embed=eqx.nn.Embedding(11, 64, key=next(random)),
        time_linear_embed=eqx.nn.Linear(3, 64, key=next(random)),
        norm1=eqx.nn.LayerNorm(64),
        normal_head=eqx.nn.Linear(64, 3, key=next(random)),
        unembed=eqx.nn.Linear(64, 11, key=next(random)),
    )
    params = eqx.filter(model, eqx.is_inexact_array)
    found = dict(
        zip(map(jax.tree_util.keystr, _axes.leaf_paths(params)), _axes.read(params, "equinox"), strict=True)
    )
    matrices = {name: axes for name, axes in found.items() if axes.outputs}
    assert matrices == {
        ".patch_embed.weight": ro.MatrixAxes((1, 2, 3), (0,), window=(2, 3)),
        ".pos_embed": ro.MatrixAxes((0,), (1,), lookup=True),
        ".token_embed.weight": ro.MatrixAxes((0,), (1,), lookup=True),
        ".time_linear_embed.weight": ro.MatrixAxes((1,), (0,)),
        ".normal_head.weight": ro.MatrixAxes((1,), (0,)),
        ".unembed.weight": ro.MatrixAxes((1,), (0,)),
    }
    assert set(found) - set(matrices) == {
        *(f".{name}.bias" for name in ("patch_embed", "time_linear_embed", "normal_head", "unembed")),
        ".norm1.weight",
        ".norm1.bias",
    }


def test_a_stack_of_tables_of_equinox_is_a_stack_of_tables():
    make = eqx.filter_vmap(lambda key: eqx.nn.Embedding(11, 8, key=key))
    params = {"token_embed": make(jax.random.split(jax.random.key(0), 3))}
    assert _axes.read(params, "equinox") == [ro.MatrixAxes((1,), (2,), lookup=True)]


NORMS = (
    *("norm", "norm1", "norm_2", "norms", "layernorm", "layer_norm", "LayerNorm_0", "RMSNorm", "rms_norm"),
    *(
        "group_norm",
        "BatchNorm2d",
        "batchnorm2d",
        "final_norm",
        "norm_f",
        "norm_out",
        "norm_layer",
        "prenorm",
    ),
    *("q_norm", "mlp_norm", "head_norm", "embed_norm", "norm_mlp", "layer_normalization", "normalisation"),
)
TABLES = (
    *(
        "embed",
        "embedding",
        "embeddings",
        "token_embed",
        "tokenEmbedding",
        "embed_tokens",
        "embedder",
        "wordembed",
    ),
    *("embed_1", "pos_embed", "embedding_table", "embed_in", "InputEmbedding"),
)
MATRIX = (
    *("normal_head", "normals", "abnormal", "normalizing_flow", "norm_head", "norm_linear", "norm_proj"),
    *(
        "patch_embed",
        "patch_embedding",
        "unembed",
        "unembedding",
        "embed_proj",
        "embed_linear",
        "linear_embed",
    ),
    *("embedded", "disembodied", "enormous", "normed", "converter"),
)


@pytest.mark.parametrize(
    ("names", "axes"),
    [(NORMS, VECTOR), (TABLES, ROWS), (MATRIX, TRANSPOSED)],
    ids=["norm", "table", "matrix"],
)
def test_words_in_the_names_of_equinox(names, axes):
    found = {name: _axes.read({name: {"weight": jnp.zeros([7, 5])}}, "equinox")[0] for name in names}
    assert found == dict.fromkeys(names, ro.MatrixAxes(*axes))


@pytest.mark.parametrize(
    ("preset", "path", "shape", "axes", "certain"),
    [
        ("equinox", "patch_embed/weight", (64, 3, 4, 4), ((1, 2, 3), (0,), CHANNELS, (2, 3)), False),
        ("equinox", "token_embed/weight", (3, 11, 8), ((1,), (2,), True), False),
        ("equinox", "pos_embed", (1, 49, 8), ((1,), (2,), True), True),
        ("equinox", "converter/weight", (7, 5, 3), ((2,), (1,)), False),
        ("flax", "conversation/kernel", (7, 5, 3), MATRICES, False),
        ("flax", "convex/kernel", (3, 3, 5, 8), OF_TWO, False),
        ("flax", "conv2_down/kernel", (4, 5, 8), ((0, 1), (2,), CHANNELS, (0,)), True),
        ("flax", "conv1_dw/kernel", (3, 3, 5, 8), OF_TWO, True),
        ("flax", "Conv1DTranspose_0/kernel", (4, 3, 8, 8), OF_ONE, True),
        ("flax", "deconv2d/kernel", (3, 4, 8, 8), OF_TWO, True),
        ("haiku", "net/~/conv2_d_transpose/w", (3, 4, 8, 8), OF_TWO, True),
        ("flax", "ConvTranspose_0/kernel", (3, 3, 8, 8), OF_TWO, True),
        ("flax", "ConvExpand_0/kernel", (3, 3, 8, 8), OF_TWO, True),
        ("flax", "dwconv/kernel", (3, 3, 1, 8), OF_TWO, True),
        ("flax", "convolution_1/kernel", (3, 8, 8), ((0, 1), (2,), CHANNELS, (0,)), True),
        ("flax", "amoeba/conv/kernel", (3, 3, 8, 8), OF_TWO, True),
        ("flax", "expertise/conv/kernel", (3, 3, 8, 8), OF_TWO, True),
        ("flax", "SparseMoE_0/wi", (4, 5, 8), MATRICES, True),
        ("flax", "unembedding", (8, 100), ((0,), (1,)), True),
        ("flax", "patch_embedding", (4, 4, 3, 8), OF_TWO, False),
        ("flax", "tokenEmbeddings", (100, 8), ROWS, True),
    ],
)
def test_a_word_inside_of_another_word_says_nothing(preset, path, shape, axes, certain):
    assert _axes.read_leaf(keys(preset, path), jnp.zeros(shape), preset)[:2] == (
        ro.MatrixAxes(*axes),
        certain,
    )

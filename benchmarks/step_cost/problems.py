"""The trees of parameters that the cost of an update is measured on."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = dict[str, Any]


def matrix(size: int = 4096) -> Tree:
    """Return one large matrix: 16.8 million weights, far more than any cache holds."""
    return {"kernel": jax.ShapeDtypeStruct((size, size), jnp.float32)}


def transformer(layers: int = 4, width: int = 512, vocabulary: int = 256) -> Tree:
    """Return the tree of a decoder-only Transformer, 12.7 million weights by default."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def norm() -> Tree:
        return {"scale": array(width), "bias": array(width)}

    def dense(fan_in: int, fan_out: int) -> Tree:
        return {"kernel": array(fan_in, fan_out), "bias": array(fan_out)}

    def block() -> Tree:
        return {
            "norm_1": norm(),
            "query_key_value": dense(width, 3 * width),
            "output": dense(width, width),
            "norm_2": norm(),
            "up": dense(width, 4 * width),
            "down": dense(4 * width, width),
        }

    return {
        "embedding": array(vocabulary, width),
        **{f"block_{i}": block() for i in range(layers)},
        "norm": norm(),
    }


def small_leaves(count: int = 800) -> Tree:
    """Return many small leaves, half matrices and half vectors: here it is calls, not bytes, that cost."""
    shapes = [(16, 16), (16,)]
    return {f"leaf_{i:03d}": jax.ShapeDtypeStruct(shapes[i % 2], jnp.float32) for i in range(count)}


PROBLEMS = {"matrix": matrix, "transformer": transformer, "small_leaves": small_leaves}


def size(tree: Tree) -> int:
    """Return the number of weights of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def values(tree: Tree, scale: float, seed: int) -> Tree:
    """Return normal numbers in the shapes of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    arrays = [
        scale * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, arrays)

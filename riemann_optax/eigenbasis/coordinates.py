"""Which arrays of an inner state hold coordinates, and how each of them changes with a basis."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Fields of Optax's states and of ours that are linear in gradients or weights.
VECTORS = frozenset(
    {
        "acc_grads",
        "copies",
        "ema",
        "grad",
        "m",
        "momentum",
        "mu",
        "previous_gradients",
        "previous_params",
        "start_params",
        "trace",
        "updates",
        "weights",
        "window_params",
        "z",
    }
)


class Average(NamedTuple):
    """An array of the inner state that changes with the basis of a leaf.

    Attributes:
      position: its number among the arrays of the state.
      vector: whether it is linear in the gradient or the weights.
    """

    position: int
    vector: bool


def find(state: optax.OptState, params: Any, vectors: Collection[str]) -> list[list[Average]]:
    """Return, for each leaf of ``params``, the arrays of a state that hold its coordinates.

    These are the arrays in each part of the state that has the structure of ``params`` (parts may be masked),
    where they have the shape of the leaf; further axes in front, and axes reduced to 1, are allowed.
    """
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_masked)
    found: list[list[Average]] = [[] for leaf in leaves if not _is_masked(leaf)]

    def like_params(tree: Any) -> bool:
        own: Any = jax.tree.structure(tree, is_leaf=_is_masked)
        return bool(own == structure)

    position = 0
    for path, part in jax.tree_util.tree_leaves_with_path(state, is_leaf=like_params):
        if not like_params(part):
            position += 1
            continue
        names = [entry.name for entry in path if isinstance(entry, jax.tree_util.GetAttrKey)]
        number = -1
        for leaf, array in zip(leaves, jax.tree.leaves(part, is_leaf=_is_masked), strict=True):
            number += not _is_masked(leaf)
            if _is_masked(array):
                continue
            if not _is_masked(leaf) and _holds_coordinates(array, leaf.shape):
                found[number].append(Average(position, bool(names) and names[-1] in vectors))
            position += 1
    return found


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _holds_coordinates(array: Any, shape: tuple[int, ...]) -> bool:
    last = array.shape[len(array.shape) - len(shape) :] if len(array.shape) >= len(shape) else None
    return (
        last is not None
        and jnp.issubdtype(array.dtype, jnp.inexact)
        and all(a in (1, s) for a, s in zip(last, shape, strict=True))
    )

"""Weights in boxes, as Flax hands them over: each box knows the placement of one weight.

A box is rebuilt around whatever is put into it, with its annotation. So what is in the box of a weight must
have the shape of that weight, or the annotation does not fit and the state cannot be placed.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from . import problem

SHAPES = {"kernel": (2, 3), "bias": (3,)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    """What a library for large models puts around a weight."""

    value: jax.Array
    name: str = dataclasses.field(metadata={"static": True})


def is_box(node):
    return isinstance(node, Box)


def boxed(tree):
    return {name: Box(leaf, name) for name, leaf in tree.items()}


def unboxed(tree):
    return jax.tree.map(lambda node: node.value if is_box(node) else node, tree, is_leaf=is_box)


@pytest.fixture
def extra_args(entry):
    return entry.extra_args(lambda params: problem.loss(unboxed(params)))


def assert_annotations_fit(state):
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_box):
        if is_box(node):
            for leaf in jax.tree.leaves(node):
                assert leaf.shape == SHAPES[node.name], jax.tree_util.keystr(path)


def test_what_is_in_a_box_has_the_shape_of_its_weight(entry, extra_args):
    """In the first state and in the one after an update, which are of one structure."""
    tx = entry.build()
    params = boxed(problem.params())
    state = tx.init(params)
    assert_annotations_fit(state)
    updates, new_state = jax.eval_shape(
        lambda g, s, p: tx.update(g, s, p, **extra_args), params, state, params
    )
    assert problem.types(updates) == problem.types(params)
    assert problem.types(new_state) == problem.types(state)


def test_boxes_change_no_number(entry, extra_args):
    tx = entry.build()
    params = problem.params()
    gradients = problem.gradients(params)
    expected, _ = problem.updater(entry, tx)(gradients, tx.init(params), params)
    tx, inside = entry.build(), boxed(params)
    update = problem.jitted(tx, extra_args) if entry.loops else lambda *a: tx.update(*a, **extra_args)
    updates, _ = update(boxed(gradients), tx.init(inside), inside)
    chex.assert_trees_all_close(unboxed(updates), expected, rtol=1e-6, atol=1e-9)


def test_a_factored_state_would_fail_in_the_boxes():
    """The check itself: row means rebuilt by a tree map stand in the boxes of their weights."""
    means = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=-1), boxed(problem.params()))
    with pytest.raises(AssertionError, match="bias"):
        assert_annotations_fit(means)

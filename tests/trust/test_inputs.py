"""Whatever the tree of parameters looks like, what comes out has its structure, shapes and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.contract.registry import ENTRIES
from tests.trust import trees

OPTIONS = {
    "max_examples": trees.EXAMPLES,
    "deadline": None,
    "database": None,
    "derandomize": trees.EXAMPLES < 100,
    "suppress_health_check": list(HealthCheck),
}


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def loss(params):
    """Real, of every leaf."""
    terms = (jnp.abs(leaf - leaf.dtype.type(0.3)) ** 2 for leaf in jax.tree.leaves(params))
    return sum((jnp.sum(term).astype(jnp.float32) for term in terms), start=jnp.zeros([], jnp.float32))


@pytest.mark.parametrize("name", ENTRIES)
def test_structure_and_types_are_kept(name):
    """By abstract evaluation, so that thousands of trees can be tried."""
    entry = ENTRIES[name]

    @settings(**OPTIONS)
    @given(trees.trees(complex_too=not entry.real_only))
    def check(tree):
        with jax.enable_x64(True):
            tx = entry.build()
            params = trees.make(tree, values=False)
            state = jax.eval_shape(tx.init, params)
            updates, new_state = jax.eval_shape(
                lambda g, s, p: tx.update(g, s, p, **entry.extra_args(loss)), params, state, params
            )
            assert types(updates) == types(params)
            assert types(new_state) == types(state)

    check()


@pytest.mark.parametrize("name", ENTRIES)
def test_leaves_of_integers_are_refused_by_name(name):
    params = {"layer": {"kernel": jnp.ones(3), "steps": jnp.arange(3)}}
    with pytest.raises(TypeError, match=r"\['layer'\]\['steps'\].*int"):
        ENTRIES[name].build().init(params)


def test_the_trees_are_of_every_kind():
    """The strategy itself: within a few hundred trees it has made whatever the issue of trust asks for."""
    seen = set()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(trees.trees(complex_too=True))
    def collect(tree):
        for leaf in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, trees.Leaf)):
            seen.update([leaf.shape, jnp.dtype(leaf.dtype)])
        seen.update(type(node) for node in jax.tree.leaves(tree, is_leaf=lambda _: True))
        with jax.enable_x64(True):
            arrays = jax.tree.leaves(trees.make(tree))
        assert all(np.all(np.isfinite(leaf)) for leaf in arrays)

    collect()
    assert seen >= {*trees.SHAPES, *map(jnp.dtype, trees.REAL + trees.COMPLEX), dict, list, tuple, trees.Pair}

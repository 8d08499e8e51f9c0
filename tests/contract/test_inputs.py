"""Whatever the tree of parameters looks like, what comes out has its structure, shapes and dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings

from tests.contract import trees
from tests.contract.registry import ENTRIES

# Those of which values are compared where there is no time for all: one of each kind of state.
FEW = [
    "phi.activity:squared",
    "phi.factored_activity",
    "phi.rwalk",
    "riemannian_sgd",
    "compute_metric:conformal leaf",
]
LONG = trees.EXAMPLES >= 100
# What costs more is tried on fewer trees.
TRACED, RUN = max(trees.EXAMPLES // 10, 1), max(trees.EXAMPLES // 100, 1)


def on_trees(count, **kinds):
    """Give a function ``count`` trees, the same ones at every run unless there are many."""

    def decorate(check):
        options = settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=not LONG,
            suppress_health_check=list(HealthCheck),
        )
        return options(given(trees.trees(**kinds))(check))

    return decorate


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def loss(params):
    """Real, of every leaf."""
    terms = (jnp.abs(leaf - leaf.dtype.type(0.3)) ** 2 for leaf in jax.tree.leaves(params))
    return sum((jnp.sum(term).astype(jnp.float32) for term in terms), start=jnp.zeros([], jnp.float32))


def stacked(tree, *sizes):
    """Put axes in front of abstract leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*sizes, *leaf.shape), leaf.dtype), tree)


def train(entry, params, gradients):
    """Take two steps in a scan, each of them under a condition, for two trees side by side."""
    tx = entry.build()

    def one(params, gradients):
        def step(state, take):
            def update(state):
                return tx.update(gradients, state, params, **entry.extra_args(loss))

            def skip(state):
                return jax.tree.map(jnp.zeros_like, params), state

            updates, state = jax.lax.cond(take, update, skip, state)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(params), jnp.array([True, False]))
        return updates, state

    return jax.vmap(one, axis_size=2)(params, gradients)


@pytest.mark.parametrize("name", ENTRIES)
def test_structure_and_types_are_kept(name, tally):
    """By abstract evaluation, so that thousands of trees can be tried."""
    entry = ENTRIES[name]

    @on_trees(trees.EXAMPLES, complex_too=not entry.real_only)
    def check(tree):
        tally["trees"] += 1
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
def test_types_are_kept_in_scan_cond_and_vmap(name, tally):
    entry = ENTRIES[name]

    @on_trees(TRACED, complex_too=not entry.real_only)
    def check(tree):
        tally["traced"] += 1
        with jax.enable_x64(True):
            params = trees.make(tree, values=False)
            state = jax.eval_shape(entry.build().init, params)
            pair = stacked(params, 2)
            updates, new_state = jax.eval_shape(functools.partial(train, entry), pair, pair)
            assert types(updates) == types(stacked(params, 2, 2))
            assert types(new_state) == types(stacked(state, 2))

    check()


@pytest.mark.parametrize("name", ENTRIES if LONG else FEW)
def test_compiled_once_with_donated_buffers_equals_eager(name, tally):
    entry = ENTRIES[name]

    @on_trees(RUN, complex_too=not entry.real_only)
    def check(tree):
        tally["run"] += 1
        with jax.enable_x64(True):
            tx, extra_args = entry.build(), entry.extra_args(loss)
            params = trees.make(tree)
            eager, compiled = tx.init(params), tx.init(params)  # two, since one is donated
            traces = []

            @functools.partial(jax.jit, donate_argnums=(0, 1))
            def update(gradients, state, params):
                traces.append(None)
                return tx.update(gradients, state, params, **extra_args)

            for scale in (1, 3):
                gradients = jax.tree.map(lambda leaf, scale=scale: leaf / leaf.dtype.type(scale), params)
                expected, eager = tx.update(gradients, eager, params, **extra_args)
                updates, compiled = update(gradients, compiled, params)
                close(updates, expected)
            assert len(traces) == 1

    check()


def close(actual, expected):
    """Compare to some last places of the narrowest dtype, on the scale of each leaf.

    Half precision rounds each step of a formula, and a compiler leaves some of these roundings out; where a
    norm is that of all leaves, one narrow leaf decides the digits of the others.
    """
    precision = 50 * max(
        (float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(expected)), default=0.0
    )

    def compare(actual, expected):
        wide = np.complex128 if jnp.iscomplexobj(expected) else np.float64
        actual, expected = np.asarray(actual, wide), np.asarray(expected, wide)
        scale = np.max(np.abs(expected), initial=0.0)
        np.testing.assert_allclose(actual, expected, rtol=precision, atol=precision * scale)

    jax.tree.map(compare, actual, expected)


@pytest.mark.parametrize("name", ENTRIES)
def test_leaves_of_integers_are_refused_by_name(name):
    params = {"layer": {"kernel": jnp.ones(3), "steps": jnp.arange(3)}}
    with pytest.raises(TypeError, match=r"\['layer'\]\['steps'\].*int"):
        ENTRIES[name].build().init(params)


@pytest.mark.parametrize("name", ENTRIES)
def test_frozen_integers_stay_as_they_are(name):
    """Under ``optax.masked``: their updates keep their type, and the state knows nothing of them."""
    entry = ENTRIES[name]
    params = {"layer": {"kernel": jnp.ones(3), "steps": jnp.arange(3)}}
    mask = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact), params)
    tx = optax.masked(entry.build(), mask)
    state = jax.eval_shape(tx.init, params)
    updates, new_state = jax.eval_shape(
        lambda g, s, p: tx.update(g, s, p, **entry.extra_args(loss_of_floats)), params, state, params
    )
    assert types(updates) == types(params)
    assert types(new_state) == types(state)


def loss_of_floats(params):
    floats = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return loss(floats)


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
    assert seen >= {
        *trees.SHAPES,
        *map(jnp.dtype, trees.REAL + trees.COMPLEX),
        dict,
        list,
        tuple,
        trees.Pair,
        trees.Module,
    }


# Those that take means over the axes of a leaf.
REDUCING = [
    name for name, entry in ENTRIES.items() if entry.reduces_state or "neuron" in name or "leaf" in name
]


@pytest.mark.parametrize("name", REDUCING)
def test_a_leaf_without_elements_makes_no_nan(name):
    """As with ``optax.adamw``; ``jax_debug_nans`` raises an error where one is made, if only for a moment."""
    entry = ENTRIES[name]
    params = {"none": jnp.zeros((0, 3)), "nothing": jnp.zeros(0), "some": jnp.ones((3, 2))}
    tx = entry.build()
    with jax.debug_nans(True):
        state, update = tx.init(params), jax.jit(functools.partial(tx.update, **entry.extra_args(loss)))
        for _ in range(2):
            updates, state = update(params, state, params)
    for leaf in jax.tree.leaves((updates, state)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert not np.any(np.isnan(leaf))

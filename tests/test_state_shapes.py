"""The shapes of state follow from how axes are read: of layers, heads, tables, and stacks of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro


def test_state_of_dense_layers_and_of_their_biases_is_what_it_was():
    """Shapes that checkpoints of 0.1.0 have."""
    params = {"kernel": jnp.zeros([3, 5]), "bias": jnp.zeros(5)}
    state = ro.phi.factored_activity().init(params)
    assert jax.tree.map(jnp.shape, state.rows) == {"kernel": (3, 1), "bias": (5,)}
    assert jax.tree.map(jnp.shape, state.columns) == {"kernel": (1, 5), "bias": (1,)}
    state = ro.phi.factored_activity(axes="equinox").init({"weight": jnp.zeros([5, 3])})
    assert (state.rows["weight"].shape, state.columns["weight"].shape) == ((5, 1), (1, 3))
    state = ro.phi.per_neuron().init(params)
    assert jax.tree.map(jnp.shape, state.second_moment) == {"kernel": (1, 5), "bias": ()}


def test_state_of_heads_and_embeddings_is_small():
    params = {
        "query": {"kernel": jnp.zeros([8, 4, 2])},
        "embed": {"embedding": jnp.zeros([100, 8])},
        "bias": jnp.zeros([3, 5]),
    }
    state = ro.phi.factored_activity().init(params)
    assert state.rows["query"]["kernel"].shape == (8, 1, 1)
    assert state.columns["query"]["kernel"].shape == (1, 4, 2)
    assert state.rows["embed"]["embedding"].shape == (100, 1)
    assert state.columns["embed"]["embedding"].shape == (1, 8)
    assert (state.rows["bias"].shape, state.columns["bias"].shape) == ((3, 5), (3, 1))
    state = ro.phi.per_neuron().init(params)
    assert state.second_moment["embed"]["embedding"].shape == (100, 1)
    assert state.second_moment["bias"].shape == (3, 1)


def test_biases_of_a_scan_stay_diagonal_in_an_eigenbasis():
    params = {"bias": jnp.zeros([3, 5]), "kernel": jnp.zeros([3, 5, 4])}
    for sides, shape in (("both", None), ("vector", (3, 1, 5, 5))):
        state = jax.eval_shape(ro.in_eigenbasis(optax.identity(), sides=sides).init, params)
        found = state.left_bases["bias"]
        assert isinstance(found, optax.MaskedNode) if shape is None else found.shape == shape
        assert state.left_bases["kernel"].shape == (3, 1, 5, 5)


def test_layers_of_a_scan_on_the_second_axis_are_told_of_and_turned_one_by_one():
    """Attention whose layers lie on axis 1: a warning, and the updates of the same layers on axis 0."""
    start = jax.random.normal(jax.random.key(0), (16, 3, 4, 4))
    gradients = [jax.random.normal(jax.random.key(n), start.shape) for n in range(1, 4)]

    def updates_of(axis):
        tx = ro.riemannian_eigenbasis(0.1, conformal="leaf")
        params = {"query": {"kernel": jnp.moveaxis(start, 1, axis)}}
        state, found = tx.init(params), []
        for gradient in gradients:
            own = {"query": {"kernel": jnp.moveaxis(gradient, 1, axis)}}
            updates, state = jax.jit(tx.update)(own, state, params)
            found.append(jnp.moveaxis(updates["query"]["kernel"], axis, 1))
        return jnp.stack(found)

    with pytest.warns(UserWarning, match=r"reads .*query.* as a stack of 3: inputs 16, outputs 4\*4"):
        behind = updates_of(1)
    np.testing.assert_allclose(behind, updates_of(0), rtol=2e-4, atol=1e-5)

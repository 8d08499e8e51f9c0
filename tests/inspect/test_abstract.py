"""A model without values is described by its shapes, and one on a mesh where its arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

import riemann_optax as ro

OPTIMIZERS = [ro.riemannian_adamw(0.003), ro.riemannian_eigenbasis(0.003), ro.soap(0.003)]


def weights():
    return {
        "conv1": {"kernel": jnp.ones([3, 3, 4, 8])},
        "head": {"kernel": jnp.ones([8, 4]), "bias": jnp.ones(4)},
    }


@pytest.mark.parametrize("tx", OPTIMIZERS, ids=["adamw", "eigenbasis", "soap"])
def test_a_model_without_values_is_described_as_one_with_values_but_for_the_metric(tx):
    described, abstract = ro.describe(tx, weights()), ro.describe(tx, jax.eval_shape(weights))
    unknown = {"metric_min": 0.0, "metric_max": 0.0}
    for one, other in zip(abstract.leaves, described.leaves, strict=True):
        assert one._replace(**unknown) == other._replace(**unknown)
    assert abstract[1] == described[1]
    assert abstract.axes == described.axes
    assert abstract.bases == described.bases
    assert all(np.isnan([leaf.metric_min, leaf.metric_max]).all() for leaf in abstract.leaves)
    assert "E at nothing: the arrays have no values" in str(abstract)


def test_a_state_without_values_is_described_as_that_of_init():
    tx = ro.riemannian_eigenbasis(0.003)
    state = jax.eval_shape(tx.init, weights())
    described = ro.describe(tx, jax.eval_shape(weights), state=state)
    assert str(described) == str(ro.describe(tx, jax.eval_shape(weights)))


def test_a_basis_shows_no_metric_where_no_gradients_are_given():
    """Of what no basis turns it shows one."""
    tx = ro.riemannian_eigenbasis(0.003)
    described = ro.describe(tx, weights())
    assert "E at gradients of 1, and of eigenbases at none" in str(described)
    hidden = [leaf.name for leaf in described.leaves if np.isnan(leaf.metric_min)]
    assert hidden == ["['conv1']['kernel']", "['head']['kernel']"]
    gradients = jax.tree.map(jnp.ones_like, weights())
    assert all(leaf.metric_min > 0 for leaf in ro.describe(tx, weights(), gradients).leaves)
    unturned = ro.in_eigenbasis(ro.riemannian_adamw(0.003), max_size=2)
    assert all(leaf.metric_min > 0 for leaf in ro.describe(unturned, weights()).leaves)


def test_a_metric_in_a_branch_needs_values():
    tx = optax.MultiSteps(ro.riemannian_adamw(0.003), 2).gradient_transformation()
    with pytest.raises(
        ValueError, match=r"^describe: the arrays have no values, and tx applies its metric in a"
    ):
        ro.describe(tx, jax.eval_shape(weights))


def test_a_module_of_nnx_without_values():
    tx = ro.riemannian_adamw(0.003)
    model = nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    assert [leaf.name for leaf in ro.describe(tx, model).leaves] == ["['bias']", "['kernel']"]


def test_the_state_in_all_is_that_of_init():
    tx = ro.riemannian_eigenbasis(0.003)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(weights())))
    assert f"state: {whole / 1000:.3g} kB in all" in str(ro.describe(tx, weights()))


def test_each_axis_of_a_window_has_its_line():
    """Two axes of three places say the same; a number in the name of the module does not join them."""
    lines = str(ro.describe(ro.soap(0.003), weights())).splitlines()
    assert sum(line.startswith("eigenbasis: ['conv1']") for line in lines) == 4


@pytest.mark.parametrize("tx", OPTIMIZERS[:2], ids=["adamw", "eigenbasis"])
def test_a_metric_is_read_on_an_explicit_mesh_outside_of_jit(tx):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    alone = {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.arange(4.0)}
    params = jax.tree.map(
        lambda w: jax.device_put(w, NamedSharding(mesh, jax.P("data", *[None] * (w.ndim - 1)))), alone
    )
    state = ro.sharding.init(tx, params)
    found = ro.metric_at(tx, params, state, params)
    expected = ro.metric_at(tx, alone, tx.init(alone), alone)
    inside = jax.jit(lambda gradients: ro.metric_at(tx, gradients, state, params))(params)
    for name in alone:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
        np.testing.assert_allclose(inside[name], expected[name], rtol=1e-4)


@pytest.mark.parametrize(
    "tx",
    [*OPTIMIZERS[1:], ro.riemannian_schedule_free(0.003, sides="smaller")],
    ids=["basis", "soap", "free"],
)
def test_bases_begin_on_a_mesh_with_axes_of_both_kinds(tx):
    mesh = jax.make_mesh((2, 2), ("auto", "explicit"), axis_types=(AxisType.Auto, AxisType.Explicit))
    alone = {"kernel": jnp.arange(32.0).reshape(8, 4)}
    params = jax.device_put(alone, NamedSharding(mesh, jax.P("explicit", "auto")))
    like = jax.tree.map(np.asarray, tx.init(alone))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, tx.init(params)), like)

"""A population under vmap: every member has its own run, and what is rare is computed as rarely."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax._population import for_any, when

PARAMS = {"kernel": jnp.zeros([6, 4]), "bias": jnp.zeros(4)}
OPTIMIZERS = {
    "one side": ro.riemannian_eigenbasis(0.1, update_every=3),
    "soap": ro.soap(0.1, precondition_frequency=2),
    "only what has turned": optax.chain(
        ro.in_eigenbasis(optax.scale_by_adam(), update_every=2, tau=0.3), optax.scale(-0.1)
    ),
}


def gradients(member, step):
    key = jax.random.fold_in(jax.random.key(member), step)
    return {"kernel": jax.random.normal(key, [6, 4]), "bias": jax.random.normal(key, [4])}


def run(tx, member, first, last, start=None):
    params, state = start or (PARAMS, tx.init(PARAMS))
    for step in range(first, last):
        updates, state = jax.jit(tx.update)(gradients(member, step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_that_began_at_different_times_each_have_their_own_run(name):
    tx = OPTIMIZERS[name]
    began = [run(tx, member, 0, member) for member in range(3)]  # after 0, 1 and 2 updates
    population = jax.tree.map(lambda *leaves: jnp.stack(leaves), *began)
    update = jax.jit(jax.vmap(tx.update))
    for step in range(5):
        params, state = population
        each = [gradients(member, member + step) for member in range(3)]
        updates, state = update(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), state, params)
        population = optax.apply_updates(params, updates), state
    for member in range(3):
        expected = run(tx, member, member, member + 5, began[member])
        found = jax.tree.map(lambda leaf, member=member: leaf[member], population)
        chex.assert_trees_all_close(found[0], expected[0], rtol=2e-4, atol=2e-5)
        np.testing.assert_array_equal(found[1][0].count, expected[1][0].count)


def outside_of_branches(jaxpr):
    """Yield the names of all operations that run at every call."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name != "cond":
            for value in equation.params.values():
                if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                    yield from outside_of_branches(inner)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_population_decomposes_no_oftener_than_one_run(name, levels):
    tx = OPTIMIZERS[name]
    init, update = tx.init, tx.update
    params = PARAMS
    for _ in range(levels):
        init, update = jax.vmap(init), jax.vmap(update)
        params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params)
    names = set(outside_of_branches(jax.make_jaxpr(update)(params, init(params), params).jaxpr))
    assert "dot_general" in names
    assert not names & {"eigh", "geqrf", "householder_product", "while", "sort"}


def test_a_choice_of_each_member():
    def chosen(predicate, x):
        return when(predicate, lambda x: 2 * x, lambda x: -x, x)

    wants = jnp.array([[True, False], [False, False]])
    x = jnp.arange(4.0).reshape(2, 2)
    expected = np.where(wants, 2 * x, -x)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(chosen))(wants, x), expected)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(jax.grad(chosen, 1)))(wants, x), np.where(wants, 2, -1))
    np.testing.assert_array_equal(jax.vmap(jax.vmap(for_any))(wants), np.ones([2, 2]))
    assert [float(chosen(jnp.asarray(want), jnp.asarray(3.0))) for want in (True, False)] == [6, -3]


def test_a_restart_of_one_member_is_computed_when_it_happens():
    tx = ro.restart_at_boundary(optax.sgd(0.1), ro.anchor.nearest_isometry())
    params = {"kernel": jax.random.normal(jax.random.key(0), [2, 6, 4])}
    state, boundary = jax.vmap(tx.init)(params), jnp.array([True, False])

    def update(params, state, boundary):
        return tx.update(params, state, params, task_boundary=boundary)[0]

    program = jax.make_jaxpr(jax.vmap(update))(params, state, boundary).jaxpr
    assert not set(outside_of_branches(program)) & {"while", "scan", "dot_general"}
    found = jax.vmap(update)(params, state, boundary)
    for member in range(2):
        own = jax.tree.map(lambda leaf, member=member: leaf[member], (params, state))
        expected = update(*own, boundary[member])
        np.testing.assert_allclose(found["kernel"][member], expected["kernel"], rtol=1e-5, atol=1e-6)


def test_units_of_one_member_are_renewed_when_they_are_due():
    tx = ro.reset_units(optax.sgd(0.1, 0.9), ro.dormant_units(every=1))
    one = {"hidden": {"kernel": jnp.array([[0.1, 0.2], [0.3, -0.4]])}, "out": {"kernel": jnp.ones([2, 1])}}
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), one)
    activities = {
        "hidden": {"kernel": jnp.array([[[1.0, 0.0]], [[1.0, 1.0]]])},  # a unit of the first is silent
        "out": {"kernel": jnp.ones([2, 1, 1])},
    }

    def update(params, state, activities):
        return tx.update(params, state, params, activities=activities)

    state = jax.vmap(tx.init)(params)
    program = jax.make_jaxpr(jax.vmap(update))(params, state, activities).jaxpr
    assert not {"random_bits", "threefry2x32"} & set(outside_of_branches(program)) - {"random_split"}
    found = jax.vmap(update)(params, state, activities)
    assert [int(number) for number in found[1].resets] == [1, 0]
    for member in range(2):
        own = jax.tree.map(lambda leaf, member=member: leaf[member], (params, state, activities))
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, member=member: leaf[member], found[0]), update(*own)[0], rtol=1e-6
        )

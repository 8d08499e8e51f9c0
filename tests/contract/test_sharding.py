"""On eight devices the state lies where its parameters lie, and the numbers are those of one device."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import riemann_optax as ro

from . import problem

SPECS = {
    "bias": jax.P("y"),
    "kernel": jax.P("x", "y"),
    "stack": jax.P(None, "x", None),
}


def host_params():
    """Parameters with one, two and three axes."""
    rng = np.random.default_rng(0)
    shapes = {"bias": (8,), "kernel": (4, 8), "stack": (3, 2, 4)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Run(NamedTuple):
    """Everything the tests of one entry on one kind of mesh look at, computed once."""

    params: Any
    states: list[Any]  # after eager init and after each of two jitted updates
    moved: Any  # the parameters after the updates
    updates: Any  # the last ones
    results: list[Any]  # of each way to call: updates and state


def two_steps(update, state, params):
    """Return the states before, between and after, the parameters after, and the last updates."""
    states = [state]
    for step in range(2):
        updates, state = update(problem.gradients(params, step), states[-1], params)
        params = jax.tree.map(jnp.add, params, updates)
        states.append(state)
    return states, params, updates


@pytest.fixture(scope="module", params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def run(request, entry):
    tx = entry.build()
    extra_args = entry.extra_args(problem.loss)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(request.param, request.param))
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(value, NamedSharding(mesh, SPECS[name]))
            for name, value in host_params().items()
        }
        states, moved, updates = two_steps(problem.jitted(tx, extra_args), tx.init(params), params)
        results = [(updates, state) for state in states]
        if request.param == AxisType.Explicit:  # elsewhere the type of an array knows nothing of its sharding
            results.append(tx.update(problem.gradients(params), states[0], params, **extra_args))
            results.append((updates, jax.jit(tx.init)(params)))
        return Run(params, states, moved, updates, results)


def placements(tree):
    """Return the sharding of each leaf in a comparable form, one entry per array axis."""

    def normal(leaf):
        spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
        return tuple(spec) + (None,) * (leaf.ndim - len(spec))

    return [normal(leaf) for leaf in jax.tree.leaves(tree)]


def test_state_stays_with_its_parameters(run):
    assert placements(run.moved) == placements(run.updates) == placements(run.params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(run.params)]
    expected = dict(zip(shapes, placements(run.params), strict=True))
    for state in run.states:
        for leaf, placement in zip(jax.tree.leaves(state), placements(state), strict=True):
            if leaf.shape in expected:  # a mirror of the parameters
                assert placement == expected[leaf.shape]


def test_types_agree_from_init_to_update_eager_and_jitted(run):
    state_types = problem.types(run.states[0])
    for updates, state in run.results:
        assert problem.types(state) == state_types
        assert problem.types(updates) == problem.types(run.params)


def settled(tree):
    """Take out of each compensated sum what rounding has put in: that depends on the order of the terms."""

    def settle(node):
        if not isinstance(node, ro.TrackEnergyState):
            return node
        return (
            np.float64(node.modification) - node.compensation,
            np.float64(node.total_maintenance) - node.maintenance_compensation,
            node.maintenance,
        )

    return jax.tree.map(settle, tree, is_leaf=lambda node: isinstance(node, ro.TrackEnergyState))


def test_results_equal_those_of_one_device(entry, run):
    tx = entry.build()
    params = jax.tree.map(jnp.asarray, host_params())
    update = problem.updater(entry, tx)
    alone = two_steps(update, tx.init(params), params)
    on_host = jax.tree.map(np.array, problem.readable((run.states, run.moved, run.updates)))
    chex.assert_trees_all_close(settled(on_host), settled(problem.readable(alone)), rtol=2e-5, atol=1e-6)

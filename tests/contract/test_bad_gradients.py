"""NaN, infinity, huge and tiny gradients: what they do to E, to the state, and to the weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd
from tests.contract import problem
from tests.contract.trees import EXAMPLES

HUGE = {jnp.float16: 6e4, jnp.bfloat16: 1e38, jnp.float32: 1e38}
TINY = {jnp.float16: 6e-8, jnp.bfloat16: 1e-38, jnp.float32: 1e-44}
# The squares of narrower types fit into float32, in which they are made: those are for the long run.
EXTREMES_OF = list(HUGE) if EXAMPLES >= 100 else [jnp.float32]
BAD = [np.nan, np.inf, -np.inf]
# optax.scale_by_adam squares without a bound: a gradient of 1e38 makes its second moment infinite for good.
OPTAX_OVERFLOWS = {"in_orthonormal_frame:adam"}


def spoilt(gradients, value, where):
    """Put ``value`` into one element, one leaf or all leaves."""
    if where == "element":
        return gradients | {"kernel": gradients["kernel"].at[1, 2].set(value)}
    if where == "leaf":
        return gradients | {"kernel": jnp.full_like(gradients["kernel"], value)}
    return jax.tree.map(lambda g: jnp.full_like(g, value), gradients)


def test_the_guard_leaves_state_and_weights_as_they_were(entry, tally):
    """Bit for bit: the run with bad gradients in between is the run without them."""
    tx = ro.skip_nonfinite(entry.build())
    update = problem.jitted(tx, entry.extra_args(problem.loss))
    params = problem.params()
    _, before = update(problem.gradients(params), tx.init(params), params)
    after = before
    for value, where in ((np.nan, "element"), (np.inf, "leaf"), (-np.inf, "all")):
        tally["faults"] += 1
        updates, after = update(spoilt(problem.gradients(params), value, where), after, params)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))
        chex.assert_trees_all_equal(problem.readable(after.inner_state), problem.readable(before.inner_state))
    assert int(after.total_notfinite) == 3


@pytest.mark.parametrize("dtype", EXTREMES_OF, ids=lambda dtype: dtype.__name__)
def test_extreme_gradients_leave_the_state_finite(request, entry, dtype, tally):
    """``g**2`` would overflow or vanish at every one of these; the state stays finite and the run goes on."""
    name = request.node.callspec.id.removesuffix(f"-{dtype.__name__}")
    tx = entry.build()
    update = problem.jitted(tx, entry.extra_args(problem.loss))
    params = problem.params(dtype)
    _, start = update(problem.gradients(params), tx.init(params), params)
    for value in (HUGE[dtype], TINY[dtype], 0.0):
        state = start
        tally["faults"] += 1
        for bad in (True, False, False):
            gradients = problem.gradients(params)
            updates, state = update(spoilt(gradients, value, "leaf") if bad else gradients, state, params)
            if name not in OPTAX_OVERFLOWS or value != HUGE[dtype]:
                chex.assert_tree_all_finite(problem.readable(state))
            if value != HUGE[dtype]:  # a step as long as the gradient may overflow: it is what SGD's would do
                chex.assert_tree_all_finite(updates)


PHIS = [
    "activity",
    "accumulated_activity",
    "factored_activity",
    "per_neuron",
    "presynaptic_release",
    "bayesian_synapse",
]


@pytest.mark.parametrize("name", PHIS)
@pytest.mark.parametrize("dtype", HUGE, ids=lambda dtype: dtype.__name__)
def test_one_huge_gradient_makes_a_large_metric_not_an_infinite_one(name, dtype, tally):
    tally["faults"] += 1
    tx = riemannian_sgd(0.1, phi=getattr(ro.phi, name)())
    params = problem.params(dtype)
    gradients = spoilt(problem.gradients(params), HUGE[dtype], "element")
    for metric in jax.tree.leaves(ro.metric_at(tx, gradients, tx.init(params), params)):
        assert np.all(np.isfinite(metric))
        assert np.all(np.asarray(metric) >= 1)


@pytest.mark.parametrize("value", BAD, ids=str)
def test_without_the_guard_a_nan_stays_and_is_seen(value, tally):
    """As the docstring of ``skip_nonfinite`` says: nothing is hidden, and nothing heals by itself."""
    tx = riemannian_sgd(0.1, phi=ro.phi.activity())
    params = problem.params()
    state = tx.init(params)
    tally["faults"] += 1
    updates, state = tx.update(spoilt(problem.gradients(params), value, "element"), state, params)
    assert not np.isfinite(updates["kernel"][1, 2]) or np.isinf(value)
    later, _ = tx.update(problem.gradients(params), state, params)
    if np.isnan(value):
        assert np.isnan(later["kernel"][1, 2])
    for name, leaf in later.items():
        others = np.ones(leaf.shape, bool)
        if name == "kernel":
            others[1, 2] = False
        assert np.all(np.isfinite(np.asarray(leaf)[others]))


def test_a_thousand_bad_steps_change_nothing(tally):
    tally["faults"] += 1000
    tx = ro.skip_nonfinite(riemannian_sgd(0.1, momentum=0.9))
    params = problem.params()
    _, before = tx.update(problem.gradients(params), tx.init(params), params)
    bad = spoilt(problem.gradients(params), jnp.nan, "all")

    def step(state, _):
        updates, state = tx.update(bad, state, params)
        return state, updates

    after, updates = jax.jit(lambda state: jax.lax.scan(step, state, length=1000))(before)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))
    chex.assert_trees_all_equal(after.inner_state, before.inner_state)
    assert int(after.notfinite_count) == int(after.total_notfinite) == 1000


@pytest.mark.parametrize("boundary", [False, True])
def test_the_guard_sees_what_a_phi_reads_beside_the_gradient(boundary, tally):
    """The mean gradient is finite, and that of one example, which is all padding, is none."""
    tally["faults"] += 1
    tx = ro.skip_nonfinite(riemannian_sgd(0.1, phi=ro.phi.online_ewc()))
    params = problem.params()
    gradients = problem.gradients(params)
    examples = jax.tree.map(lambda g: jnp.stack([g, g]), gradients)
    spoilt_example = jax.tree.map(lambda e: e.at[1].set(jnp.nan), examples)
    _, before = tx.update(gradients, tx.init(params), params, per_example_gradients=examples)
    updates, after = tx.update(
        gradients, before, params, per_example_gradients=spoilt_example, task_boundary=jnp.array(boundary)
    )
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))
    expected = ro.consolidate(before.inner_state, params) if boundary else before.inner_state
    chex.assert_trees_all_equal(after.inner_state, expected)
    assert int(after.total_notfinite) == 1


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("importance", [7.0, np.nan])
def test_the_importance_given_at_a_skipped_boundary_is_taken_unless_it_is_the_bad_one(
    restart, importance, tally
):
    tally["faults"] += 1
    inner = riemannian_sgd(0.1, phi=ro.phi.online_ewc(running=False))
    if restart:
        inner = optax.chain(inner, ro.restart_at_boundary(optax.identity(), ro.anchor.initial_weights()))
    tx, params = ro.skip_nonfinite(inner), jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params, task_boundary=False, task_importance=params)
    given = {"task_boundary": jnp.array(True), "task_importance": jnp.full(2, importance)}
    gradients = params if np.isnan(importance) else jnp.full(2, jnp.nan)
    _, state = tx.update(gradients, state, params, **given)
    assert int(state.total_notfinite) == 1
    expected = 0.0 if np.isnan(importance) else importance
    np.testing.assert_array_equal(optax.tree.get(state, "importance"), expected)


@pytest.mark.parametrize(
    "value", [float("nan"), [1.0, jnp.nan], {"x": jnp.array(jnp.inf), "y": jnp.array(1)}]
)
def test_the_guard_sees_numbers_wherever_they_are(value, tally):
    tally["faults"] += 1
    tx, params = ro.skip_nonfinite(optax.sgd(0.1)), jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params, value=value)
    assert int(state.total_notfinite) == 1

"""A phi that takes ``state_dtype`` keeps its state in it, from init on, and still answers in float32."""

import inspect

import chex
import jax
import jax.numpy as jnp
import pytest

import riemann_optax as ro

from . import problem
from .supplied import supplied

# What phis with further extra arguments are given; see supplied.py.
OPTIONS = {"memory_aware_synapses": {"running": False}}
# The mean of their default would stall in bfloat16, which is refused: ``tests/phi/test_narrow_states.py``.
OPTIONS |= {name: {"decay": 0.99} for name in ("bayesian_synapse", "surprise", "utility_gate")}
RANDOM = {"bayesian_gradient_descent", "mesu"}  # draw other numbers in another dtype
NAMES = [
    name
    for name in ro.phi.__all__
    if name.islower() and "state_dtype" in inspect.signature(getattr(ro.phi, name)).parameters
]


@pytest.mark.parametrize("name", NAMES)
def test_state_keeps_the_dtype_asked_for(name):
    def states_and_values(state_dtype):
        phi = getattr(ro.phi, name)(state_dtype=state_dtype, **OPTIONS.get(name, {}))
        phi = supplied(phi)
        params = problem.params()
        states = [phi.init(params)]
        update = jax.jit(lambda gradients, state: phi.update(gradients, state, params, obj_fn=problem.loss))
        for step in range(2):
            values, state = update(problem.gradients(params, step), states[-1])
            states.append(state)
        return states, values

    (start, *later), values = states_and_values(jnp.bfloat16)
    assert any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(start))
    for state in later:
        assert problem.types(state) == problem.types(start)
    (wide, *_), expected = states_and_values(None)
    assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(wide))
    chex.assert_trees_all_equal_dtypes(values, expected, problem.params())
    chex.assert_tree_all_finite(values)
    if name not in RANDOM:
        chex.assert_trees_all_close(values, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_an_integer_state_is_refused(name):
    with pytest.raises(ValueError, match=r"^state_dtype must be a real floating-point dtype, got int32"):
        getattr(ro.phi, name)(state_dtype=jnp.int32)

"""What docs/phis.md says of the phis of task boundaries: until the first one they are 0."""

import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro

NAMES = ("online_ewc", "laplace", "memory_aware_synapses", "synaptic_intelligence", "rwalk")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_zero_until_the_first_task_boundary(name):
    phi, weights = getattr(ro.phi, name)(), jnp.ones(3)
    state = phi.init(weights)
    for step in range(5):
        of_examples = jnp.cos(step + jnp.arange(12.0).reshape(4, 3))
        values, state = phi.update(
            of_examples.mean(0),
            state,
            weights + 0.1 * step,
            per_example_gradients=of_examples,
            output_norm_gradients=of_examples,
        )
        np.testing.assert_array_equal(values, np.zeros(3))

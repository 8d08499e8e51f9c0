"""Derivatives by a vector that is 0, or has a 0 in it: those of the closed form, as they are beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro

FIELD, WEIGHTS, VECTOR = ro.fields.Constant(4.0), jnp.ones(2), jnp.array([1.0, 2.0])
# Each map with the diagonal of its derivative; E is 4, and that of Quadratic(3) is 1 + 3 * w**2 = 4 at 1.
MAPS = {
    "inner": (lambda u: ro.geometry.inner(FIELD, WEIGHTS, u, VECTOR) * jnp.ones(2), [4.0, 8.0]),
    "flat": (lambda u: ro.geometry.flat(FIELD, WEIGHTS, u), [4.0, 4.0]),
    "exponential_map": (lambda u: ro.geometry.exponential_map(FIELD, WEIGHTS, u), [1.0, 1.0]),
    "transport": (lambda u: ro.geometry.transport(FIELD, WEIGHTS, VECTOR, u), [1.0, 1.0]),
    "mirror": (lambda u: ro.retract(FIELD, "mirror").update(u, (), WEIGHTS)[0], [1.0, 1.0]),
    "a field by Newton's method": (
        lambda u: ro.fields.Quadratic(3.0).geodesic_displacement(WEIGHTS, u),
        [0.5, 0.5],
    ),
}


@pytest.mark.parametrize("at", [[0.0, 0.0], [0.0, 0.3]], ids=["0", "an entry of 0"])
@pytest.mark.parametrize("name", MAPS)
def test_it_is_that_of_the_closed_form(name, at):
    function, expected = MAPS[name]
    point = jnp.array(at)
    found = jnp.diagonal(jax.jacobian(function)(point))
    beside = jnp.diagonal(jax.jacobian(function)(point + 1e-6))
    np.testing.assert_allclose(found, beside, rtol=1e-5)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)


def test_a_squared_length_has_a_hessian():
    hessian = jax.hessian(lambda u: ro.geometry.inner(FIELD, WEIGHTS, u, u))(jnp.zeros(2))
    np.testing.assert_allclose(hessian, 8 * np.eye(2))

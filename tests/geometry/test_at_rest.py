"""Derivatives where nothing moves: a step of length 0 is the first term of every expansion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro

WEIGHTS = np.array([0.3, 1.0, -0.7])


class Cosh(ro.fields.SeparableField):
    def elementwise(self, weights):
        return jnp.cosh(weights) ** 2


FIELDS = [
    Cosh(),
    ro.fields.Elementwise(lambda w: jnp.cosh(w) ** 2),
    ro.fields.Quadratic(3.0),
    ro.fields.LogNormal(0.1),
]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("derivative", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize("field", FIELDS, ids=["own", "elementwise", "quadratic", "log_normal"])
def test_maps_begin_as_the_identity(field, derivative):
    weights, rest = jnp.array(WEIGHTS), jnp.zeros(3)
    for function in (ro.geometry.exponential_map, ro.geometry.logarithm_map):
        found = derivative(lambda vector, function=function: function(field, weights, vector))(rest)
        np.testing.assert_allclose(found, np.eye(3), atol=1e-12)
    one_rests = derivative(lambda vector: ro.geometry.exponential_map(field, weights, vector))(
        jnp.array([0.1, 0.0, 0.2])
    )
    np.testing.assert_allclose(one_rests[1], [0.0, 1.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("field", FIELDS, ids=["own", "elementwise", "quadratic", "log_normal"])
def test_the_hessian_of_a_divergence_is_the_metric(field):
    weights = jnp.array(WEIGHTS)
    found = jax.hessian(lambda step: ro.geometry.bregman_divergence(field, weights, step))(jnp.zeros(3))
    np.testing.assert_allclose(found, np.diag(field.metric(weights)), atol=1e-12)


def test_a_vector_of_another_precision_is_taken():
    half_plane = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 / w[1] ** 2))
    for point, vector in ((jnp.float64, jnp.float32), (jnp.float32, jnp.float64)):
        weights, along = jnp.array([0.0, 2.0], point), jnp.array([1.0, 0.0], vector)
        np.testing.assert_allclose(ro.geometry.christoffel(half_plane, weights, along), [0.0, 0.5], rtol=1e-6)
        upwards = jnp.array([0.0, 1.0], vector)
        np.testing.assert_allclose(half_plane.derivative(weights, upwards), -0.25, rtol=1e-6)

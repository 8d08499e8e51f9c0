"""Geodesics between two points, found by shooting for longer and longer ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro
from riemann_optax import flow


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


HALF_PLANE = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 / w[1] ** 2))


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-4), (jnp.float64, 1e-8)])
def test_geodesics_between_points_of_the_half_plane_have_its_distance(dtype, rtol):
    """Lobachevsky's plane: cosh of the distance is 1 + |p - q|^2 / (2 p_1 q_1)."""
    random = np.random.default_rng(0)
    for begin, end in np.exp(random.normal(size=[3, 2, 2])):
        start = jnp.array(begin, dtype)
        found = flow.geodesic_between(HALF_PLANE, start, jnp.array(end - begin, dtype))
        length = ro.geometry.norm(HALF_PLANE, start, found.evaluate(0.0).velocity)
        square = np.sum((end - begin) ** 2)
        np.testing.assert_allclose(length, np.arccosh(1 + square / (2 * begin[1] * end[1])), rtol=rtol)
        np.testing.assert_allclose(found.ys.point[-1], end, rtol=rtol)
        assert length.dtype == dtype


@pytest.mark.parametrize(
    ("east", "north"),
    [(0.0, 0.0), (1e-6, 0.0), (1e-3, 0.0), (8.0, 0.0), (40.0, 0.0), (2000.0, 0.0), (30.0, -0.98)],
)
def test_geodesics_of_the_half_plane_are_found_however_far_the_points_are(east, north):
    """A way of no length, one below the rounding of its end, and some that want shorter parts at first."""
    start, displacement = jnp.array([-1.0, 1.0], jnp.float32), jnp.array([east, north], jnp.float32)
    found = flow.geodesic_between(HALF_PLANE, start, displacement)
    length = ro.geometry.norm(HALF_PLANE, start, found.evaluate(0.0).velocity)
    exact = np.arccosh(1 + (east**2 + north**2) / (2 * (1 + north)))
    np.testing.assert_allclose(length, exact, rtol=1e-4, atol=2e-7)


def test_a_geodesic_of_the_sphere_is_found_nearly_to_the_antipodes():
    sphere = ro.fields.Coupled(lambda w: jnp.stack([jnp.ones(()), jnp.cos(w[0]) ** 2]))
    begin, end = np.array([0.1, 0.0]), np.array([0.1, 3.0])
    on_it = [np.array([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)]) for a, b in (begin, end)]
    found = flow.geodesic_between(sphere, jnp.array(begin), jnp.array(end - begin))
    length = ro.geometry.norm(sphere, jnp.array(begin), found.evaluate(0.0).velocity)
    np.testing.assert_allclose(length, np.arccos(on_it[0] @ on_it[1]), rtol=1e-6)


def test_a_geodesic_between_points_of_a_separable_field_is_its_logarithm():
    field = ro.fields.Quadratic(3.0)
    begin = {"w": jnp.array([0.5, -1.0]), "b": jnp.array(2.0)}
    displacement = jax.tree.map(lambda w: 1 - w, begin)
    found = flow.geodesic_between(field, begin, displacement, np.array([0.5, 1.0]))
    exact = ro.geometry.logarithm_map(field, begin, displacement)
    for one, other in zip(jax.tree.leaves(found.evaluate(0.0).velocity), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7)
    assert found.ys.point["w"].shape == (2, 2)


def test_a_geodesic_that_is_not_there_is_not_invented():
    """E of 1 / x^4 puts 0, a third of the way, and all behind it at an infinite distance."""
    field = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 / jnp.sum(w**2) ** 2))
    with pytest.raises(RuntimeError, match=r"^displacement: no geodesic was found beyond 33.3\d* per cent"):
        flow.geodesic_between(field, jnp.array([1.0]), jnp.array([-3.0]))


def test_a_geodesic_that_is_not_found_is_told_with_the_argument_and_how_far_it_is():
    """The target is outside of the half-plane, and its edge, half-way, is at an infinite distance."""
    start, outside = jnp.array([0.0, 1.0]), jnp.array([1.0, -2.0])
    with pytest.raises(
        RuntimeError, match=r"^displacement: no geodesic was found beyond (49\.\d+|50) per cent"
    ):
        flow.geodesic_between(HALF_PLANE, start, outside, max_steps=512)

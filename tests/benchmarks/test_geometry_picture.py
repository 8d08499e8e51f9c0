"""The geometry picture shows what the site says of it."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import geometry_picture
from riemann_optax import flow


def test_the_paths_are_those_that_the_text_tells(tmp_path):
    with jax.enable_x64(True):
        paths = geometry_picture.draw(tmp_path / "geometry.png")
        start = jnp.asarray(geometry_picture.START)
        short, long = geometry_picture.RATES
        solution = flow.gradient_flow(
            geometry_picture.loss, start, geometry_picture.FIELD, short * geometry_picture.STEPS
        )
        end = np.asarray(solution.ys[-1])
    assert (tmp_path / "geometry.png").stat().st_size > 10_000
    for kind in geometry_picture.STYLES:
        assert np.linalg.norm(paths[kind, short][-1] - end) < 0.1  # all follow the flow
    assert (paths["mirror", long] > 0).all()
    np.testing.assert_allclose(paths["mirror", long][-1], geometry_picture.MINIMUM, atol=1e-5)
    assert paths["geodesic", long].min() < -0.1  # crosses 0
    assert abs(paths["geodesic", long][-1][0]) < 1e-6  # and is drawn back to it
    assert np.abs(paths["euler", long][-1]).max() > geometry_picture.FAR

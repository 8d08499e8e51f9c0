"""The figure's turned valley: straight with the secant rule in an eigenbasis, bent without."""

import jax
import jax.numpy as jnp

from benchmarks.figure1.methods import METHODS
from benchmarks.figure1.paths import follow, path_statistics
from benchmarks.figure1.surfaces import paper_surfaces


def test_the_turned_valley_becomes_straight():
    """At most 10 steps and straightness .9, on the turned valley as on the one along the axes."""
    with jax.enable_x64(True):
        (method,) = [m for m in METHODS if m.name == "secant curvature, eigenbasis"]
        surfaces = paper_surfaces()
        both = jax.tree.map(lambda *x: jnp.array(x), surfaces["turned"], surfaces["axis-aligned"])

        def run(surface):
            transformation = method.build(jnp.ones([]), jnp.ones([]), jax.random.key(0))
            path, losses = follow(transformation, surface, 30)
            return path_statistics(surface, path, losses)

        statistics = jax.jit(jax.vmap(run))(both)
        assert statistics.steps.max() <= 10
        assert statistics.settled.max() <= 10
        assert statistics.straightness.min() >= 0.9

r"""Riemannian geometry of a metric field, on trees of parameters.

Points are parameters, tangent vectors and displacements are updates: what leads from one point to another is
always the *difference* of weights, never the second point. So ``optax.apply_updates`` applies a displacement,
and steps of 1e-6 keep their digits in float32. Everything is elementwise but where a sum is asked for, and
keeps the shardings of its arguments. Leaves must be real.
"""

from riemann_optax.geometry.maps import (
    bregman_divergence,
    christoffel,
    distance,
    exponential_map,
    flat,
    inner,
    logarithm_map,
    norm,
    sharp,
    transport,
)

__all__ = [
    "bregman_divergence",
    "christoffel",
    "distance",
    "exponential_map",
    "flat",
    "inner",
    "logarithm_map",
    "norm",
    "sharp",
    "transport",
]

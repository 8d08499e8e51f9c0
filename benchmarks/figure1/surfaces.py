"""The three surfaces of the paper's figure: one valley, axis-aligned, turned, and with curvature that varies.

All three are ``f(w) = profile(x_1) + kappa * profile(x_2)``, where ``x`` are the coordinates of ``w`` along
the shallow and the steep axis, counted from the minimum ``(3, -2)``. The minimum is not the origin, so that
an optimiser whose state starts at zero, or whose phi looks at the weights, knows nothing about it. As
``profile''(0) = 1``, all three have the same Hessian at the minimum, up to the turn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MINIMUM = (3.0, -2.0)


class Surface(NamedTuple):
    """A valley in the plane; call it with weights ``f[..., 2]`` to get the loss.

    It holds numbers only, so that one compiled run serves every surface.

    Attributes:
      kappa: curvature along the steep axis at the minimum; along the shallow axis it is 1.
      angle: turn of the valley, and of the start with it, about the minimum; degrees counter-clockwise.
      offset: the start, along the shallow and the steep axis: 2 to the left of the minimum and 1 above it.
      saturating: False for the profile ``x**2 / 2``, of curvature 1 everywhere. True for ``log cosh x``,
        whose curvature ``1 - tanh(x)**2`` is 1 at the minimum, 0.42 at distance 1, 0.07 at distance 2.

    """

    kappa: float
    angle: float = 0.0
    offset: tuple[float, float] = (-2.0, 1.0)
    saturating: bool = False

    @property
    def rotation(self) -> jax.Array:
        """Matrix ``f[2, 2]`` whose columns are the shallow and the steep direction."""
        turn = jnp.deg2rad(self.angle)
        cosine, sine = jnp.cos(turn), jnp.sin(turn)
        return jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])

    @property
    def minimum(self) -> jax.Array:
        """The weights ``f[2]`` at which the loss is 0."""
        return jnp.array(MINIMUM)

    @property
    def start(self) -> jax.Array:
        """The weights ``f[2]`` every method starts from."""
        return self.minimum + self.rotation @ jnp.stack(self.offset)

    def coordinates(self, weights: jax.Array) -> jax.Array:
        """Position ``f[..., 2]`` along the shallow and the steep axis, counted from the minimum."""
        return (weights - self.minimum) @ self.rotation

    def __call__(self, weights: jax.Array) -> jax.Array:
        """Return the loss ``f[...]``."""
        x = self.coordinates(weights)
        log_cosh = jnp.logaddexp(x, -x) - jnp.log(2.0)  # this form of log cosh does not overflow
        profile = jnp.where(self.saturating, log_cosh, jnp.square(x) / 2)
        return profile[..., 0] + self.kappa * profile[..., 1]


def paper_surfaces(kappa: float = 50.0, angle: float = 17.0) -> dict[str, Surface]:
    """Return the quadratic along the axes, the same turned by ``angle``, and the ``log cosh`` valley."""
    return {
        "axis-aligned": Surface(kappa),
        "turned": Surface(kappa, angle=angle),
        "non-quadratic": Surface(kappa, saturating=True),
    }

"""From one loss function to everything that an optimiser's phi reads of it."""

from riemann_optax.supply.functional import watch
from riemann_optax.supply.step import value_and_grad
from riemann_optax.supply.taps import observe, outputs

__all__ = ["observe", "outputs", "value_and_grad", "watch"]

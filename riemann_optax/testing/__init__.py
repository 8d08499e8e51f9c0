"""Public checks for a phi or a metric field of one's own."""

from riemann_optax.testing.examples import check_examples
from riemann_optax.testing.field import FieldReport, check_field
from riemann_optax.testing.phi import PhiReport, check_phi

__all__ = ["FieldReport", "PhiReport", "check_examples", "check_field", "check_phi"]

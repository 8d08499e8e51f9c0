"""Metric fields: ``E`` as a pure function of the weights, with its integrals."""

from riemann_optax.fields.base import Coupled, Elementwise, MetricField, SeparableField, attach_field
from riemann_optax.fields.closed_forms import Absolute, Constant, LogNormal, Multiplicative, Quadratic

__all__ = [
    "Absolute",
    "Constant",
    "Coupled",
    "Elementwise",
    "LogNormal",
    "MetricField",
    "Multiplicative",
    "Quadratic",
    "SeparableField",
    "attach_field",
]

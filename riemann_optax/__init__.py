"""Riemannian metrics for Optax."""

__version__ = "0.1.0"

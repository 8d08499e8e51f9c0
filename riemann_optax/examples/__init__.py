"""Flax example models, data and a trainer: ``python -m riemann_optax.examples.train``."""

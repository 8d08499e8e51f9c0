"""The trainer, a program: ``python -m riemann_optax.examples.train``."""

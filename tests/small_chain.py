"""The small parameters on which wrong chains are tried, and one update of them."""

import jax.numpy as jnp
import optax

import riemann_optax as ro

PARAMS = {"bias": jnp.array([0.5, -1.0, 2.0]), "kernel": jnp.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])}
STAGE_1 = ro.compute_metric(ro.phi.activity())


def update(tx, **extra_args):
    tx = optax.with_extra_args_support(tx)
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS, **extra_args)

"""The weights along the path of an optimiser that is given its gradients: to compare with a replay."""

import jax
import jax.numpy as jnp
import optax


def walk(tx, gradients, start):
    """Return the weights after every step; gradients have a first axis for the steps."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    path = jax.jit(lambda w, g: jax.lax.scan(step, (w, tx.init(w)), g)[1])
    return path(jax.tree.map(jnp.asarray, start), jax.tree.map(jnp.asarray, gradients))

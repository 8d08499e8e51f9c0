"""Small chains of kernels, and one update that only resets units of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro


def kernels(**shapes):
    generator = np.random.default_rng(0)
    return {
        name: {"kernel": jnp.asarray(generator.normal(size=shape), jnp.float32)}
        for name, shape in shapes.items()
    }


def seen_like(params, outputs=-1):
    """The last unit of each layer is silent, and one other fires."""

    def activities(leaf):
        return jnp.ones([2, leaf.shape[outputs]]).at[:, -1].set(0.0)

    return jax.tree.map(activities, params)


def reset(params, tx=None, seen=None, **arguments):
    """Return the parameters after one update that only resets."""
    tx = tx or ro.reset_units(optax.sgd(0.0), ro.dormant_units(0.0, every=1), **arguments)
    updates, state = tx.update(
        jax.tree.map(jnp.zeros_like, params),
        tx.init(params),
        params,
        activities=seen_like(params) if seen is None else seen,
    )
    return optax.apply_updates(params, updates), state

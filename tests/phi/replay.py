"""What the oracle tests share: a loop that lets a transformation walk, and the plain chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import riemann_optax as ro

STEPS = 300
RTOL = 1e-5


def plain(phi, alpha=1.0, learning_rate=0.01, *edits, before=(), after=()):
    """Return the two stages around ``edits``, with transformations before stage 1 and after stage 2."""
    return optax.chain(
        *before,
        ro.compute_metric(phi, alpha),
        *edits,
        ro.scale_by_inverse_metric(),
        *after,
        optax.scale_by_learning_rate(learning_rate),
    )


def walk(tx, start, gradient, extra_args=None, steps=STEPS):
    """Return the path of ``tx`` as one array per leaf with a leading step axis.

    ``gradient(params, step)`` and ``extra_args(params, state, step)`` work on NumPy copies of the parameters.
    """
    params = jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    update = jax.jit(tx.update)
    path = [jax.tree.map(np.asarray, params)]
    for step in range(steps):
        extra = {} if extra_args is None else extra_args(path[-1], state, step)
        extra = jax.tree.map(jnp.asarray, extra)
        gradients = jax.tree.map(jnp.asarray, gradient(path[-1], step))
        updates, state = update(gradients, state, params, **extra)
        params = optax.apply_updates(params, updates)
        path.append(jax.tree.map(np.asarray, params))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *path)

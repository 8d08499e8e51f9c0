"""The small problem on which the contract tests call ``update``."""

import functools

import jax
import jax.numpy as jnp


def params(dtype=jnp.float32):
    return {
        "bias": jnp.array([0.5, -1.0, 2.0], dtype),
        "kernel": jnp.array([[1.0, -0.5, 0.25], [-2.0, 1.5, 3.0]], dtype),
    }


def loss(params):
    """A quadratic with its minimum at 0.3, where no weight starts, and a curvature of 2."""
    return sum(jnp.sum(jnp.abs(leaf - leaf.dtype.type(0.3)) ** 2) for leaf in jax.tree.leaves(params))


def gradients(params, step=0):
    """The gradient of :func:`loss` in Optax's convention, distorted so that each step has another one.

    In closed form: ``jax.grad``, traced anew for each call, was a quarter of the time of these tests.
    """
    factor = 2 * (1 + 0.5 * step)
    return jax.tree.map(lambda leaf: leaf.dtype.type(factor) * (leaf - leaf.dtype.type(0.3)), params)


def real_loss(params):
    return jnp.real(loss(params))


def jitted(tx, extra_args):
    """Return a jitted ``update`` that closes over the extra arguments, since a loss function is no array."""
    return jax.jit(functools.partial(tx.update, **extra_args))


def updater(entry, tx, jit=None):
    """Return ``update``, by default eager: that is quicker for a few calls, unless there is a loop in it.

    ``jit`` is a function such as ``jax.jit``, or ``lambda update: update``.
    """
    if jit is None:
        jit = jax.jit if entry.loops else lambda update: update
    return jit(functools.partial(tx.update, **entry.extra_args(loss)))


def run(entry, tx, steps=3, jit=None):
    """Return the updates of a few steps and the last state."""
    current = params()
    state = tx.init(current)
    update = updater(entry, tx, jit)
    history = []
    for step in range(steps):
        updates, state = update(gradients(current, step), state, current)
        current = jax.tree.map(jnp.add, current, updates)
        history.append(updates)
    return history, readable(state)


def tracer(tx, extra_args, start):
    """Return a function that traces the first update and returns shapes and dtypes, compiling nothing."""
    arguments = gradients(start), tx.init(start), start
    return lambda: jax.eval_shape(functools.partial(tx.update, **extra_args), *arguments)


def readable(tree):
    """Replace random keys, which NumPy cannot compare, by their data."""
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf,
        tree,
    )


def types(tree):
    """Return what JAX knows of each leaf at compile time: shape, dtype, weak type and sharding."""
    return jax.tree.map(jax.typeof, tree)

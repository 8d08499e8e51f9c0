"""The metric written out in one Optax transformation, without covectors: to compare our chains with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class ByHandState(NamedTuple):
    count: jax.Array
    mean_square: Any


def mean_over_tree(tree):
    leaves = jax.tree.leaves(tree)
    return sum(jnp.sum(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)


def riemannian_sgd_by_hand(learning_rate, alpha=1.0, decay=0.9, conformal=False, momentum=None):
    """``riemannian_sgd`` with activity as phi, in closed form."""

    def init(params):
        return ByHandState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradients, state, params=None):
        del params
        count = state.count + 1
        square = jax.tree.map(lambda g, v: decay * v + (1 - decay) * g**2, gradients, state.mean_square)
        phi = jax.tree.map(lambda v: jnp.sqrt(v / (1 - decay**count)), square)
        if conformal:
            mean = mean_over_tree(phi)
            metric = jax.tree.map(lambda p: (mean + alpha * p) / (1 + alpha), phi)
        else:
            metric = jax.tree.map(lambda p: 1 + alpha * p, phi)
        return jax.tree.map(jnp.divide, gradients, metric), ByHandState(count, square)

    tangent = optax.GradientTransformation(init, update)
    momentum_stage = optax.identity() if momentum is None else optax.trace(momentum)
    return optax.chain(tangent, momentum_stage, optax.scale(-learning_rate))

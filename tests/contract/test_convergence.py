"""Every optimiser reaches Optax's four convergence targets."""

import chex
import jax
import jax.numpy as jnp
import pytest

STEPS = 30_000


def parabola():
    target = jnp.array([1.0, -1.0, 1.0])
    return jnp.array([-1.0, 10.0, 1.0]), target, lambda w: jnp.sum(jnp.square(w - target))


def rosenbrock():
    def loss(w):
        return jnp.square(1.0 - w[0]) + 100.0 * jnp.square(w[1] - jnp.square(w[0]))

    return jnp.zeros(2), jnp.ones(2), loss


def matrix_parabola():
    target = jnp.array([[3.0, -2.0], [1.0, 4.0]])
    return jnp.zeros([2, 2]), target, lambda w: jnp.sum(jnp.square(w - target))


def mixed_parabola():
    target = (jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]]))

    def loss(params):
        return sum(jnp.sum(jnp.square(p - t)) for p, t in zip(params, target, strict=True))

    return (jnp.zeros(3), jnp.zeros([2, 2])), target, loss


@pytest.mark.parametrize("problem", [parabola, rosenbrock, matrix_parabola, mixed_parabola])
def test_reaches_the_minimum(entry, problem):
    params, target, loss = problem()
    tx = entry.build()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, **entry.extra_args(loss))
        return (jax.tree.map(jnp.add, params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS))
    (params, _), _ = run((params, tx.init(params)))
    chex.assert_trees_all_close(params, target, rtol=3e-2, atol=3e-2)

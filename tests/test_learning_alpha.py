"""alpha may be traced: learned by gradient through several updates, and mapped over."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from .adam_in_the_frame import adam_in_the_frame

# NumPy's float64: it takes whatever precision the parameters have.
TARGET = {"bias": np.array([0.3, -0.2, 0.0]), "kernel": np.array([[1.0, -2.0], [0.5, 3.0]])}


def loss(params):
    def term(p, t):
        distance = p - jnp.asarray(t, p.dtype)
        return jnp.sum(distance**2 + 0.1 * distance**4)

    return optax.tree.sum(jax.tree.map(term, params, TARGET))


RULES = {
    "activity": lambda alpha: riemannian_sgd(0.02, alpha=alpha),
    "inverse_metric": lambda alpha: riemannian_sgd(1e-3, alpha=alpha, role="inverse_metric"),
    "accumulated_activity": lambda alpha: riemannian_sgd(
        0.02, phi=ro.phi.accumulated_activity(), alpha=alpha
    ),
    "secant_curvature": lambda alpha: riemannian_sgd(
        0.02, phi=ro.phi.secant_curvature(initial_phi=10.0), alpha=alpha
    ),
    "maintenance_energy": lambda alpha: riemannian_sgd(
        0.02, phi=ro.phi.maintenance_energy(power=0.5), alpha=alpha
    ),
    "conformal": lambda alpha: riemannian_sgd(0.02, momentum=0.5, alpha=alpha, conformal="tree"),
    "conformal leaf": lambda alpha: riemannian_sgd(0.02, alpha=alpha, conformal="leaf"),
    "adam in the frame": lambda alpha: adam_in_the_frame(0.02, alpha=alpha, eps_root=1e-8),
    "riemannian_adamw": lambda alpha: ro.riemannian_adamw(0.02, alpha=alpha),
    "normalised": lambda alpha: optax.chain(
        ro.compute_metric(ro.phi.unit_mean(ro.phi.activity()), alpha),
        ro.normalize_metric("neuron"),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(0.02),
    ),
    "injected": lambda alpha: optax.inject_hyperparams(ro.riemannian_sgd)(learning_rate=0.02, alpha=alpha),
}


def loss_after_training(rule, alpha, steps=4):
    """Train from zero weights; one gradient (that of the bias with target 0) is 0 all the time."""
    tx = rule(alpha)
    params = jax.tree.map(lambda t: jnp.zeros(t.shape, float), TARGET)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return loss(params)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("name", RULES)
def test_derivative_by_alpha_is_that_of_finite_differences(name, alpha):
    """In float64; at 0 too, where the metric switches phi off but not its derivative."""
    with jax.enable_x64(True):
        final = jax.jit(jax.value_and_grad(lambda alpha: loss_after_training(RULES[name], alpha)))
        value = jnp.asarray(alpha, jnp.float64)
        _, derivative = final(value)
        step = 1e-4 * max(1.0, alpha)
        difference = (final(value + step)[0] - final(value - step)[0]) / (2 * step)
        assert derivative.dtype == difference.dtype == jnp.float64
        assert np.isfinite(derivative)
        assert abs(derivative) > 1e-7
        np.testing.assert_allclose(derivative, difference, rtol=1e-5)


def test_alpha_is_learned():
    """Descent on alpha lowers the loss after training."""
    final = jax.jit(jax.value_and_grad(lambda log: loss_after_training(RULES["activity"], jnp.exp(log))))
    outer = optax.adam(0.3)
    log_alpha = jnp.array(1.0)
    state = outer.init(log_alpha)
    losses = []
    for _ in range(15):
        value, derivative = final(log_alpha)
        losses.append(float(value))
        updates, state = outer.update(derivative, state)
        log_alpha = optax.apply_updates(log_alpha, updates)
    assert losses[-1] < 0.95 * losses[0]


def test_vmap_over_alpha_equals_numbers():
    alphas = [0.0, 1.0, 3.0]
    together = jax.vmap(lambda alpha: loss_after_training(RULES["activity"], alpha))(jnp.array(alphas))
    alone = [loss_after_training(RULES["activity"], alpha) for alpha in alphas]
    chex.assert_trees_all_close(together, jnp.stack(alone), rtol=1e-6)
    assert len(set(np.asarray(together).tolist())) == 3


@pytest.mark.parametrize("gradient", [[0.0, 2.0], [1.0, 2.0]], ids=["an idle weight", "all move"])
@pytest.mark.parametrize("name", ["activity", "momentum_activity", "factored_activity"])
@pytest.mark.parametrize("conformal", [None, "leaf", "tree"])
def test_a_memory_is_learned_where_a_weight_has_no_gradient(name, conformal, gradient):
    """The slope of a root is infinite at 0; differences say what the derivative is."""
    gradients = jnp.array(gradient)

    def moved(decay):
        tx = ro.scale_by_metric(getattr(ro.phi, name)(decay=decay), 1.0, conformal=conformal)
        state = tx.init(gradients)
        for _ in range(3):
            updates, state = tx.update(gradients, state, gradients)
        return jnp.sum(updates**2)

    with jax.enable_x64(True):
        gradients = jnp.array(gradient)
        found, step = jax.grad(moved)(0.9), 1e-6
        expected = (moved(0.9 + step) - moved(0.9 - step)) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)

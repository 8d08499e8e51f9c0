"""Phis that need more than the gradient, with a test loop inside that supplies it."""

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro


def with_constants(phi, argument, value=1.0):
    """A phi whose extra argument is the same number at every leaf."""

    def update(updates, state, params=None, **extra_args):
        supplied = {argument: jax.tree.map(lambda u: jnp.asarray(value, jnp.real(u).dtype), updates)}
        return phi.update(updates, state, params, **supplied, **extra_args)

    return optax.GradientTransformationExtraArgs(phi.init, update)


def with_samples(phi):
    """A variational phi whose samples come from the extra argument ``obj_fn``."""

    def update(updates, state, params=None, *, obj_fn, **extra_args):
        places, noise = ro.phi.draw_perturbations(state, params, samples=2)
        # The size of the axis, because a tree without leaves does not tell.
        gradients = jax.vmap(jax.grad(lambda p: jnp.real(obj_fn(p))), axis_size=2)(places)
        gradients = jax.tree.map(jnp.conj, gradients)
        supplied = {"perturbed_gradients": gradients, "perturbations": noise}
        return phi.update(updates, state, params, **supplied, **extra_args)

    return optax.GradientTransformationExtraArgs(phi.init, update)


def with_identity_model(phi):
    """Gauss-Newton curvature of a model whose outputs are its weights, with ``obj_fn`` as the loss."""

    def update(updates, state, params=None, *, obj_fn, **extra_args):
        supplied = {"outputs_fn": lambda p: p, "outputs_loss_fn": lambda z: jnp.real(obj_fn(z))}
        return phi.update(updates, state, params, **supplied, **extra_args)

    return optax.GradientTransformationExtraArgs(phi.init, update)

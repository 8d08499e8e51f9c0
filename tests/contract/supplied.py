"""A phi that is given what it declares to need: one maker for each extra argument, none for any phi."""

import jax
import jax.numpy as jnp

import riemann_optax as ro

LOSSES = {"obj_fn", "outputs_fn", "perturbed_gradients", "value"}  # made from the loss function


def ones(updates):
    """A tree of the number 1, which stands for whatever a layer has seen."""
    return jax.tree.map(lambda u: jnp.ones([], jnp.real(u).dtype), updates)


def task_boundary(updates, state, params, obj_fn):
    """Each update is the first of a new task, of measured importance."""
    return {"task_boundary": True, "task_importance": jax.tree.map(abs, updates)}


def inputs(updates, state, params, obj_fn):
    return {"inputs": ones(updates)}


def activities(updates, state, params, obj_fn):
    return {"activities": ones(updates)}


def samples(updates, state, params, obj_fn):
    places, noise = ro.phi.draw_perturbations(state, params, samples=2)
    # The size of the axis, because a tree without leaves does not tell.
    gradients = jax.vmap(jax.grad(lambda p: jnp.real(obj_fn(p))), axis_size=2)(places)
    return {"perturbed_gradients": jax.tree.map(jnp.conj, gradients), "perturbations": noise}


def identity_model(updates, state, params, obj_fn):
    """A model whose outputs are its weights, with ``obj_fn`` as the loss."""
    return {"outputs_fn": lambda p: p, "outputs_loss_fn": lambda z: jnp.real(obj_fn(z))}


def loss(updates, state, params, obj_fn):
    return {"obj_fn": obj_fn}


def value(updates, state, params, obj_fn):
    return {"value": jnp.real(obj_fn(params))}


# What is left out is optional, and its absence is what most users try first.
MAKERS = {
    "activities": activities,
    "inputs": inputs,
    "obj_fn": loss,
    "outputs_fn": identity_model,
    "perturbed_gradients": samples,
    "task_boundary": task_boundary,
    "value": value,
}


def supplied(phi):
    """Return the phi with what it needs made from the update's own arguments and ``obj_fn``."""
    needs = getattr(phi, "needs", ())
    makers = [MAKERS[need] for need in needs if need in MAKERS]
    if not makers:
        return phi

    def update(updates, state, params=None, *, obj_fn=None, **extra_args):
        for make in makers:
            extra_args |= make(updates, state, params, obj_fn)
        return phi.update(updates, state, params, **extra_args)

    return ro.phi.Phi(phi.init, update, name=phi.name, needs=["obj_fn"] if needs_loss(phi) else [])


def needs_loss(phi):
    """Return whether the phi needs the loss as a function of the weights."""
    return bool(LOSSES & set(getattr(phi, "needs", ())))

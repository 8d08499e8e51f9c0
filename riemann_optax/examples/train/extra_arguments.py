"""What some phis need beside the gradient, made from the training step itself.

One pure function per extra argument (two arguments and the gradient for perturbed weights, which go
together), called only where the optimiser declares that it reads it. Nothing is a substitute: per-example
gradients are those of the examples, activities those of the neurons.

The trainer has a single task. For the phis that consolidate at task boundaries **a task is an epoch here**:
as many steps as it takes to see as many targets as the training part has. The boundaries are counted from the
phi's own state, so that a resumed run has them where the unbroken one has.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro
from riemann_optax._declare import needs_of
from riemann_optax._tree import find_states
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.models import Model, Parameters, models_with
from riemann_optax.examples.train.loop import ALWAYS_GIVEN, Step, Supply


def per_example_gradients(step: Step) -> dict[str, Any]:
    """Return the gradient of each example's loss, with a leading batch axis; of text, of each window's."""

    def loss(parameters: Parameters, example: jax.Array, target: jax.Array) -> jax.Array:
        return step.problem.losses(parameters, example[None], target[None])[0].mean()

    by_example = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))
    return {"per_example_gradients": by_example(step.training.parameters, step.inputs, step.targets)}


def output_norm_gradients(step: Step) -> dict[str, Any]:
    """Return the gradient of the squared norm of each example's logits, with a leading batch axis."""

    def squared_norm(parameters: Parameters, example: jax.Array) -> jax.Array:
        return jnp.sum(step.problem.model.apply(parameters, example[None]) ** 2)

    by_example = jax.vmap(jax.grad(squared_norm), in_axes=(None, 0))
    return {"output_norm_gradients": by_example(step.training.parameters, step.inputs)}


def perturbed_gradients(step: Step) -> dict[str, Any]:
    """Return the gradients at perturbed weights, their perturbations, and their mean as the gradient.

    The variational phis take the loss *summed* over the batch, so ``perturbed_gradients`` are those of the
    sum; ``grad`` is the mean over perturbations and targets, for which the published base rate
    ``eta * s0**2`` is a learning rate of ``eta * s0**2 * batch_size``: 0.115 for ``eta = 1``, ``s0 = 0.06``
    and batches of 32, without momentum.
    """

    def summed_loss(parameters: Parameters) -> jax.Array:
        return step.problem.losses(parameters, step.inputs, step.targets)[0].sum()

    places, noise = ro.phi.draw_perturbations(step.training.optimizer_state, step.training.parameters)
    # One after the other, for ten copies of a batch's activations at once may not fit.
    gradients = jax.lax.map(jax.grad(summed_loss), places)
    mean = jax.tree.map(lambda g: g.mean(0) / step.targets.size, gradients)
    return {"perturbed_gradients": gradients, "perturbations": noise, "grad": mean}


def gradients_at_previous_params(step: Step) -> dict[str, Any]:
    """Return the gradient of this batch at the weights of the step before (of the first step: not used)."""
    (state,) = find_states(step.training.optimizer_state, ro.phi.SecantCurvatureState)

    def mean_loss(parameters: Parameters) -> jax.Array:
        return step.problem.losses(parameters, step.inputs, step.targets)[0].mean()

    return {"gradients_at_previous_params": jax.grad(mean_loss)(state.previous_params)}


def task_boundary(step: Step) -> dict[str, Any]:
    """Return whether this step is the first of a new epoch, by the count in the consolidating state."""
    # An example of the training part is a target: an image, or a position of a text.
    steps_per_epoch = max(1, step.problem.dataset.num_train // step.targets.size)

    def consolidates(node: Any) -> bool:
        return hasattr(node, "consolidated")

    nodes = jax.tree.leaves(step.training.optimizer_state, is_leaf=consolidates)
    # Some states count from the last boundary and some from the start: this is right for both.
    (count,) = (node.count for node in nodes if consolidates(node))
    return {"task_boundary": (count > 0) & (count % steps_per_epoch == 0)}


def outputs_fn(step: Step) -> dict[str, Any]:
    """Return the logits of the batch as a function of the weights."""
    return {"outputs_fn": lambda parameters: step.problem.model.apply(parameters, step.inputs)}


def outputs_loss_fn(step: Step) -> dict[str, Any]:
    """Return the loss of the batch as a function of its logits."""

    def loss(logits: jax.Array) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, step.targets))

    return {"outputs_loss_fn": loss}


def inputs(step: Step) -> dict[str, Any]:
    """Return, at each kernel, the inputs of its layer, ``[batch, fan_in]``; at each bias the number 1."""
    layers = step.problem.model.observe("layer_inputs", step.training.parameters, step.inputs)

    def spread(signal: jax.Array, layer: Parameters) -> Parameters:
        return {name: signal if name == "kernel" else 1.0 for name in layer}

    return {"inputs": jax.tree.map(spread, layers, step.training.parameters)}


def activities(step: Step) -> dict[str, Any]:
    """Return, at each parameter, the activities of its layer's neurons, ``[batch, ..., neurons]``."""
    layers = step.problem.model.observe("layer_activities", step.training.parameters, step.inputs)

    def spread(signal: jax.Array, layer: Parameters) -> Parameters:
        return dict.fromkeys(layer, signal)

    return {"activities": jax.tree.map(spread, layers, step.training.parameters)}


# By the name of the extra argument, in the vocabulary of the package.
SUPPLIERS: dict[str, Supply] = {
    "activities": activities,
    "gradients_at_previous_params": gradients_at_previous_params,
    "inputs": inputs,
    "output_norm_gradients": output_norm_gradients,
    "outputs_fn": outputs_fn,
    "outputs_loss_fn": outputs_loss_fn,
    "per_example_gradients": per_example_gradients,
    "perturbations": perturbed_gradients,
    "perturbed_gradients": perturbed_gradients,
    "task_boundary": task_boundary,
}

# What a model must be able to tell of its layers.
OBSERVED = {"inputs": "layer_inputs", "activities": "layer_activities"}


def supply_for(transformation: optax.GradientTransformation, model: Model) -> Supply | None:
    """Return what makes the extra arguments of an optimiser in each step, None where it needs no more.

    Args:
      transformation: an optimiser, or a phi.
      model: the model to be trained.

    Returns:
      A function of the step, for :func:`riemann_optax.examples.train.loop.train`.

    Raises:
      InputError: where the trainer cannot make what is needed, or not with this model.

    Examples:
      >>> from riemann_optax.examples import data, datasets, models
      >>> model = models.build("mlp", datasets.load("digits"), seed=0)
      >>> supply_for(ro.phi.activity(), model) is None
      True
      >>> supply_for(ro.riemannian_sgd(1.0, phi=ro.phi.idbd()), model) is None
      False
    """
    needs = [need for need in needs_of(transformation, model.parameters) if need not in ALWAYS_GIVEN]
    for need in needs:
        if need not in SUPPLIERS:
            raise InputError(f"--phi: it reads the extra argument {need}, which the trainer does not make")
        signal = OBSERVED.get(need)
        if signal is not None and not model.observes(signal):
            able = " or ".join(models_with(signal))
            raise InputError(
                f"--phi: it reads the {need} of every layer, which this model does not tell: use --model "
                f"{able}, on images"
            )
    if not needs:
        return None
    suppliers = dict.fromkeys(SUPPLIERS[need] for need in needs)

    def supply(step: Step) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for supplier in suppliers:
            arguments |= supplier(step)
        return arguments

    return supply

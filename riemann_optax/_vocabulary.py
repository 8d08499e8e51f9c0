"""The extra arguments of ``update`` that this package knows: one vocabulary for all of its parts."""

from typing import Literal, NamedTuple

Kind = Literal["function", "vectors", "per_weight", "other"]


class ExtraArgument(NamedTuple):
    """An extra argument of ``update``: what it is, and how it is made from a loss function.

    Attributes:
      name: the keyword.
      kind: how it changes with coordinates. ``"function"`` of the parameters; ``"vectors"``, a tree linear in
        the gradient, with any number of leading axes; ``"per_weight"``, which belongs to single weights and
        has no meaning in other coordinates; ``"other"``, which has nothing to do with them.
      shape: what its leaves look like.
      made: an expression that makes it from ``loss(params, batch)``.

    Examples:
      >>> import riemann_optax as ro
      >>> argument = ro.phi.EXTRA_ARGUMENTS["per_example_gradients"]
      >>> argument.kind
      'vectors'
    """

    name: str
    kind: Kind
    shape: str
    made: str


# The one vocabulary of the package. ``value``, ``grad`` and ``value_fn`` are those of Optax's line searches.
EXTRA_ARGUMENTS: dict[str, ExtraArgument] = {
    argument.name: argument
    for argument in (
        ExtraArgument("value", "other", "a scalar: the loss of the batch", "loss(params, batch)"),
        ExtraArgument(
            "grad", "vectors", "a tree like the parameters: their gradient", "jax.grad(loss)(params, batch)"
        ),
        ExtraArgument(
            "value_fn",
            "function",
            "a function of the parameters: the loss of the batch",
            "lambda params: loss(params, batch)",
        ),
        ExtraArgument(
            "obj_fn",
            "function",
            "a function of the parameters: the loss of the batch",
            "lambda params: loss(params, batch)",
        ),
        ExtraArgument(
            "outputs_fn",
            "function",
            "a function of the parameters: the outputs of the model for the batch, an array or a tree",
            "lambda params: model(params, batch.inputs)",
        ),
        ExtraArgument(
            "outputs_loss_fn",
            "other",
            "a function of the outputs: the loss of the batch",
            "lambda outputs: loss_of_outputs(outputs, batch.targets)",
        ),
        ExtraArgument(
            "per_example_gradients",
            "vectors",
            "a tree like the parameters, with a leading axis of examples",
            "jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)",
        ),
        ExtraArgument(
            "output_norm_gradients",
            "vectors",
            "a tree like the parameters, with a leading axis of examples: the gradients of the squared norm "
            "of each example's outputs",
            "jax.vmap(jax.grad(squared_output_norm), in_axes=(None, 0))(params, batch)",
        ),
        ExtraArgument(
            "perturbed_gradients",
            "vectors",
            "a tree like the parameters, with a leading axis of samples: the gradients at perturbed weights",
            "jax.lax.map(jax.grad(lambda params: loss(params, batch)), places), with "
            "places, perturbations = riemann_optax.phi.draw_perturbations(state, params)",
        ),
        ExtraArgument(
            "perturbations",
            "vectors",
            "a tree like the parameters, with a leading axis of samples: the noise of the perturbed weights",
            "places, perturbations = riemann_optax.phi.draw_perturbations(state, params)",
        ),
        ExtraArgument(
            "gradients_at_previous_params",
            "vectors",
            "a tree like the parameters: the gradient of this batch at the parameters of the last update",
            "jax.grad(loss)(previous_params, batch)",
        ),
        ExtraArgument(
            "inputs",
            "per_weight",
            "a tree like the parameters: at each kernel the inputs of its layer, [batch, ..., fan_in], at "
            "each bias the number 1",
            "the activations before each layer",
        ),
        ExtraArgument(
            "activities",
            "per_weight",
            "a tree like the parameters: at each leaf the activities of its layer, [batch, ..., neurons]",
            "the activations after each layer",
        ),
        ExtraArgument(
            "task_boundary",
            "other",
            "one boolean: whether this update is the first of a new task",
            "step == first_step_of_the_task",
        ),
        ExtraArgument(
            "task_importance",
            "per_weight",
            "a tree like the parameters: the importance of each weight for the task that has ended",
            "a measure of your own",
        ),
    )
}

# What Optax's own transformations read, by the classes of their states: not all of them are public. The state
# of optax.scale_by_polyak, which reads the value, is empty and tells nothing.
OPTAX_NEEDS: dict[str, tuple[str, ...]] = {
    "HutchinsonState": ("obj_fn",),
    "MomoAdamState": ("value",),
    "MomoState": ("value",),
    "ReduceLROnPlateauState": ("value",),
    "ScaleByBacktrackingLinesearchState": ("value", "grad", "value_fn"),
    "ScaleByZoomLinesearchState": ("value", "grad", "value_fn"),
}

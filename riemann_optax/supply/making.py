"""One maker for each extra argument: from one evaluation of the loss to what a phi reads of it."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from riemann_optax import _check, _tree
from riemann_optax._vocabulary import EXTRA_ARGUMENTS
from riemann_optax.boundary import completed
from riemann_optax.phi import SecantCurvatureState, VariationalState, draw_perturbations
from riemann_optax.phi._state import check_coordinates
from riemann_optax.supply import links, taps
from riemann_optax.supply.arguments import (
    check_call,
    check_that_data_is_in_the_batch,
    has_axes,
    with_own_keys,
    without_old_keys,
)
from riemann_optax.supply.calls import Statistics, is_watched, single_examples
from riemann_optax.supply.checking import check_result, number_of_examples
from riemann_optax.supply.functional import intercepting
from riemann_optax.supply.recorder import Signal


class Options(NamedTuple):
    """What the makers may be told; see :func:`riemann_optax.value_and_grad`."""

    has_aux: bool = False
    chunk_size: int | None = None
    samples: int = 10
    num_terms: Callable[[Any], int] | int | None = None
    statistics: Statistics = "refuse"


class NoBatch(NamedTuple):
    """In the place of the batch of a loss that has its data from elsewhere."""


class Evaluation(NamedTuple):
    """A loss, and where it is to be evaluated.

    Attributes:
      loss_fn: the user's function.
      model: as a function of its parameters.
      batch: the data; :class:`NoBatch` where the loss takes none.
      arguments: further positional arguments of the loss.
      key: of its random numbers; None where it takes none.
      state: that of the optimiser; None where it was not given.
      options: see there.
      transformations: whose needs are met.
      named: arguments of the loss by name.
      companions: the objects of NNX among all these arguments, or None.
    """

    loss_fn: Callable[..., Any]
    model: Any
    batch: Any
    arguments: tuple[Any, ...]
    key: Any
    state: Any
    options: Options
    transformations: tuple[Any, ...] = ()
    named: Mapping[str, Any] = MappingProxyType({})
    companions: Any = None

    def is_partitioned(self) -> bool:
        """Return whether ``optax.partition`` or ``optax.masked`` keep a weight from a transformation."""
        params = self.model.params
        with _check.quiet():
            states = [jax.eval_shape(lambda p, tx=tx: tx.init(p), params) for tx in self.transformations]
        return any(map(_tree.has_masked, states))

    def loss_and_rest(self, params: Any, batch: Any = None, example: Any = None) -> tuple[Any, Any]:
        """Return the loss at parameters, and what comes of it beside.

        That is aux, the state of the model, and what has changed in its companions.
        """
        batch = self.batch if batch is None else batch
        further, keywords = self.arguments, dict(self.named)
        if self.key is not None:
            keywords["key"] = self.key
        if example is not None:
            kept = () if self.companions is None else self.companions.objects  # they have their own keys
            further, keywords = with_own_keys(self.loss_fn, further, keywords, example, kept)
        loss_fn = not_compiled(self.loss_fn) if is_watched() else self.loss_fn
        arguments = further if isinstance(batch, NoBatch) else (batch, *further)
        check_call(loss_fn, (None, *arguments), keywords)

        copies = None if self.companions is None else self.companions.copies(example)
        if self.companions is not None:
            arguments, keywords = self.companions.given((arguments, keywords), copies)

        def loss(model: Any) -> Any:
            return loss_fn(model, *arguments, **keywords)

        with intercepting():
            result, rest = self.model.evaluate(loss, params, example)
        value, aux = check_result(result, self.options.has_aux)
        changed = None if self.companions is None else self.companions.changed(copies)
        return value, (aux, (rest, changed))

    def loss(self, params: Any, batch: Any = None, example: Any = None) -> Any:
        """Return the loss at parameters."""
        return self.loss_and_rest(params, batch, example)[0]

    def outputs(self, params: Any, batch: Any = None, example: Any = None) -> Any:
        """Return the outputs of the model at parameters."""
        with taps.watch_outputs() as watcher:
            self.loss(params, batch, example)
        return watcher.only()


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what ``jax.jit`` was given: JAX would not run it again to have its layers seen."""
    while hasattr(function, "lower") and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def as_optax(gradients: Any) -> Any:
    """Return gradients with those of complex weights conjugated."""
    return jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, gradients)


def _gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: as_optax(jax.grad(function)(*arguments))


def _value_fn(evaluation: Evaluation) -> Callable[..., Any]:
    def value_fn(params: Any, **others: Any) -> Any:
        del others
        return evaluation.loss(completed(params, evaluation.model.params))

    # Optax's line searches insist that their objective takes every extra argument, by its name.
    names = [inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    names += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in EXTRA_ARGUMENTS
    ]
    value_fn.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    return value_fn


def loss_as_function(evaluation: Evaluation) -> dict[str, Any]:
    """Return the loss of the batch as a function of the parameters, by both of its names."""
    value_fn = _value_fn(evaluation)
    return {"value_fn": value_fn, "obj_fn": value_fn}


def outputs_as_functions(evaluation: Evaluation) -> dict[str, Any]:
    """Return the outputs as a function of the parameters, and the loss as a function of the outputs."""
    params = evaluation.model.params

    def outputs_loss_fn(outputs: Any) -> Any:
        with taps.watch_outputs([outputs]) as watcher:
            value = evaluation.loss(params)
        watcher.only()
        return value

    def outputs_fn(weights: Any) -> Any:
        return evaluation.outputs(completed(weights, params))

    return {"outputs_fn": outputs_fn, "outputs_loss_fn": outputs_loss_fn}


def _explicit_spec(array: Any) -> tuple[Any, ...]:
    """Return how the type of an array says that its axes are spread; Auto axes do not say it."""
    return tuple(jax.typeof(array).sharding.spec)


_EXAMPLES = "riemann_optax_examples"


def _by_example(evaluation: Evaluation, function: Callable[[Any, Any, Any], Any]) -> Any:
    """Map ``function(params, batch_of_one, number)`` over the examples, differentiated."""
    params, size = evaluation.model.params, number_of_examples(evaluation.batch)
    others = without_old_keys(evaluation.loss_fn, evaluation.arguments, evaluation.named)
    if evaluation.companions is not None:
        others = evaluation.companions.given(others, [None] * len(evaluation.companions.objects))
    check_that_data_is_in_the_batch(others, size)
    leaves, structure = jax.tree.flatten(evaluation.batch)
    mapped = [leaf for leaf in leaves if has_axes(leaf)]

    def gradient(number: Any, parts: list[Any]) -> Any:
        rest = iter(parts)
        one = [jnp.expand_dims(next(rest), 0) if has_axes(leaf) else leaf for leaf in leaves]
        with single_examples(evaluation.options.statistics):
            return _gradient(function)(params, jax.tree.unflatten(structure, one), number)

    explicit = any(any(_explicit_spec(leaf)[:1]) for leaf in mapped)
    if evaluation.options.chunk_size is None:
        # The place on the axis, not an array of numbers: its sharding could be another than the batch's.
        def of_one(parts: list[Any]) -> Any:
            return gradient(jax.lax.axis_index(_EXAMPLES), parts)

        try:
            return jax.vmap(of_one, axis_name=_EXAMPLES)(mapped)
        except Exception as error:
            if explicit and "shard" in str(error).lower():
                raise ValueError(
                    "the gradient of a single example: the mesh axis of the batch is no axis of its arrays, "
                    "and the loss must not name it (out_sharding, reshard). Leave that to JAX, use a mesh "
                    "with Auto axes, or a phi that reads no per-example gradients."
                ) from error
            raise
    if explicit:
        raise ValueError(
            "chunk_size: the examples of the batch are spread over the devices of an Explicit mesh, which do "
            "not take them in chunks: leave chunk_size out, or use a mesh with Auto axes."
        )
    rows = jnp.arange(size), mapped
    return jax.lax.map(lambda row: gradient(*row), rows, batch_size=min(evaluation.options.chunk_size, size))


def per_example_gradients(evaluation: Evaluation) -> dict[str, Any]:
    """Return the gradient of the loss of each example alone."""
    return {"per_example_gradients": _by_example(evaluation, evaluation.loss)}


def output_norm_gradients(evaluation: Evaluation) -> dict[str, Any]:
    """Return the gradient of the squared norm of each example's outputs."""

    def squared_norm(params: Any, batch: Any, example: Any) -> Any:
        outputs = jax.tree.leaves(evaluation.outputs(params, batch, example))
        return sum(jnp.sum(jnp.square(jnp.abs(part))) for part in outputs)

    return {"output_norm_gradients": _by_example(evaluation, squared_norm)}


def perturbed_gradients(evaluation: Evaluation) -> dict[str, Any]:
    """Return gradients of the summed loss at perturbed weights, their perturbations, and their mean."""
    params, options = evaluation.model.params, evaluation.options
    state = _phi_state(evaluation, "perturbed_gradients", VariationalState)
    places, noise = draw_perturbations(state, params, options.samples)
    number = options.num_terms
    if number is None:
        terms = number_of_examples(evaluation.batch)
    else:
        terms = number(evaluation.batch) if callable(number) else number
    # One after the other by default: that many copies of a batch's activations at once may not fit.
    gradient_at = _gradient(evaluation.loss)
    means = jax.lax.map(
        lambda place: gradient_at(completed(place, params)), places, batch_size=options.chunk_size
    )
    summed = jax.tree.map(lambda g: terms * g, means)
    gradient = jax.tree.map(lambda g: g.mean(0), means)
    return {"perturbed_gradients": summed, "perturbations": noise, "grad": gradient}


def gradients_at_previous_params(evaluation: Evaluation) -> dict[str, Any]:
    """Return the gradient of this batch at the weights of the update before (of the first one: not used)."""
    params = evaluation.model.params
    state = _phi_state(evaluation, "gradients_at_previous_params", SecantCurvatureState)
    # What optax.partition keeps from this phi is where it is now: the change is that of phi's own weights.
    leaves = jax.tree.leaves(completed(_tree.bare(state.previous_params), params))
    if [leaf.shape for leaf in leaves] != [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]:
        raise ValueError(
            "gradients_at_previous_params: secant_curvature's state does not have the shapes of the "
            "parameters: keep it outside of low_precision_state; of a Flax NNX module give value_and_grad "
            "the same wrt as nnx.Optimizer."
        )
    # Under master_weights the state has wide weights, of which the model saw the narrow ones.
    pairs = zip(leaves, jax.tree.leaves(params), strict=True)
    narrow = [leaf.astype(_tree.dtype_of(own)) for leaf, own in pairs]
    previous = jax.tree.unflatten(jax.tree.structure(params), narrow)
    return {"gradients_at_previous_params": _gradient(evaluation.loss)(previous)}


def inputs(evaluation: Evaluation) -> dict[str, Any]:
    """Return what each weight multiplies, in the forward pass of this batch."""
    return {"inputs": _signals(evaluation, "inputs")}


def activities(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the neuron of each weight sends on, in the forward pass of this batch."""
    examine = links.examination(evaluation.transformations, evaluation.model.params)
    return {"activities": _signals(evaluation, "activities", examine)}


def _signals(evaluation: Evaluation, signal: Signal, examine: Any = None) -> Any:
    return taps.record(signal, evaluation.model.params, evaluation.loss, evaluation.is_partitioned, examine)


def _phi_state(evaluation: Evaluation, need: str, kind: type[Any]) -> Any:
    """Return the only state of a kind in the optimiser's.

    Raises:
      ValueError: where the state was not given, holds none, several, or one in other coordinates.
    """
    if evaluation.state is None:
        raise ValueError(
            f"{need} depends on the optimiser's state: give it to the step, step(model, batch, state=...): "
            "an nnx.Optimizer, a TrainState or the state of the transformation."
        )
    state = _tree.bare(getattr(evaluation.state, "opt_state", evaluation.state))
    check_coordinates(need, state, kind)
    # Of several groups of optax.partition those without a weight have states all the same.
    found = [one for one in _tree.find_states(state, kind) if _holds_weights(one)]
    if len(found) > 1:
        raise ValueError(
            f"{need}: {len(found)} groups of this optimiser have a {kind.__name__} of their own, and one is "
            "needed: give all weights that have such a phi the same label."
        )
    if not found:
        raise ValueError(
            f"{need}: the state holds no {kind.__name__}, and one is needed: give the step the state of this "
            "optimiser, and build needs from the same."
        )
    return found[0]


def _holds_weights(state: Any) -> bool:
    """Return whether a phi's state has anything beside its counter and its random key."""
    return bool(jax.tree.leaves(state._replace(**dict.fromkeys({"count", "key"} & set(state._fields)))))


# By the name of the extra argument. What is not here is no function of a loss: the step passes it on.
MAKERS: dict[str, Callable[[Evaluation], dict[str, Any]]] = {
    "value_fn": loss_as_function,
    "obj_fn": loss_as_function,
    "outputs_fn": outputs_as_functions,
    "outputs_loss_fn": outputs_as_functions,
    "per_example_gradients": per_example_gradients,
    "output_norm_gradients": output_norm_gradients,
    "perturbed_gradients": perturbed_gradients,
    "perturbations": perturbed_gradients,
    "gradients_at_previous_params": gradients_at_previous_params,
    "inputs": inputs,
    "activities": activities,
}

"""What a loss function takes and returns, and who accumulates, checked before JAX differentiates it."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax.phi import SecantCurvatureState, VariationalState
from riemann_optax.wrappers import SoftResetsState

# What stands beside the gradient of its own batch, and is false beside the mean over several.
_OF_ONE_BATCH = {
    "gradients_at_previous_params": SecantCurvatureState,
    "perturbed_gradients": VariationalState,
    "obj_fn": SoftResetsState,
}


def check_loss_function(loss_fn: Any) -> None:
    """Raise ``TypeError`` unless this can be called."""
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function loss_fn(model, batch), got {type(loss_fn).__name__}.")


def check_call(loss_fn: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raise ``TypeError`` unless the loss function takes these arguments."""
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # a callable that does not tell
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        remedy = (
            "call step(model, batch, ...) with all data in one batch, such as a tuple (inputs, labels), and "
            "behind it what is no data"
        )
        key = signature.parameters.get("key")
        if "key" in keywords and key is None:
            remedy = "add an argument key to it, or give the step none"
        elif "key" not in keywords and key is not None:
            remedy = "call step(model, batch, key=jax.random.key(...)), with another key at each step"
        raise TypeError(
            f"loss_fn is called with {len(arguments)} arguments{' and a key' if 'key' in keywords else ''}, "
            f"loss_fn(model, batch, ...), and does not take them ({error}): {remedy}."
        ) from None


def number_of_examples(batch: Any) -> int:
    """Return the length of the first axis of a batch.

    Raises:
      ValueError: where its arrays differ in it, or there are none.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
    if not lengths:
        raise ValueError(
            f"batch: a {type(batch).__name__} without arrays, and the number of examples is needed: "
            "give the step a tree of arrays, with the examples along the first axis of each."
        )
    if len(lengths) != 1:
        raise ValueError(
            f"batch: its arrays have first axes of lengths {sorted(lengths)}: examples lie along "
            "the first axis of all of them (numbers without axes are shared); give what else the loss "
            "needs as further arguments of the step."
        )
    return int(lengths.pop())


def check_that_data_is_in_the_batch(arguments: Mapping[Any, Any], size: int) -> None:
    """Raise ``ValueError`` where a further argument of the loss looks like data of ``size`` examples.

    The batch alone is taken apart: each example would meet the labels of all.
    """
    for name, argument in arguments.items():
        lengths = {leaf.shape[0] for leaf in jax.tree.leaves(argument) if jnp.ndim(leaf)}
        if size > 1 and lengths == {size}:
            raise ValueError(
                f"further argument {name} of the loss has arrays of {size} rows, as many as the batch has "
                "examples, and gradients of single examples take apart the batch alone: give the step all "
                "data in one batch, such as step(model, (inputs, labels)), and let loss_fn take it so. If it "
                "has that many rows by chance, let loss_fn close over it."
            )


def check_accumulation(transformation: Any, params: Any, needs: Iterable[str]) -> None:
    """Raise ``ValueError`` where ``optax.MultiSteps`` would give an inner one what is of another batch."""
    kinds = {need: _OF_ONE_BATCH[need] for need in needs if need in _OF_ONE_BATCH}
    if not kinds:
        return
    with _check.quiet():
        state = jax.eval_shape(lambda p: transformation.init(p), params)
    for several in _tree.find_states(state, optax.MultiStepsState):
        for need, kind in kinds.items():
            if _tree.find_states(several.inner_opt_state, kind):
                raise ValueError(
                    f"{need}: optax.MultiSteps accumulates gradients, and passes on {need} of the last batch "
                    "alone: give the step all batches as one, without MultiSteps, or accumulate both in the "
                    "loop, and update once."
                )


def check_result(result: Any, has_aux: bool) -> Any:
    """Return ``(value, aux)`` of a loss function's result.

    Raises:
      TypeError: where it is no such result.
    """
    aux = None
    if has_aux:
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise TypeError(
                f"loss_fn must return (value, aux) where has_aux=True, got {_words(result)}: return both, or "
                "leave has_aux out."
            )
        result, aux = result
    elif isinstance(result, tuple | list):
        raise TypeError(
            f"loss_fn must return one number, got {_words(result)}: give value_and_grad has_aux=True where "
            "it returns (value, aux)."
        )
    if not hasattr(result, "dtype") and not isinstance(result, float):
        raise TypeError(f"loss_fn must return one number, got {_words(result)}: does it end with return?")
    if jnp.ndim(result):
        raise TypeError(
            f"loss_fn must return one number, got {_words(result)}: return the mean over the examples."
        )
    if not jnp.issubdtype(jnp.result_type(result), jnp.floating):
        raise TypeError(
            f"loss_fn must return a real floating-point number, got {_words(result)}: it cannot be "
            "differentiated."
        )
    return result, aux


def _words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "dtype"):
        return f"an array of shape {jnp.shape(value)} and dtype {value.dtype}"
    return repr(value) if value is None else f"a {type(value).__name__}"

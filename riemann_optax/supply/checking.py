"""What a loss function is and returns, and who accumulates, checked before JAX differentiates it."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax.phi import SecantCurvatureState, VariationalState
from riemann_optax.supply.arguments import has_axes
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


def number_of_examples(batch: Any) -> int:
    """Return the length of the first axis of a batch.

    Raises:
      ValueError: where its arrays differ in it, or there are none.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(batch) if has_axes(leaf)}
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

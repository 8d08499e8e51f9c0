"""The further arguments of a loss: which of the step's they are, and what a single example has of them."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _check
from riemann_optax._vocabulary import EXTRA_ARGUMENTS

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def has_axes(leaf: Any) -> bool:
    """Return whether this is an array with axes: a batch may hold numbers, and functions too."""
    return bool(getattr(leaf, "ndim", 0))


def parameters_of(loss_fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a loss function; none for a callable that does not tell."""
    signature = _signature(loss_fn)
    return {} if signature is None else signature.parameters


def _signature(loss_fn: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(loss_fn)
    except (TypeError, ValueError):
        return None


def _takes_all(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def of_the_loss(
    loss_fn: Callable[..., Any], given: int, state: Any, passed_on: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the arguments by name that are the loss function's from those of the optimiser.

    Args:
      loss_fn: the user's function. Of one with ``**kwargs`` are all that the vocabulary does not have.
      given: how many arguments it gets by place.
      state: what the step was given by that name.
      passed_on: what it was given by other names.

    Raises:
      ValueError: for a name that both may mean.
    """
    parameters = parameters_of(loss_fn)
    named = {name for name, one in parameters.items() if one.kind in _NAMED}
    filled = [name for name, one in parameters.items() if one.kind in _BY_PLACE][:given]
    if state is not None and "state" in named and "state" not in filled and _is_required(parameters["state"]):
        raise ValueError(
            "state is an argument of loss_fn, and the step's own name for the optimiser's state: give the "
            "loss its state by place, step(model, batch, its_state, state=opt_state), or call it by another "
            "name."
        )
    own, guessed = {}, []
    for name, value in passed_on.items():
        if name in named and name in EXTRA_ARGUMENTS:
            raise ValueError(
                f"{name} is an argument of loss_fn, and an extra argument of optimisers: call the loss's by "
                "another name."
            )
        if name in named or (_takes_all(parameters) and name not in EXTRA_ARGUMENTS):
            own[name] = value
            guessed += [name] * (name not in named)
    rest = {name: value for name, value in passed_on.items() if name not in own}
    _warn_of_misspellings([*rest, *guessed], named)
    return own, rest


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _warn_of_misspellings(passed_on: Iterable[str], named: Iterable[str]) -> None:
    """Warn of a name that nearly is one of the loss's or the vocabulary's: an optimiser ignores others."""
    known = dict.fromkeys(named, "which loss_fn does not have")
    known |= dict.fromkeys(EXTRA_ARGUMENTS, "which no phi of riemann_optax reads")
    for name in passed_on:
        similar = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if similar and name not in EXTRA_ARGUMENTS:
            _check.warn(
                f"the step passes on an extra argument {name}, {known[similar[0]]}: is it {similar[0]}?"
            )


def check_call(loss_fn: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raise ``TypeError`` unless the loss function takes these arguments."""
    signature = _signature(loss_fn)
    if signature is None:
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise TypeError(
            f"loss_fn is called with {len(arguments)} arguments{' and a key' if 'key' in keywords else ''}, "
            f"loss_fn(model, batch, ...), and does not take them ({error}): "
            f"{_remedy(signature.parameters, arguments, keywords)}."
        ) from None


def _remedy(
    parameters: Mapping[str, inspect.Parameter], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> str:
    """Return what to do where a loss function does not take what it is called with."""
    places = [name for name, one in parameters.items() if one.kind in _BY_PLACE]
    required = [
        name for name, one in parameters.items() if one.kind in {*_NAMED, *_BY_PLACE} and _is_required(one)
    ]
    missing = [name for name in required if name not in places[: len(arguments)] and name not in keywords]
    if "key" in keywords and "key" not in parameters and not _takes_all(parameters):
        random = [name for name in missing if _is_called_key(name)]
        if random:
            return (
                f"call its argument {random[0]} key, or give that by its own name, step(model, batch, "
                f"{random[0]}=...)"
            )
        if not missing:
            return "add an argument key to it, or give the step none"
    if "key" in missing:
        return "call step(model, batch, key=jax.random.key(...)), with another key at each step"
    if missing:
        return (
            f"give the step {' and '.join(missing)} behind the batch, or by name; if that is data, let "
            "loss_fn take all data in one batch, such as a tuple (inputs, labels), and take it apart"
        )
    if len(places) < len(arguments) == 2:
        return "it takes the model alone: give it an argument for the batch, or give the step none"
    return (
        "call step(model, batch, ...) with all data in one batch, such as a tuple (inputs, labels), and "
        "behind it what is no data"
    )


def check_that_data_is_in_the_batch(arguments: Mapping[Any, Any], size: int) -> None:
    """Raise ``ValueError`` where a further argument of the loss looks like data of ``size`` examples.

    The batch alone is taken apart: each example would meet the labels of all. Labels are an array, or arrays
    in a container; what is nested deeper is parameters or statistics, with as many units by chance.
    """
    for name, argument in arguments.items():
        leaves = jax.tree_util.tree_leaves_with_path(argument)
        near = [leaf for path, leaf in leaves if len(path) <= 1]
        if size > 1 and {leaf.shape[0] for leaf in near if has_axes(leaf)} == {size}:
            raise ValueError(
                f"further argument {name} of the loss has arrays of {size} rows, as many as the batch has "
                "examples, and gradients of single examples take apart the batch alone: give the step all "
                "data in one batch, such as step(model, (inputs, labels)), and let loss_fn take it so. If it "
                "has that many rows by chance, let loss_fn close over it, or give it in a dictionary of "
                "dictionaries, as statistics are."
            )


def with_own_keys(
    loss_fn: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    example: Any,
    kept: Sequence[Any] = (),
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return further arguments in which all random keys are one example's own.

    Args:
      loss_fn: whose arguments they are; one that is called a key or a ``rng`` may be of the old kind, a few
        numbers of 32 bits, which nothing else tells from data.
      arguments: by place, behind model and batch.
      named: by name.
      example: its number, traced.
      kept: objects among them that are left as they are.
    """

    def own(name: str, argument: Any) -> Any:
        def fold(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray):
                return leaf
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return folded(leaf, example)
            return jax.random.fold_in(leaf, example) if _is_old_key(name, leaf) else leaf

        return jax.tree.map(fold, argument, is_leaf=lambda node: any(node is one for one in kept))

    names = _names(loss_fn, len(arguments))
    by_place = tuple(own(name, argument) for name, argument in zip(names, arguments, strict=True))
    return by_place, {name: own(name, argument) for name, argument in named.items()}


def without_old_keys(
    loss_fn: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[Any, Any]:
    """Return further arguments by number or name, without keys of the old kind, which may look like data."""
    names = dict(enumerate(_names(loss_fn, len(arguments)), start=1)) | {name: name for name in named}
    every = dict(enumerate(arguments, start=1)) | dict(named)
    return {at: one for at, one in every.items() if not _is_old_key(names[at], one)}


def folded(keys: Any, number: Any) -> Any:
    """Return random keys that a number changes: one, or an array of them, as stacked layers have."""
    if not keys.ndim:
        return jax.random.fold_in(keys, number)
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys.reshape(-1)).reshape(keys.shape)


def _names(loss_fn: Callable[..., Any], count: int) -> list[str]:
    """Return what a loss calls its arguments by place behind model and batch; empty where it does not."""
    names = [name for name, one in parameters_of(loss_fn).items() if one.kind in _BY_PLACE][2:]
    return [*names[:count], *[""] * (count - len(names))]


def _is_called_key(name: str) -> bool:
    return re.search(r"(^|_)(key|rng|prng|seed)s?($|_)", name.lower()) is not None


def _is_old_key(name: str, leaf: Any) -> bool:
    """Whether this is a key of the old kind: two numbers, or four of the generator that is called rbg."""
    shape = getattr(leaf, "shape", None)
    return _is_called_key(name) and shape in ((2,), (4,)) and bool(leaf.dtype == np.uint32)

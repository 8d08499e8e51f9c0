"""What every module checks of its arguments, before a run and in one wording."""

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax._tree import arrays, leaf_name

_BETWEEN = {"riemann_optax", "optax", "flax", "jax", "contextlib", "functools"}


def check_choice(argument: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def is_concrete_number(value: Any) -> bool:
    """Return whether ``value`` is a Python or NumPy number, readable without waiting for a device."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def check_number(
    argument: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise ``ValueError`` for a concrete number outside its interval; arrays and traced values pass.

    What is neither a number nor an array raises ``TypeError``.
    """
    if not is_concrete_number(value):
        if not hasattr(value, "dtype"):
            raise TypeError(f"{argument} must be a number, got {value!r}.")
        if np.size(value) != 1:
            raise ValueError(f"{argument} must be a single number, got an array of shape {np.shape(value)}.")
        return
    inside = (value > low if low_open else value >= low) and (value < high if high_open else value <= high)
    if not (inside and math.isfinite(value)):
        interval = (
            f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open or high == math.inf else ']'}"
        )
        raise ValueError(f"{argument} must be a finite number in {interval}, got {value!r}.")


def check_fixed_number(argument: str, value: Any, **interval: Any) -> None:
    """Raise an error as :func:`check_number` does, and for an array: programs depend on the value."""
    check_number(argument, value, **interval)
    if not is_concrete_number(value):
        raise ValueError(f"{argument} must be a number of Python, got {value!r}{injected(argument, value)}.")


def check_decay(decay: Any, argument: str = "decay", state_dtype: Any = None) -> None:
    """Raise ``ValueError`` for a concrete decay outside [0, 1), also if it is 1 in the dtype of a number.

    And for one whose mean would stall in the dtype that the state was given.
    """
    check_number(argument, decay, low=0.0, high=1.0, high_open=True)
    if is_concrete_number(decay) and np.asarray(decay, jnp.result_type(float)) == 1:
        raise ValueError(f"{argument} is {decay!r}, which float32 rounds to 1: give at most 1 - 1e-7.")
    if state_dtype is not None:
        check_state_dtype(state_dtype)
        check_mean_moves(argument, decay, "state_dtype", state_dtype)


def check_schedulable(argument: str, value: Any) -> None:
    """Raise an error unless ``value`` is a schedule or a number that is not negative."""
    if not callable(value):
        check_number(argument, value, low=0.0)
        if is_concrete_number(value) and float(value) > float(np.finfo(jnp.result_type(float)).max):
            raise ValueError(f"{argument} is {value!r}, which is infinite in {jnp.result_type(float)}.")


def check_count(argument: str, value: Any, low: int = 1) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least ``low``."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
        raise ValueError(
            f"{argument} must be an integer of at least {low}, got {value!r}{injected(argument, value)}."
        )


def injected(argument: str, value: Any) -> str:
    """Return what an error says of an array in the place of something that is no number."""
    if not isinstance(value, jax.Array):
        return ""
    return (
        "; optax.inject_hyperparams makes arrays of numbers and calls functions as schedules: name "
        f'"{argument}" in its static_args'
    )


def mask_of_decay(mask: Any) -> Any:
    """Return a mask of the leaves that decay; one boolean becomes a function that refuses to mean a tree.

    ``optax.inject_hyperparams`` calls a mask that is a function as a schedule, at the count of updates, and
    passes on the one boolean that this returns: nothing would decay, or all.
    """
    if not isinstance(mask, bool | np.bool_ | jax.Array):
        return mask

    def of_one_leaf(params: Any) -> Any:
        if not jax.tree_util.treedef_is_leaf(jax.tree.structure(params)):
            raise ValueError(
                f"mask must be a tree of booleans or a function of the parameters, got {mask!r}; "
                "optax.inject_hyperparams calls functions as schedules: name "
                '"mask" in its static_args.'
            )
        return mask

    return of_one_leaf


def check_real_dtype(argument: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` names a real floating-point dtype."""
    try:
        dtype = None if value is None or isinstance(value, jax.Array) else jnp.dtype(value)
    except TypeError:  # no dtype at all
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = f"{dtype or repr(value)}{injected(argument, value)}"
        raise ValueError(f"{argument} must be a real floating-point dtype, got {got}.")


def check_same_structure(tree: Any, reference: Any, argument: str, reference_name: str, remedy: str) -> None:
    """Raise ``ValueError`` that names the first leaf in which ``tree`` and ``reference`` differ."""
    shapes = {path: jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    expected = {path: jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(reference)}
    for path, shape in expected.items():
        if path not in shapes:
            raise ValueError(f"{argument} lacks {leaf_name(path)} of {reference_name}: {remedy}")
        if shapes[path] != shape:
            raise ValueError(
                f"{argument} has shape {shapes[path]} where {leaf_name(path)} of {reference_name} "
                f"has shape {shape}: {remedy}"
            )
    for path in shapes:
        if path not in expected:
            raise ValueError(f"{argument} has {leaf_name(path)}, which {reference_name} lacks: {remedy}")


def check_gradients(updates: Any, params: Any) -> None:
    """Raise ``ValueError`` unless the gradients have the leaves of the parameters."""
    check_same_structure(
        updates,
        params,
        "the tree of gradients",
        "params",
        "pass the gradients and the parameters of the same model, in this order, with None in both for what "
        "is not trained.",
    )


def check_mean_moves(argument: str, decay: Any, dtype_argument: str, dtype: Any) -> None:
    """Raise ``ValueError`` if a known decay moves a mean by less than a unit in the last place of 1."""
    if dtype is None or not is_concrete_number(decay):
        return
    unit = float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    if 1 - float(decay) < unit:
        raise ValueError(
            f"{argument}={float(decay):g}: a running mean in {jnp.dtype(dtype)} stalls, as what is new is "
            f'rounded off: keep it below {1 - unit:.4g}, or give {dtype_argument}="float32".'
        )


def check_flag(argument: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a boolean."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{argument} must be True or False, got {value!r}{injected(argument, value)}.")


def require_params(params: Any, name: str) -> Any:
    """Return ``params``; where they are missing raise Optax's own error, with the name of who needs them."""
    if params is None:
        raise ValueError(f"{name}: {_missing_params()}")
    return arrays(params)


def _missing_params() -> str:
    """Return what Optax says where ``params`` are missing; the sentence has no public name of its own."""
    try:
        optax.add_decayed_weights(1.0).update({}, optax.EmptyState(), None)
    except ValueError as error:
        return str(error)
    return "update needs params."


def check_names(argument: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a sequence of names; a single string is none."""
    if not isinstance(value, tuple | list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{argument} must be a tuple of names, got {value!r}.")


def check_transformation(argument: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a gradient transformation."""
    if not isinstance(value, optax.GradientTransformation):
        if isinstance(getattr(value, "tx", None), optax.GradientTransformation):
            raise TypeError(
                f"{argument} must be an optax.GradientTransformation, got {type(value).__name__}: pass its "
                "tx."
            )
        if callable(getattr(value, "gradient_transformation", None)):  # of optax.MultiSteps
            raise TypeError(
                f"{argument} must be an optax.GradientTransformation, got {type(value).__name__}: pass what "
                "its method gradient_transformation() returns."
            )
        raise TypeError(
            f"{argument} must be an optax.GradientTransformation (such as riemann_optax.phi.activity()), "
            f"got {value!r}: a function that makes one has to be called{injected(argument, value)}."
        )


def transformation(argument: str, value: Any) -> optax.GradientTransformation:
    """Return a gradient transformation, also of ``optax.MultiSteps``; raise ``TypeError`` for all else."""
    make = getattr(value, "gradient_transformation", None)
    value = make() if callable(make) else value
    check_transformation(argument, value)
    return value


def check_state_dtype(state_dtype: Any, argument: str = "state_dtype", squares: bool = False) -> None:
    """Raise ``ValueError`` unless ``state_dtype`` is None or a real floating-point dtype.

    Warn of one in which the ``squares`` of usual gradients are 0.
    """
    if state_dtype is None:
        return
    check_real_dtype(argument, state_dtype)
    least = float(jnp.finfo(state_dtype).smallest_subnormal)  # type: ignore[no-untyped-call]
    if squares and least > 1e-30:
        warn(
            f"{argument}={jnp.dtype(state_dtype)} has no numbers below {least:.1g}, where the squares of "
            f"gradients below {least**0.5:.1g} are: they are rounded away, and steps are too long. Give "
            "bfloat16, or use riemann_optax.low_precision_state, which keeps a scale."
        )


def check_key(key: Any) -> None:
    """Raise ``TypeError`` unless ``key`` is a random key, typed or of the older kind, or an integer seed."""
    old = getattr(key, "dtype", None) == jnp.uint32 and np.shape(key) != ()
    new = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (isinstance(key, int | np.integer) or old or new):
        raise TypeError(
            "key must be a random key (jax.random.key) or an integer seed, "
            f"got {key!r}{injected('key', key)}."
        )


def check_share(argument: str, value: Any) -> None:
    """Raise ``ValueError`` for a concrete share outside [0, 1]."""
    check_number(argument, value, low=0.0, high=1.0)


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Make no warnings: of a state that the package makes in the abstract the user has been warned."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def warn(message: str) -> None:
    """Warn at the line of whoever has called this package, straight or through Optax, Flax or JAX."""
    if _quiet.get():
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)

"""The phis that the trainer knows by name: every public one, and a few made of them.

A phi whose arguments all have defaults is known by its own name, with the first line of its docstring for
``--phi help``. The tables below say only where the trainer wants something else. What a phi needs beside the
gradient and the weights it declares itself, and :func:`riemann_optax.value_and_grad` makes it.

A phi of one's own has the name ``module:function``: a function without required arguments that returns it, in
a module that Python can import.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import optax

import riemann_optax as ro
from riemann_optax.examples.errors import InputError


class Phi(NamedTuple):
    """An entry of :data:`PHIS`.

    Attributes:
      factory: makes the phi.
      summary: one line for ``--phi help``.
      alpha: the default of ``--alpha`` in ``E = 1 + alpha * phi``, at which the phi is what its source
        describes.
      sized_like_gradient: whether phi is a running size of the gradient, so that dividing by it gives Adam's
        units of rate.
    """

    factory: Callable[[], optax.GradientTransformation]
    summary: str
    alpha: float = 1.0
    sized_like_gradient: bool = False


def plasticity_and_energy() -> optax.GradientTransformation:
    """Activity plus maintenance energy, each of mean one: the paper's own reading of phi."""
    parts = (ro.phi.activity(decay=0.97), ro.phi.maintenance_energy())
    return ro.phi.weighted_sum(*[ro.phi.unit_mean(part) for part in parts])


def sparse_change() -> optax.GradientTransformation:
    """Multiplicative geometry around the first weights: few weights change, each by much."""
    return ro.phi.multiplicative_geometry(eps=0.01, anchor=ro.anchor.initial_weights())


def permuted_activity() -> optax.GradientTransformation:
    """Activity, each weight with the value of another: a control."""
    return ro.phi.permuted(ro.phi.activity(decay=0.97))


def leaf_mean_activity() -> optax.GradientTransformation:
    """Activity, one value for each parameter array: a control."""
    return ro.phi.leaf_mean(ro.phi.activity(decay=0.97))


def _summary(factory: Callable[..., object]) -> str:
    """Return the first line of a docstring, without its formula."""
    first = (inspect.getdoc(factory) or "").splitlines()[0]
    return re.sub(r",? :math:`[^`]*`", "", first).rstrip(".")


def _has_defaults(function: object) -> bool:
    """Whether this is a function that can be called without arguments, and takes those it has by name."""
    if not inspect.isfunction(function):
        return False
    arguments = inspect.signature(function).parameters.values()
    return all(
        argument.kind is argument.KEYWORD_ONLY and argument.default is not argument.empty
        for argument in arguments
    )


_PUBLIC = {name: getattr(ro.phi, name) for name in ro.phi.__all__ if _has_defaults(getattr(ro.phi, name))}
_COMPOSED = {
    made.__name__: made
    for made in (plasticity_and_energy, sparse_change, permuted_activity, leaf_mean_activity)
}

# The decay is that of riemannian_adamw. Weights drawn from mesu's default prior, of deviation 1, would be
# those of an untrained network: the deviation is that of the published runs on images.
_ARGUMENTS = {
    "activity": {"decay": 0.97},
    "factored_activity": {"decay": 0.97},
    "per_neuron": {"decay": 0.97},
    "mesu": {"prior_deviation": 0.06},
}
# Utility is negative for harmful weights: E stays positive below an alpha of 1. With sparse_change E is 11 of
# a weight that has not moved, and 2 of one that has moved by 0.1.
_ALPHAS = {"utility_gate": 0.5, "sparse_change": 0.1}
_SIZED_LIKE_GRADIENT = {
    *("activity", "factored_activity", "per_neuron"),
    *("permuted_activity", "leaf_mean_activity"),
}

PHIS: dict[str, Phi] = {
    name: Phi(
        partial(factory, **_ARGUMENTS.get(name, {})),
        _summary(factory),
        _ALPHAS.get(name, 1.0),
        name in _SIZED_LIKE_GRADIENT,
    )
    for name, factory in sorted({**_PUBLIC, **_COMPOSED}.items())
}


def find(name: str) -> Phi:
    """Return a phi by its name, one of :data:`PHIS` or ``module:function``.

    Raises:
      InputError: where there is none of that name.

    Examples:
      >>> find("riemann_optax.phi:maintenance_energy").summary
      'What a synapse costs to keep and to use: its strength'
    """
    if name in PHIS:
        return PHIS[name]
    if ":" not in name:
        raise InputError(
            f"--phi {name} is not known: use one of {', '.join(PHIS)}, or --phi help; one of your own is "
            "module:function"
        )
    return _own(name)


@functools.cache
def _own(name: str) -> Phi:
    module, _, function = name.partition(":")
    if not all(module.split(".")):  # a name relative to a package, and there is none
        raise InputError(f"--phi {name} names no module: give module:function, such as my_module:my_phi")
    made: Any = getattr(_imported(module), function, None)
    if not _can_be_called(made):
        raise InputError(
            f"--phi {name}: {module} has no function {function} without required arguments: give one that "
            "returns a phi"
        )
    return _made(name, made)


def _can_be_called(function: object) -> bool:
    """Whether this is a function that wants no argument."""
    if not inspect.isfunction(function):
        return False
    arguments = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(one.default is not one.empty or one.kind in variable for one in arguments)


def _made(name: str, function: Callable[..., Any]) -> Phi:
    phi = function()
    if not isinstance(phi, optax.GradientTransformation):
        raise InputError(f"--phi {name} returns {type(phi).__name__}: it must return a phi, see check_phi")
    return Phi(function, _summary(function) if inspect.getdoc(function) else "a phi of your own")


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"--phi: the module {module} cannot be imported: {error}") from error

"""Any model as a function of what is trained in it: NNX modules, and trees of all other libraries."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from riemann_optax.supply import calls

T = TypeVar("T")
_INTERCEPTING = {"flax.linen": "flax_linen", "haiku": "haiku_modules", "equinox": "equinox_modules"}


class Functional(NamedTuple):
    """A tree as a function of its floating-point leaves.

    Attributes:
      params: the tree with None in the place of all else, as ``eqx.filter(model, eqx.is_inexact_array)``.
      others: the tree with None in the place of the floating-point leaves.
    """

    params: Any
    others: Any

    def evaluate(self, loss: Callable[[Any], Any], params: Any, example: Any = None) -> tuple[Any, Any]:
        """Return the loss at parameters, and nothing: a tree keeps no state."""
        del example
        copy = jax.tree.map(
            lambda trained, other: other if trained is None else trained,
            params,
            self.others,
            is_leaf=lambda node: node is None,
        )
        return loss(copy), None

    def gradients(self, gradients: Any) -> Any:
        """Return gradients in the form that the optimiser takes."""
        return gradients

    def write_back(self, rest: Any) -> None:
        """Do nothing: the user's tree is no object with state."""


def functional(model: Any, wrt: Any = None) -> Any:
    """Split a model into what is trained and the rest.

    Args:
      model: a module of Flax NNX; or a tree, of which the floating-point and complex leaves are trained. In
        modules of Equinox a Python number is a constant, as for ``eqx.filter_grad``.
      wrt: a filter of the variables of an NNX module; None for ``nnx.Param``.

    Raises:
      ValueError: where ``wrt`` is given for anything but an NNX module.
    """
    if is_module(model):
        return _room("flax_nnx").functional(model, wrt)
    if wrt is not None:
        raise ValueError(
            "wrt: only the variables of a Flax NNX module are chosen by a filter: pass what is trained."
        )

    constant = "equinox" in sys.modules and _room("equinox_modules").is_model(model)

    def trained(leaf: Any) -> bool:
        if isinstance(leaf, float | complex) and not hasattr(leaf, "dtype"):
            return not constant
        return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)

    params = jax.tree.map(lambda leaf: leaf if trained(leaf) else None, model)
    others = jax.tree.map(lambda leaf: None if trained(leaf) else leaf, model)
    return Functional(params, others)


def watch(model: T) -> T:
    """Let the layers of an NNX module be observed that the loss function itself has put together.

    Use it for loops in functional form: ``model = ro.supply.watch(nnx.merge(graph, params))``. A module that
    is the first argument of the loss function needs no such line. Outside of
    :func:`riemann_optax.value_and_grad`, and for a model that is no NNX module, it does nothing. Inside of a
    ``vmap`` Flax refuses it for a module from outside (``TraceContextError``).

    Args:
      model: a module that belongs to this evaluation alone, as ``nnx.merge`` makes it.

    Returns:
      The same module.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> from flax import nnx
      >>> graph, params = nnx.split(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
      >>> def loss(params, batch):
      ...     return jnp.mean(ro.supply.watch(nnx.merge(graph, params))(batch) ** 2)
      >>> step = ro.value_and_grad(loss, needs="inputs")
      >>> _, _, extra = step(nnx.to_pure_dict(params), jnp.array([[1.0, 2.0]]))
      >>> print(extra["inputs"]["bias"], extra["inputs"]["kernel"])
      1.0 [[1. 2.]]
    """
    if calls.is_watched() and is_module(model):
        _room("flax_nnx").watch(model)
    return model


@contextlib.contextmanager
def intercepting() -> Iterator[None]:
    """Watch the layers of those libraries that call their own methods, where they are in use."""
    with contextlib.ExitStack() as stack:
        if calls.is_watched():
            for library, name in _INTERCEPTING.items():
                if library in sys.modules:
                    stack.enter_context(_room(name).watch())
        yield


def companions_in(arguments: Any, model: Any) -> Any:
    """Return the objects of NNX in further arguments, see :mod:`riemann_optax.supply.companions`, or None."""
    return _room("companions").companions_in(arguments, model) if "flax.nnx" in sys.modules else None


def is_module(model: Any) -> bool:
    """Return whether a model is of NNX: a module, or Python's containers of some."""
    return "flax.nnx" in sys.modules and _room("companions").holds_modules(model)


def _room(name: str) -> Any:
    return importlib.import_module(f"riemann_optax.supply.{name}")

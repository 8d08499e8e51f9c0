"""Objects of Flax NNX among the further arguments of a loss: not trained, but their state may change.

A generator's critic, for one, with its statistics, or an ``nnx.Rngs``. Each evaluation gets copies of its
own, as of the model, for Flax lets nobody change an object from within a derivative of other values.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx

from riemann_optax import _tree
from riemann_optax.supply import calls
from riemann_optax.supply.arguments import folded


class Companions(NamedTuple):
    """All objects of NNX that a loss is given beside the model; what they share they share in a copy too.

    Attributes:
      objects: the user's objects.
      graph: their static structure.
      state: their variables.
    """

    objects: tuple[Any, ...]
    graph: Any
    state: Any

    def copies(self, example: Any = None) -> Any:
        """Return copies, for one evaluation; ``example``: with random numbers of that example's own."""
        copies = nnx.merge(self.graph, keys_of(self.state, _tree.bare(self.state), example))
        if calls.is_watched():
            for path, node in nnx.iter_graph(copies):
                if isinstance(node, nnx.BatchNorm):
                    watch_statistics(node, path)
        return copies

    def changed(self, copies: Any) -> Any:
        """Return the variables of copies that the evaluation has changed or made."""
        begun = {path: _value(one) for path, one in nnx.to_flat_state(nnx.state(self.copies()))}
        now = nnx.to_flat_state(nnx.state(copies))
        return nnx.from_flat_state([(path, one) for path, one in now if _value(one) is not begun.get(path)])

    def write_back(self, changed: Any) -> None:
        """Put what an evaluation has changed into the user's objects."""
        nnx.update(self.objects, changed)

    def given(self, arguments: Any, copies: Any) -> Any:
        """Return the arguments with a copy, or what ``copies`` has instead, in the place of each object."""
        made = {id(one): copy for one, copy in zip(self.objects, copies, strict=True)}
        return _mapped(lambda one: made.get(id(one), one), arguments)


def companions_in(arguments: Any, model: Any) -> Companions | None:
    """Return the objects of NNX in tuples, lists and dictionaries of arguments; None where there are none.

    Raises:
      ValueError: where they share a variable with the model.
    """
    found = {id(one): one for one in _objects(arguments)}
    if not found:
        return None
    objects = tuple(found.values())
    own = {id(node) for node in _variables(model)} if holds_modules(model) else set()
    if any(id(node) in own for node in _variables(objects)):
        raise ValueError(
            "the loss is given an object of NNX that shares variables with the model, and their gradient "
            "would be that of the model's part alone: put both into one model, such as nnx.Dict(actor=..., "
            "critic=...), and choose what is trained by wrt."
        )
    return Companions(objects, *nnx.split(objects))


def holds_modules(model: Any) -> bool:
    """Return whether this is a module of NNX, or a tuple, list or dictionary with one."""
    return any(isinstance(one, nnx.Pytree) for one in _objects(model))


def keys_of(boxed: Any, arrays: Any, example: Any) -> Any:
    """Return the arrays of a state, with random numbers of one example's own if there is one."""
    if example is None:
        return arrays
    boxes = jax.tree.leaves(boxed, is_leaf=lambda node: isinstance(node, nnx.Variable))
    leaves, structure = jax.tree.flatten(arrays)
    own = [
        folded(leaf, example) if isinstance(box, nnx.RngKey) else leaf
        for box, leaf in zip(boxes, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, own)


def watch_statistics(layer: Any, path: tuple[Any, ...]) -> None:
    """Let a BatchNorm of a copy take the statistics that this evaluation may take."""
    kind: Any = type(layer)

    def call(self: Any, x: Any, use_running_average: bool | None = None, **keywords: Any) -> Any:
        given = self.use_running_average if use_running_average is None else use_running_average
        name = ".".join(map(str, path))
        running = given or calls.takes_running_statistics(f"BatchNorm ({name})")
        return kind.__call__(self, x, use_running_average=running, **keywords)

    layer.__class__ = type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _objects(node: Any) -> Iterator[Any]:
    if isinstance(node, nnx.Pytree | nnx.Variable):
        yield node
    elif type(node) is dict:
        for part in node.values():
            yield from _objects(part)
    elif _is_sequence(node):
        for part in node:
            yield from _objects(part)


def _mapped(function: Callable[[Any], Any], node: Any) -> Any:
    """Return containers of Python with another value for each object of NNX; all else as it is."""
    if isinstance(node, nnx.Pytree | nnx.Variable):
        return function(node)
    if type(node) is dict:
        return {name: _mapped(function, part) for name, part in node.items()}
    if _is_sequence(node):
        parts = [_mapped(function, part) for part in node]
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    return node


def _is_sequence(node: Any) -> bool:
    """Return whether this is a tuple, list or named tuple, and no other class derived from one."""
    return type(node) in (tuple, list) or (isinstance(node, tuple) and hasattr(node, "_fields"))


def _variables(node: Any) -> Iterator[Any]:
    return (one for _, one in nnx.iter_graph(node) if isinstance(one, nnx.Variable))


def _value(variable: Any) -> Any:
    return variable.get_raw_value()

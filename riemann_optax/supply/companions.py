"""Modules of Flax NNX among the further arguments of a loss: not trained, but their state may change.

A generator's critic, for one, with its statistics and random numbers. Each evaluation gets a copy of its own,
as of the model, for Flax lets nobody change a module from within a derivative of other values.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from flax import nnx

from riemann_optax import _tree


class Companion(NamedTuple):
    """A module that a loss is given beside the model.

    Attributes:
      module: the user's module.
      graph: its static structure.
      state: its variables.
    """

    module: Any
    graph: Any
    state: Any

    def copy(self, example: Any = None) -> Any:
        """Return a copy, for one evaluation; ``example``: with random numbers of that example's own."""
        return nnx.merge(self.graph, keys_of(self.state, _tree.bare(self.state), example))

    def changed(self, copy: Any) -> Any:
        """Return the variables of a copy that the evaluation has changed or made."""
        begun = {path: _value(one) for path, one in nnx.to_flat_state(nnx.state(self.copy()))}
        now = nnx.to_flat_state(nnx.state(copy))
        return nnx.from_flat_state([(path, one) for path, one in now if _value(one) is not begun.get(path)])

    def write_back(self, changed: Any) -> None:
        """Put what an evaluation has changed into the user's module."""
        nnx.update(self.module, changed)


def companions_in(arguments: Any) -> tuple[Companion, ...]:
    """Return the modules in a tree of arguments, each once."""
    found = {
        id(module): module for module in jax.tree.leaves(arguments, is_leaf=is_module) if is_module(module)
    }
    return tuple(Companion(module, *nnx.split(module)) for module in found.values())


def with_copies(arguments: Any, companions: Iterable[Companion], copies: Iterable[Any]) -> Any:
    """Return a tree of arguments with a copy in the place of each module."""
    made = {id(one.module): copy for one, copy in zip(companions, copies, strict=True)}
    return jax.tree.map(lambda node: made.get(id(node), node), arguments, is_leaf=is_module)


def is_module(node: Any) -> bool:
    """Return whether this is a module of NNX."""
    return isinstance(node, nnx.Module)


def keys_of(boxed: Any, arrays: Any, example: Any) -> Any:
    """Return the arrays of a state, with random numbers of one example's own if there is one."""
    if example is None:
        return arrays
    boxes = jax.tree.leaves(boxed, is_leaf=lambda node: isinstance(node, nnx.Variable))
    leaves, structure = jax.tree.flatten(arrays)
    own = [
        _folded(leaf, example) if isinstance(box, nnx.RngKey) else leaf
        for box, leaf in zip(boxes, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, own)


def _folded(keys: Any, number: Any) -> Any:
    """Return keys that a number changes; stacked layers have an array of them."""
    if not keys.ndim:
        return jax.random.fold_in(keys, number)
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys.reshape(-1)).reshape(keys.shape)


def _value(variable: Any) -> Any:
    return variable.get_raw_value()

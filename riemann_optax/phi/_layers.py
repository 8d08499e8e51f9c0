"""Extra arguments that belong to the layer of a parameter: its inputs and the activities of its neurons."""

from typing import Any

import jax
import jax.numpy as jnp

from riemann_optax import _tree
from riemann_optax._declare import required


def mean_square_inputs(name: str, inputs: Any, updates: Any) -> Any:
    """Return the mean square input of each weight, broadcastable against its leaf.

    A leaf of ``inputs`` has the shape of its weights without the last axis (all of it where there is only
    one axis), with any number of batch axes in front; a scalar stands for all weights of the leaf.
    """
    inputs = _like(name, "inputs", inputs, updates)

    def average(path: tuple[Any, ...], gradient: jax.Array, x: Any) -> jax.Array:
        shape = jnp.shape(gradient)
        shape = shape[:-1] if len(shape) > 1 else shape
        squares = _mean_square("inputs", path, gradient, x, shape)
        return squares if squares.ndim == jnp.ndim(gradient) or jnp.ndim(x) == 0 else squares[..., None]

    return jax.tree_util.tree_map_with_path(average, updates, inputs)


def mean_square_activities(name: str, activities: Any, updates: Any) -> Any:
    """Return the mean square activity of the neuron of each weight, broadcastable against its leaf.

    A leaf of ``activities`` has the length of its weights' last axis, with any number of batch axes in front.
    """
    activities = _like(name, "activities", activities, updates)

    def average(path: tuple[Any, ...], gradient: jax.Array, y: Any) -> jax.Array:
        squares = _mean_square("activities", path, gradient, y, jnp.shape(gradient)[-1:])
        return squares.reshape([1] * (jnp.ndim(gradient) - squares.ndim) + list(squares.shape))

    return jax.tree_util.tree_map_with_path(average, updates, activities)


def _like(name: str, argument: str, value: Any, updates: Any) -> Any:
    """Return ``value`` in the containers of ``updates``: a dict will do where Flax has a ``State``."""
    value = _tree.bare(required(name, argument, value))
    given = [path for path, _ in jax.tree_util.tree_leaves_with_path(value)]
    needed = [path for path, _ in jax.tree_util.tree_leaves_with_path(_tree.bare(updates))]
    if given != needed:
        differing = [path for path in [*needed, *given] if (path in given) != (path in needed)]
        raise ValueError(
            f"{argument} must be a tree like the gradients, with one array per leaf, and differs at "
            f"{', '.join(map(_tree.leaf_name, differing))}. Where a mask hides parameters, pass "
            "mask_compatible_extra_args=True to optax.masked."
        )
    return _tree.like(value, updates)


def _mean_square(
    argument: str, path: tuple[Any, ...], gradient: jax.Array, value: Any, shape: tuple[int, ...]
) -> jax.Array:
    """Return the mean of ``abs(value)**2`` over all axes in front of ``shape``."""
    given = jnp.shape(value)
    batch_axes = len(given) - len(shape)
    if given and given[batch_axes:] != shape:  # of too few axes there are too few left
        raise ValueError(
            f"{argument} has shape {given} at {_tree.leaf_name(path)}, which has shape "
            f"{jnp.shape(gradient)}: its last axes must be {shape}, with batch axes in front of them."
        )
    squares = _tree.squared_magnitude(value).astype(_tree.working_dtype(gradient))
    return jnp.mean(squares, axis=tuple(range(batch_axes))) if given else squares

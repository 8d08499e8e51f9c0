"""Extra arguments that belong to the layer of a parameter: its inputs and the activities of its neurons."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from riemann_optax import _axes, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes
from riemann_optax._declare import required


def mean_square_inputs(name: str, inputs: Any, updates: Any, axes: Axes) -> Any:
    """Return the mean square input of each weight, broadcastable against its leaf.

    A leaf of ``inputs`` has the shape of its weights without the axes of the fan-out, with any number of
    batch axes in front; a scalar stands for all weights of the leaf.
    """

    def absent(read: MatrixAxes | None) -> tuple[int, ...]:
        return () if read is None else read.outputs

    return _mean_squares(name, "inputs", inputs, updates, axes, absent)


def mean_square_activities(name: str, activities: Any, updates: Any, axes: Axes) -> Any:
    """Return the mean square activity of the neuron of each weight, broadcastable against its leaf.

    A leaf of ``activities`` has the shape of its weights without the axes of the fan-in, with any number of
    batch axes in front.
    """
    return _mean_squares(name, "activities", activities, updates, axes, fan_in)


def fan_in(read: MatrixAxes | None) -> tuple[int, ...]:
    """Return the axes that a neuron's weights extend over: none for biases, which have one neuron each."""
    return read.inputs if read is not None and read.outputs else ()


def _mean_squares(
    name: str,
    argument: str,
    value: Any,
    updates: Any,
    axes: Axes,
    absent: Callable[[MatrixAxes | None], tuple[int, ...]],
) -> Any:
    value = like_updates(name, argument, value, updates)
    paths = jax.tree_util.tree_map_with_path(lambda path, _: path, updates)

    def average(read: MatrixAxes | None, gradient: jax.Array, x: Any, path: tuple[Any, ...]) -> jax.Array:
        missing = absent(read)
        shape = [length for axis, length in enumerate(jnp.shape(gradient)) if axis not in missing]
        squares = _mean_square(argument, path, gradient, x, tuple(shape))
        return squares if jnp.ndim(x) == 0 else jnp.expand_dims(squares, missing)

    return _axes.map_leaves(average, axes, updates, value, paths)


def like_updates(name: str, argument: str, value: Any, updates: Any) -> Any:
    """Return ``value`` in the containers of ``updates``, so that a dict can stand for a Flax ``State``."""
    value = _tree.bare(required(name, argument, value))
    given = [path for path, _ in jax.tree_util.tree_leaves_with_path(value)]
    needed = [path for path, _ in jax.tree_util.tree_leaves_with_path(_tree.bare(updates))]
    if given != needed and _tree.has_masked(updates) and set(needed) <= set(given):
        # Under optax.masked and optax.partition extra arguments are those of all parameters.
        leaves = dict(jax.tree_util.tree_leaves_with_path(value))
        return jax.tree.unflatten(jax.tree.structure(updates), [leaves[path] for path in needed])
    if given != needed:
        all_paths = needed if _tree.has_masked(updates) else [*needed, *given]
        differing = [path for path in all_paths if (path in given) != (path in needed)]
        raise ValueError(
            f"{argument} must be a tree like the gradients, with one array per leaf, and differs at "
            f"{', '.join(map(_tree.leaf_name, differing))}: of a Flax NNX module give value_and_grad the "
            "wrt of nnx.Optimizer; a layer that cannot be observed has none, see supply.observe."
        )
    return _tree.like(value, updates)


def _mean_square(
    argument: str, path: tuple[Any, ...], gradient: jax.Array, value: Any, shape: tuple[int, ...]
) -> jax.Array:
    """Return the mean of ``abs(value)**2`` over all axes in front of ``shape``, in that shape."""
    given = jnp.shape(value)
    # A bias of images or batches may have axes of length 1, which its neurons do not have.
    own = tuple(length for length in shape if length != 1)
    if given and own and given[len(given) - len(shape) :] != shape and given[len(given) - len(own) :] == own:
        axes = len(given) - len(own)
    else:
        axes = len(given) - len(shape)
        if given and given[axes:] != shape:  # also true if there are too few axes
            raise ValueError(
                f"{argument} has shape {given} at {_tree.leaf_name(path)}, which has shape "
                f"{jnp.shape(gradient)}: its last axes must be {shape}, with batch axes in front of them. If "
                "others would be right, the axes of the leaf are read wrongly: give axes, such as the preset "
                '"equinox" of kernel_axes, or "convolution" for one whose module is not called so.'
            )
    squares = _tree.squared_magnitude(value).astype(_tree.working_dtype(gradient))
    return jnp.mean(squares, axis=tuple(range(axes))).reshape(shape) if given else squares

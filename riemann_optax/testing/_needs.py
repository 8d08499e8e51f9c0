"""Extra arguments for a trial: whatever a phi declares to need, of a small problem of our own."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from riemann_optax import _axes, _tree

_SAMPLES = 2  # examples of a batch, and perturbed weights


def made(needs: Iterable[str], gradients: Any, params: Any, boundary: Any) -> dict[str, Any]:
    """Return the extra arguments of these names, in the shapes that :data:`EXTRA_ARGUMENTS` describes.

    The loss is half the sum of squares, the model's outputs are its weights, and each layer sees noise; of
    what layers an array belongs to is read by Flax's conventions.

    Args:
      needs: names from :data:`EXTRA_ARGUMENTS`.
      gradients: those of the update.
      params: the parameters.
      boundary: one boolean, whether the update is the first of a new task.
    """
    return {need: MAKERS[need](gradients, params, boundary) for need in needs}


def _loss(weights: Any) -> jax.Array:
    squares = [jnp.sum(_tree.squared_magnitude(leaf)) for leaf in jax.tree.leaves(weights)]
    return 0.5 * sum(squares, jnp.zeros([]))


def _noise(like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
    drawn = [
        jax.random.normal(key, (_SAMPLES, *jnp.shape(leaf)), _tree.working_dtype(leaf))
        for key, leaf in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, drawn)


def _perturbed_gradients(gradients: Any, params: Any, boundary: Any) -> Any:
    places = jax.tree.map(
        lambda leaf, noise: (leaf + 0.01 * noise).astype(_tree.dtype_of(leaf)), params, _noise(params)
    )
    return jax.vmap(jax.grad(_loss))(places) if jax.tree.leaves(places) else places


def _of_examples(gradients: Any, params: Any, boundary: Any) -> Any:
    return jax.tree.map(lambda g: jnp.stack([0.5 * g, 1.5 * g]).astype(g.dtype), gradients)


def _inputs(gradients: Any, params: Any, boundary: Any) -> Any:
    """Return inputs without the axes of the outputs; at a bias the number 1."""

    def of_layer(read: Any, leaf: jax.Array, noise: jax.Array) -> jax.Array:
        if not read.outputs:
            return jnp.ones([], noise.dtype)
        return _without(noise, read.outputs)

    return _axes.map_leaves(of_layer, "flax", params, _noise(params))


def _activities(gradients: Any, params: Any, boundary: Any) -> Any:
    """Return activities without the axes of the inputs; at a bias those of its neurons."""

    def of_layer(read: Any, leaf: jax.Array, noise: jax.Array) -> jax.Array:
        absent = read.inputs if read.outputs else ()
        return _without(noise, absent)

    return _axes.map_leaves(of_layer, "flax", params, _noise(params))


def _without(noise: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return the first place of some axes of the weights, also of axes without places: 0 there."""
    first = noise[tuple(slice(0, 1) if axis - 1 in axes else slice(None) for axis in range(noise.ndim))]
    return jnp.sum(first, axis=[axis + 1 for axis in axes])


MAKERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "value": lambda gradients, params, boundary: _loss(params),
    "grad": lambda gradients, params, boundary: gradients,
    "value_fn": lambda gradients, params, boundary: _loss,
    "obj_fn": lambda gradients, params, boundary: _loss,
    "outputs_fn": lambda gradients, params, boundary: lambda weights: weights,
    "outputs_loss_fn": lambda gradients, params, boundary: _loss,
    "per_example_gradients": _of_examples,
    "output_norm_gradients": _of_examples,
    "perturbed_gradients": _perturbed_gradients,
    "perturbations": lambda gradients, params, boundary: _noise(params),
    "gradients_at_previous_params": lambda gradients, params, boundary: jax.tree.map(
        lambda g: (0.5 * g).astype(g.dtype),
        gradients,  # a half is exact, with rounding and without
    ),
    "inputs": _inputs,
    "activities": _activities,
    "task_boundary": lambda gradients, params, boundary: boundary,
    "task_importance": lambda gradients, params, boundary: jax.tree.map(_tree.magnitude, gradients),
}

"""What a method may have to know about the learner, and controls and wrappers that depend on it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.continual.peers.continual_backprop import Draw, Layers


class Network(NamedTuple):
    """How the parameters of a stream's learner are layers.

    Attributes:
      split: from the parameters to a list of layers ``{"kernel", "bias"}``.
      join: back.
      draw: from a key and the shape of a kernel to initial weights.
    """

    split: Callable[[Any], Layers]
    join: Callable[[Layers], Any]
    draw: Draw


def on_layers(inner: optax.GradientTransformation, network: Network) -> optax.GradientTransformationExtraArgs:
    """Let ``inner`` see the layers of parameters that are kept in another form, the loss of a batch too."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        return inner.init(network.split(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if "obj_fn" in extra_args:
            loss = extra_args["obj_fn"]
            extra_args = extra_args | {"obj_fn": lambda layers: loss(network.join(layers))}
        updates, state = inner.update(network.split(updates), state, network.split(params), **extra_args)
        return network.join(updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def with_activities(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Hand the hidden activities on as a tree like the layers; those of the last layer are not read."""
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Layers, state: Any, params: Layers, *, activations: Sequence[jax.Array], **extra_args: Any
    ) -> tuple[Layers, Any]:
        outputs = jnp.zeros_like(params[-1]["bias"])[None]
        seen = [{"kernel": layer, "bias": layer} for layer in (*activations, outputs)]
        return inner.update(updates, state, params, activities=seen, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


class SecondTaskState(NamedTuple):
    """State of :func:`from_the_second_task_on`.

    Attributes:
      begun: whether there has been an update.
      inner: the state of the transformation.
    """

    begun: jax.Array
    inner: optax.OptState


def from_the_second_task_on(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keep the beginning of the first task, which is no boundary between two, from ``inner``."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> SecondTaskState:
        return SecondTaskState(jnp.zeros([], bool), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, *, task_boundary: jax.Array, **extra_args: Any
    ) -> tuple[Any, SecondTaskState]:
        boundary = jnp.logical_and(task_boundary, state.begun)
        updates, inner_state = inner.update(
            updates, state.inner, params, task_boundary=boundary, **extra_args
        )
        return updates, SecondTaskState(jnp.ones_like(state.begun), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


class PermutedOnceState(NamedTuple):
    """State of :func:`permuted_once`.

    Attributes:
      order: for each leaf, whose phi each weight gets.
      phi: the state of the phi.
    """

    order: Any
    phi: optax.OptState


def permuted_once(phi: optax.GradientTransformation, key: jax.Array) -> optax.GradientTransformationExtraArgs:
    """Build :func:`riemann_optax.phi.permuted` with the permutation kept instead of drawn at every update.

    The values are the same; a scan of a million steps has no time to sort at each.
    """
    phi = optax.with_extra_args_support(phi)

    def init(params: Any) -> PermutedOnceState:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        order = [jax.random.permutation(k, leaf.size) for k, leaf in zip(keys, leaves, strict=True)]
        return PermutedOnceState(jax.tree.unflatten(treedef, order), phi.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        values, phi_state = phi.update(updates, state.phi, params, **extra_args)
        shuffled = jax.tree.map(lambda v, o: v.reshape(-1)[o].reshape(v.shape), values, state.order)
        return shuffled, PermutedOnceState(state.order, phi_state)

    return optax.GradientTransformationExtraArgs(init, update)

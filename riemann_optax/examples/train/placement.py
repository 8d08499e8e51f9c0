"""Where the arrays of a run lie: on one device, or spread over those of all processes."""

from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import riemann_optax as ro

Shard = Literal["none", "data", "all"]
SHARDS: tuple[str, ...] = get_args(Shard)

_AXIS = "devices"


class Placement:
    """The devices of a run, and what each of them holds.

    Args:
      shard: ``"none"`` uses one device; ``"data"`` every device of every process, each with a share of the
        batch and a copy of weights and optimiser state; ``"all"`` gives each a share of those as well
        (fully sharded data parallelism).
    """

    def __init__(self, shard: Shard = "none") -> None:
        self.num_devices = 1 if shard == "none" else jax.device_count()
        self._mesh: Mesh | None = None
        self._parameters_too = shard == "all"
        if shard == "none":
            return
        # By process, so that the share of each in a batch is one piece.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self._mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))

    @property
    def is_sharded(self) -> bool:
        """Whether there is more than the one device."""
        return self._mesh is not None

    def _sharding(self, *spec: str | None) -> NamedSharding | None:
        return None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec(*spec))

    def _sharding_of(self, parameter: Any) -> NamedSharding | None:
        """Return the sharding of a parameter array: along its longest axis that the devices divide."""
        divisible = [axis for axis, size in enumerate(parameter.shape) if size % self.num_devices == 0]
        if not (self._parameters_too and divisible):
            return self._sharding()
        longest = max(divisible, key=lambda axis: parameter.shape[axis])
        return self._sharding(*(_AXIS if axis == longest else None for axis in range(parameter.ndim)))

    def parameters(self, parameters: Any) -> Any:
        """Return a copy of the parameters, which every process must have alike, where they belong."""
        return jax.tree.map(lambda leaf: _place(leaf, self._sharding_of(leaf)), parameters)

    def state(self, transformation: optax.GradientTransformation, parameters: Any) -> optax.OptState:
        """Return the first state of an optimiser, each array beside the parameter it belongs to.

        No two of its arrays share a buffer, nor one with a parameter: the compiled step takes them all over.
        """
        if self._mesh is None:
            # Copies, for the state of some optimisers begins with the parameters themselves.
            return jax.tree.map(jax.numpy.array, transformation.init(parameters))
        # Compiled, for an array that `init` makes of nothing cannot move between processes afterwards.
        shardings = ro.sharding.state_shardings(transformation, parameters)
        return jax.jit(transformation.init, out_shardings=shardings)(parameters)

    def copies(self, tree: Any) -> Any:
        """Return arrays, which every process must have alike, whole on every device."""
        return jax.tree.map(lambda leaf: _place(leaf, self._sharding()), tree)

    def share(self, size: int) -> slice:
        """Return which part of a batch of ``size`` examples this process has to bring.

        Examples:
          >>> Placement().share(32)
          slice(0, 32, None)
        """
        part = size // jax.process_count()
        return slice(jax.process_index() * part, (jax.process_index() + 1) * part)

    def batches(self, tree: Any) -> Any:
        """Return arrays ``[steps, batch, ...]`` from this process's :meth:`share` of each batch."""
        sharding = self._sharding(None, _AXIS)
        if sharding is None:
            return tree
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)

    def outputs(self, kept: Any) -> dict[str, Any]:
        """Return arguments for ``jax.jit`` of a function to ``(kept, small)`` that leave kept in place."""
        if self._mesh is None:
            return {}
        return {"out_shardings": (jax.tree.map(lambda leaf: leaf.sharding, kept), self._sharding())}


def _place(leaf: Any, sharding: NamedSharding | None) -> jax.Array:
    if sharding is None:
        return jax.numpy.array(leaf)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

"""A trial on several devices: whether phi is the same there, and its state beside the weights."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _tree
from riemann_optax.testing._needs import made

_AXIS = "devices"


def sharded_problems(
    init: Callable[[Any], Any],
    update: Callable[..., Any],
    needs: Iterable[str],
    params: Any,
    gradient: Callable[[jax.Array], jax.Array],
    close: Callable[[Any, Any], bool],
    given: dict[str, Any],
) -> list[str]:
    """Try ``init`` and ``update`` with all weights spread over all devices, beside the same on one device.

    Args:
      init: of phi.
      update: of phi, with gradients, state, parameters and extra arguments.
      needs: the extra arguments that phi declares.
      params: the parameters; each is repeated along its first axis as often as there are devices.
      gradient: draws a gradient for an array.
      close: whether two arrays are equal but for rounding.
      given: extra arguments of the user, whose shapes are those of ``params``: nothing is repeated then, and
        what the devices do not divide is on each of them.

    Returns:
      What is wrong, nothing where there is a single device.
    """
    devices = np.array(jax.devices())
    if devices.size < 2:
        return []
    mesh = jax.sharding.Mesh(devices, (_AXIS,))
    if not given:
        params = jax.tree.map(lambda p: jnp.concatenate([p] * devices.size) if jnp.ndim(p) else p, params)
    gradients = jax.tree.map(gradient, params)

    def spread(leaf: jax.Array) -> jax.Array:
        axes = [axis for axis, size in enumerate(leaf.shape) if size and size % devices.size == 0]
        spec = [_AXIS if axes[:1] == [axis] else None for axis in range(leaf.ndim)]
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        placed: jax.Array = jax.device_put(leaf, where)
        return placed

    @jax.jit
    def values(gradients: Any, state: Any, params: Any) -> Any:
        extra = made(set(needs) - given.keys(), gradients, params, jnp.asarray(False)) | given
        return update(gradients, state, params, **extra)[0]

    expected = values(gradients, init(params), params)
    gradients, params = jax.tree.map(spread, (gradients, params))
    try:
        state = init(params)
        found = values(gradients, state, params)
    except Exception as error:  # the point is to report whatever a user's code raises
        return [f"phi does not survive {devices.size} devices: {type(error).__name__}: {error}"]
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    names = [_tree.leaf_name(path) for (path, value), other in pairs if not close(value, other)]
    problems = [f"phi on {devices.size} devices differs from phi on one at {name}" for name in names[:1]]
    return problems + _misplaced(state, params)[:1]


def _misplaced(state: Any, params: Any) -> list[str]:
    """Name the arrays of a state that have the path and shape of a weight and do not lie beside it."""
    weights = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(_tree.bare(params))
    }
    problems = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(_tree.bare(state)):
        endings = [jax.tree_util.keystr(path[start:]) for start in range(len(path) + 1)]
        weight = next((weights[ending] for ending in endings if ending in weights), None)
        if weight is None or leaf.shape != weight.shape or not leaf.ndim:
            continue
        if not leaf.sharding.is_equivalent_to(weight.sharding, leaf.ndim):
            problems.append(
                f"the state at {jax.tree_util.keystr(path)} does not lie beside its weight on "
                "several devices: build it with jnp.zeros_like, which keeps the sharding"
            )
    return problems

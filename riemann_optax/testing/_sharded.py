"""A trial on several devices: whether phi is the same there, and its state beside the weights."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

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

    Once on a mesh with Auto axes, and once with Explicit ones.

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
    if not given:
        params = jax.tree.map(lambda p: jnp.concatenate([p] * devices.size) if jnp.ndim(p) else p, params)
    gradients = jax.tree.map(gradient, params)

    @jax.jit
    def updated(gradients: Any, state: Any, params: Any) -> Any:
        extra = made(set(needs) - given.keys(), gradients, params, jnp.asarray(False)) | given
        return update(gradients, state, params, **extra)

    expected = updated(gradients, init(params), params)[0]
    problems: list[str] = []
    for kind in (AxisType.Auto, AxisType.Explicit):
        where = f"{devices.size} devices" + (" of an Explicit mesh" if kind == AxisType.Explicit else "")
        mesh = jax.sharding.Mesh(devices, (_AXIS,), axis_types=(kind,))
        spread_gradients, spread_params = _spread((gradients, params), mesh)
        try:
            # In an Explicit mesh the sharding is part of an array's type, and operations must agree on it.
            with jax.set_mesh(mesh) if kind == AxisType.Explicit else contextlib.nullcontext():
                state = init(spread_params)
                found, new_state = updated(spread_gradients, state, spread_params)
        except Exception as error:  # the point is to report whatever a user's code raises
            return [f"phi does not survive {where}: {type(error).__name__}: {error}"]
        pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
        names = [_tree.leaf_name(path) for (path, value), other in pairs if not close(value, other)]
        problems += [f"phi on {where} differs from phi on one at {name}" for name in names[:1]]
        problems += _misplaced(state, spread_params)[:1]
        if not problems and kind == AxisType.Explicit:
            problems += _retyped(state, new_state)[:1]
        if problems:
            break  # the other kind of mesh would repeat it
    return problems


def _spread(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Put arrays on a mesh, each along the first of its axes that the devices divide."""

    def placed(leaf: jax.Array) -> jax.Array:
        axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        spec = [_AXIS if axes[:1] == [axis] else None for axis in range(leaf.ndim)]
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        moved: jax.Array = jax.device_put(leaf, where)
        return moved

    return jax.tree.map(placed, tree)


def _retyped(before: Any, after: Any) -> list[str]:
    """Name the arrays of a state whose type, sharding included, an update has changed."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return [
        f"the state at {jax.tree_util.keystr(path)} has the type {jax.typeof(old)} after init and "
        f"{jax.typeof(new)} after update on an Explicit mesh, which breaks lax.scan: give both the sharding "
        "of the weights"
        for (path, old), new in pairs
        if jax.typeof(old) != jax.typeof(new)
    ]


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

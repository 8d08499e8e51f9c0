"""What varies over the devices of a mesh inside of ``jax.shard_map``."""

from typing import Any, TypeVar

import jax

T = TypeVar("T")


def varying_like(tree: T, like: Any) -> T:
    """Return arrays that vary over all axes of a mesh over which an array of ``like`` does.

    Inside of ``jax.shard_map`` the types of arrays say so. Where branches or the rounds of a loop meet, the
    types have to agree, and a constant varies over nothing. Elsewhere nothing varies, and nothing is done.

    Args:
      tree: arrays.
      like: arrays, such as those that ``tree`` is computed from.

    Returns:
      The same values.
    """
    wanted = frozenset[str]().union(*map(_axes, jax.tree.leaves(like)))

    def cast(leaf: Any) -> Any:
        missing = tuple(sorted(wanted - _axes(leaf)))
        if not missing:
            return leaf
        lax: Any = jax.lax  # of several releases
        if hasattr(lax, "pcast"):
            return lax.pcast(leaf, missing, to="varying")
        return lax.pvary(leaf, missing)  # before JAX 0.9

    result: T = jax.tree.map(cast, tree) if wanted else tree
    return result


def _axes(leaf: Any) -> frozenset[str]:
    """Return the axes over which an array varies; the releases of JAX have two names for them."""
    if not isinstance(leaf, jax.core.Tracer):
        return frozenset()  # as all that is no array, such as the functions in a model
    kind = jax.typeof(leaf)
    if hasattr(kind, "manual_axis_type"):
        return frozenset(kind.manual_axis_type.varying)
    return frozenset(getattr(kind, "vma", ()))

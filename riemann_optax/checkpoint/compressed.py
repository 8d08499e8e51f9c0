"""States whose arrays are compressed: made wide before a transplantation, and narrow again behind it."""

from collections.abc import Sequence
from typing import Any

import jax

from riemann_optax.checkpoint.matching import is_below
from riemann_optax.wrappers import LowPrecisionState


def _is_low(node: Any) -> bool:
    return isinstance(node, LowPrecisionState)


def wide(state: Any) -> Any:
    """Return a state with its compressed parts decompressed."""
    return jax.tree.map(
        lambda node: node._replace(inner_state=node.wide(), forms=()) if _is_low(node) else node,
        state,
        is_leaf=_is_low,
    )


def narrow(result: Any, fresh: Any, old: Any, kept: dict[str, str], changed: Sequence[str]) -> Any:
    """Compress the parts that are compressed in ``fresh``; reuse old parts compressed in the same way.

    Args:
      result: the new state, wide.
      fresh: the state as ``init`` makes it.
      old: the old state.
      kept: arrays with the old values, and their paths in the old state.
      changed: the paths of those with other values.
    """
    lows = {
        jax.tree_util.keystr(path): node
        for path, node in jax.tree_util.tree_leaves_with_path(old, is_leaf=_is_low)
        if _is_low(node)
    }
    nodes = jax.tree_util.tree_leaves_with_path(fresh, is_leaf=_is_low)
    values = jax.tree.leaves(result, is_leaf=_is_low)
    made = []
    for (path, node), filled in zip(nodes, values, strict=True):
        if not _is_low(node):
            made.append(filled)
            continue
        name = jax.tree_util.keystr(path)
        key = kept.get(f"{name}.key", "").removesuffix(".key")
        before = lows.get(key) if f"{name}.key" in kept else None
        same = before is not None and jax.tree.map(jax.typeof, before) == jax.tree.map(jax.typeof, node)
        untouched = not any(is_below(path, name) for path in changed)
        if same and untouched:
            made.append(before)
        else:
            made.append(node._replace(key=filled.key).with_wide(filled.inner_state))
    return jax.tree.unflatten(jax.tree.structure(fresh, is_leaf=_is_low), made)

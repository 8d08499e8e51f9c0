"""A manifest to save with a checkpoint, a check that the checkpoint fits, and a target to restore it to."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax

from riemann_optax import _tree, sharding
from riemann_optax._version import __version__
from riemann_optax.boundary import taken_apart
from riemann_optax.checkpoint.matching import listed

# Increase by one whenever a state field is renamed, dropped, added or given another meaning. A checkpoint of
# an older format can be restored unless it holds one of the states that have changed since.
FORMAT_VERSION = 3
_CHANGED_IN = {
    "LowPrecisionState": 2,
    "RecordMetricState": 2,
    "TrackEnergyState": 2,
    "RWalkState": 2,
    "InEigenbasisState": 3,
}  # the state, and the format in which it last changed

_WIDENED = ("float32[]", "float64[]")
_NAMED = 8  # differences of a kind that a message lists


def manifest(tree: Any) -> dict[str, Any]:
    """Return a manifest to save with a tree, so that :func:`check` can tell later whether it fits.

    Args:
      tree: an optimiser state, or a tree that holds one; arrays or ``jax.ShapeDtypeStruct``. Of Flax NNX
        ``optimizer.opt_state``, or the optimiser itself: ``nnx.state(optimizer)`` has forgotten which states
        its arrays belong to. Boxes, such as NNX variables, count as what they hold.

    Returns:
      A dictionary of strings and numbers for JSON: ``format`` (the version of the state's format),
      ``release`` (of riemann_optax), ``states`` (the type of each named state by path) and ``arrays`` (dtype
      and shape of each array by path).

    Raises:
      TypeError: where a leaf is no array.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> state = ro.phi.activity().init({"w": jnp.zeros([3, 2])})
      >>> manifest = ro.checkpoint.manifest(state)
      >>> print(manifest["format"], manifest["states"])
      3 {'': 'ActivityState'}
      >>> print(manifest["arrays"])
      {'.count': 'int32[]', ".second_moment['w']": 'float32[3,2]'}
    """
    tree = _tree.bare(tree)
    arrays = {
        jax.tree_util.keystr(path): _type_name(path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {
        "format": FORMAT_VERSION,
        "release": __version__,
        "states": dict(_named_states(tree)),
        "arrays": arrays,
    }


def check(saved: Any, tree: Any) -> None:
    """Raise unless the checkpoint with the manifest ``saved`` can be restored to the structure of ``tree``.

    It compares states. What has a state of the same class passes: ``activity`` and ``bayesian_synapse``,
    which have the same statistics; but also ``online_ewc``, ``laplace`` and ``memory_aware_synapses``,
    ``bayesian_gradient_descent`` and ``mesu``, the anchors ``initial_weights`` and ``slow_weights``, and phis
    without a state. These are in other units: change none of them for another in a run.

    Args:
      saved: the result of :func:`manifest` when the checkpoint was written, as read back from JSON.
      tree: the tree to restore, such as :func:`target` returns; arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      TypeError: where ``saved`` is a state, and no manifest.
      ValueError: for a manifest that is damaged or from another library; for another format of the state; and
        for a checkpoint of another phi, chain or model. The message then names the arrays that only the
        checkpoint or only ``tree`` has, and those that differ in type, dtype or shape.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> params = {"w": jnp.zeros(3)}
      >>> saved = ro.checkpoint.manifest(ro.phi.activity().init(params))
      >>> ro.checkpoint.check(saved, ro.phi.accumulated_activity().init(params))
      Traceback (most recent call last):
      ValueError: the checkpoint is of another phi, chain or model: the state is ActivityState in the
      checkpoint and AccumulatedActivityState here; only in the checkpoint: .count, .second_moment['w']; only
      here: .sum_of_squares['w']. Build what it was saved with, or start anew.
    """
    if isinstance(saved, tuple):  # no JSON has one
        raise TypeError(
            "saved must be what ro.checkpoint.manifest returned when the checkpoint was written, a "
            f"dictionary, got {type(saved).__name__}: give check the manifest first, and then the state."
        )
    whole = isinstance(saved, Mapping) and {"format", "release", "states", "arrays"} <= saved.keys()
    if not (whole and all(isinstance(saved[key], Mapping) for key in ("states", "arrays"))):
        raise ValueError(
            "the checkpoint's manifest is damaged, or not one of riemann_optax: restore another checkpoint."
        )
    if saved["format"] not in range(1, FORMAT_VERSION + 1):
        raise ValueError(
            f"the checkpoint has format {saved['format']} of riemann_optax's state, written by release "
            f"{saved['release']}, and this release reads formats 1 to {FORMAT_VERSION}: go on with that "
            "release, or start anew."
        )
    changed = {name for name in saved["states"].values() if _CHANGED_IN.get(name, 1) > saved["format"]}
    if changed:
        raise ValueError(
            f"the checkpoint has format {saved['format']} of riemann_optax's state, written by release "
            f"{saved['release']}, and {' and '.join(sorted(changed))} changed since: go on with that "
            "release, or leave that part of the chain out and start it anew."
        )
    here = manifest(tree)
    # Older manifests call an array in a box by the name of the box's content.
    arrays = {
        path if path in here["arrays"] else path.removesuffix(".value"): kind
        for path, kind in saved["arrays"].items()
    }
    saved = {**saved, "arrays": arrays}
    differences = _changed("state", saved["states"], here["states"])
    differences += _changed("array", saved["arrays"], here["arrays"])
    for place, one, other in (("in the checkpoint", saved, here), ("here", here, saved)):
        missing = [path for path in one["arrays"] if path not in other["arrays"]]
        differences += [f"only {place}: {listed(missing, _NAMED)}"] if missing else []
    if differences:
        raise ValueError(
            f"the checkpoint is of another phi, chain or model: {'; '.join(differences)}. Build what it was "
            "saved with, or start anew."
        )


def target(tx: optax.GradientTransformation, params: optax.Params) -> optax.OptState:
    """Return the state of ``tx`` as shapes, dtypes and shardings, to restore a checkpoint to.

    The mesh may differ from the mesh of the checkpoint: other devices, another layout, or Explicit instead of
    Auto axes. Nothing is allocated. States with random keys need Orbax 0.11.30 or newer.

    Args:
      tx: the transformation.
      params: the parameters, or ``jax.ShapeDtypeStruct``, with the shardings to use from now on; or a model
        of Flax NNX, of which the ``nnx.Param`` count.

    Returns:
      The structure of ``tx.init(params)`` with ``jax.ShapeDtypeStruct`` leaves, sharded as in
      :func:`riemann_optax.sharding.state_shardings`.

    Raises:
      ValueError: as :func:`riemann_optax.sharding.state_shardings` does; for no ``params`` at all.
      TypeError: where ``tx`` is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> target = ro.checkpoint.target(ro.phi.activity(), {"w": jnp.zeros([3, 2])})
      >>> print(target.second_moment["w"].shape)
      (3, 2)
    """
    tx, params, _ = taken_apart("checkpoint.target", "tx", tx, params)
    if params is None:
        raise ValueError("params must be the parameters of tx, got None: give them, or their shapes.")
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(tx.init, params),
        sharding.state_shardings(tx, params),
    )


def _type_name(path: tuple[Any, ...], leaf: Any) -> str:
    if not hasattr(leaf, "shape") and not isinstance(leaf, int | float | complex):
        raise TypeError(
            f"tree holds a {type(leaf).__name__} at {_tree.leaf_name(path)}, which is no array: give an "
            "optimiser state, such as optimizer.opt_state of Flax NNX."
        )
    dtype = leaf.dtype if hasattr(leaf, "dtype") else _tree.dtype_of(leaf)  # a key's dtype is not NumPy's
    return f"{dtype}[{','.join(map(str, getattr(leaf, 'shape', ())))}]"


def _named_states(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and type of every named tuple with arrays in it, outer ones first."""

    def is_inner(node: Any) -> bool:
        return node is not tree and hasattr(node, "_fields")

    if hasattr(tree, "_fields") and jax.tree.leaves(tree):
        yield prefix, type(tree).__name__
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_inner):
        if is_inner(node):
            yield from _named_states(node, prefix + jax.tree_util.keystr(path))


def _changed(what: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return a list of at most one sentence: the paths whose types differ."""
    changed = [
        f"the {what}{' ' if path else ''}{path} is {saved[path]} in the checkpoint and {here[path]} here"
        for path in saved
        # A run with 64-bit types can take a scalar from a run without them.
        if path in here and saved[path] != here[path] and (saved[path], here[path]) != _WIDENED
    ]
    return [listed(changed, _NAMED)] if changed else []

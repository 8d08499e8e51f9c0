"""Reading a metric before and during a run: metric_at and describe."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from riemann_optax import _axes, _check, _tree
from riemann_optax import _observe as observe
from riemann_optax._declare import Phi
from riemann_optax.boundary import taken_apart
from riemann_optax.inspect._evaluate import evaluate, is_small
from riemann_optax.inspect.description import Description, LeafDescription, named
from riemann_optax.inspect.live import eigenbases
from riemann_optax.metric import ComputeMetricState, compute_metric
from riemann_optax.scaling import scale_by_inverse_metric


def metric_at(
    tx: optax.GradientTransformation,
    gradients: optax.Updates,
    state: optax.OptState | None = None,
    params: optax.Params | None = None,
    **extra_args: Any,
) -> optax.Updates:
    """Return the metric ``E`` that ``tx`` would use for its next update, changing nothing.

    Runs ``tx.update`` and throws its result away; ``E`` is read at stage 2, after every edit of the metric.
    Works with the chain inside ``masked``, ``partition``, ``inject_hyperparams`` and, outside of ``jit``,
    inside wrappers that branch, such as ``MultiSteps`` or ``apply_if_finite``. Takes the variables of Flax
    NNX as they are, and an ``nnx.Optimizer``: ``metric_at(optimizer, gradients, params=model)``.

    Args:
      tx: a transformation that contains both stages, or an ``nnx.Optimizer`` of one.
      gradients: the gradients, as they would be given to ``tx.update``.
      state: the state of ``tx``, or a ``TrainState`` that holds it; None for that of an ``nnx.Optimizer``.
      params: the parameters, or a model of Flax NNX.
      **extra_args: the extra arguments of ``tx.update``.

    Returns:
      ``E`` in the structure of ``gradients``, float32 or wider; 1 where no metric is attached; the product
      where several pairs of stages follow each other.

    Raises:
      ValueError: where ``tx`` applied no metric in this update, applied it inside a traced branch, or to
        other leaves than those of ``gradients``, as in ``optax.contrib.split_real_and_imaginary``; where an
        extra argument is missing.
      TypeError: where ``tx`` is no gradient transformation, or has no state; for abstract arrays.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.riemannian_sgd(0.1, phi=ro.phi.maintenance_energy(), alpha=3.0, conformal=None)
      >>> params = jnp.array([0.0, 1.0])
      >>> print(ro.metric_at(tx, jnp.ones(2), tx.init(params), params))
      [1. 4.]
    """
    tx, params, own = taken_apart("metric_at", "tx", tx, params)
    state = own if state is None else getattr(state, "opt_state", state)
    if state is None:
        raise TypeError("metric_at: state must be the state of tx, got None: give what its init returns.")
    tx = optax.with_extra_args_support(tx)
    _check_values("metric_at", gradients, state, params)
    given = (gradients, state, params, extra_args)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))
    bare = _tree.bare(gradients)
    # Outside of jit, lax.cond runs only the branch taken, in Python: what it reports is then concrete.
    mesh = nullcontext() if traced else _mesh_of(state, params)
    with mesh, jax.disable_jit(not traced), observe.listen() as observer:
        _update("metric_at", tx, bare, _tree.bare(state), _tree.bare(params), _tree.bare(extra_args))
    if not observer.metrics:
        raise ValueError(
            "metric_at: this update of tx applied no metric; tx must hold compute_metric and "
            "scale_by_inverse_metric, and a wrapper that skips updates must not skip this one."
        )
    return _tree.like(_metric_tree(observer, bare), gradients)


def _update(name: str, tx: Any, gradients: Any, state: Any, params: Any, extra_args: dict[str, Any]) -> None:
    """Run an update; raise ``ValueError`` where Optax's own parts lack an extra argument."""
    try:
        tx.update(gradients, state, params, **extra_args)
    except TypeError as error:
        missing = re.search(r"missing \d+ required keyword-only arguments?: (.*)", str(error))
        if missing is None:
            raise
        given = ", ".join(f"{one}=..." for one in re.findall(r"'(\w+)'", missing[1]))
        raise ValueError(
            f"{name}: the update of tx needs {missing[1]}: call {name}(..., {given})."
        ) from error


def _mesh_of(*trees: Any) -> AbstractContextManager[Any]:
    """Return the context of the Explicit mesh that arrays lie on, which operations one by one need."""
    for leaf in jax.tree.leaves(trees):
        mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
        if isinstance(mesh, Mesh) and AxisType.Explicit in mesh.axis_types:
            return jax.set_mesh(mesh)
    return nullcontext()


def _metric_tree(observer: observe.Observer, gradients: optax.Updates) -> optax.Updates:
    metrics, _ = observer.by_leaf(gradients)

    def read(path: tuple[Any, ...], gradient: Any) -> jax.Array:
        return metrics.get(path, jnp.ones_like(gradient, dtype=_tree.working_dtype(gradient)))

    return jax.tree_util.tree_map_with_path(read, gradients)


def describe(
    tx_or_phi: optax.GradientTransformation,
    params: optax.Params,
    gradients: optax.Updates | None = None,
    state: optax.OptState | None = None,
    *,
    alpha: float | None = None,
    **extra_args: Any,
) -> Description:
    """Describe what a transformation does to each leaf: its phi, range of ``E``, effective rate and state.

    Runs one update and throws its result away; for a large model the update is compiled. Leaves without a
    metric are called Euclidean. Of a model that has no values yet (``jax.eval_shape``, ``nnx.eval_shape``)
    an update is only traced: in seconds it says what is turned and what the state takes, and of ``E``
    nothing.

    Args:
      tx_or_phi: an optimiser with both stages in it, also as an ``nnx.Optimizer``; or a phi, described as
        ``compute_metric(phi, alpha)``.
      params: the parameters, any tree of arrays or ``jax.ShapeDtypeStruct``; or a model of Flax NNX, of which
        the ``nnx.Param`` count; or ``optax.LookaheadParams``, of which the fast ones do.
      gradients: the gradients to evaluate ``E`` at; by default 1 for every weight, which shows the structure
        but not the numbers of a run, and in eigenbases no numbers.
      state: the state of ``tx_or_phi``; by default that of the ``nnx.Optimizer``, or of ``init``.
      alpha: the scaling factor for a phi; giving one says that ``tx_or_phi`` is a phi. A
        :class:`riemann_optax.phi.Phi` is recognised without it, and described at alpha 1.
      **extra_args: the extra arguments of ``update``, such as ``obj_fn``.

    Returns:
      A :class:`Description`, which prints as a table.

    Raises:
      TypeError: where ``tx_or_phi`` is no gradient transformation.
      ValueError: where ``gradients`` differ from ``params``, or an extra argument is missing; for an
        ``alpha`` with an optimiser that has a metric of its own; for abstract arrays and a wrapper that
        branches.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> params = {"kernel": jnp.array([[0.0, 1.0]]), "bias": jnp.zeros(2)}
      >>> metric = ro.compute_metric(ro.phi.maintenance_energy(), alpha=3.0)
      >>> tx = optax.chain(
      ...     optax.masked(metric, {"kernel": True, "bias": False}),
      ...     ro.scale_by_inverse_metric(),
      ...     optax.trace(0.9),
      ... )
      >>> print(ro.describe(tx, params))
      leaf        shape   phi                 E       effective rate 1/E  state bytes
      ----------  ------  ------------------  ------  ------------------  -----------
      ['bias']    (2,)    Euclidean           1       1                   8
      ['kernel']  (1, 2)  maintenance_energy  1 to 4  0.25 to 1           8
      state: 20 B in all, 4 B of it shared; E at gradients of 1
    """
    tx_or_phi, params, own = taken_apart("describe", "tx_or_phi", tx_or_phi, params)
    state = own if state is None else state
    if isinstance(params, optax.LookaheadParams):
        tx_or_phi, params = _of_fast(tx_or_phi), params.fast
    if alpha is not None and not isinstance(tx_or_phi, Phi):
        _check_no_metric(tx_or_phi, params)
    if alpha is not None or isinstance(tx_or_phi, Phi):
        tx = optax.chain(
            compute_metric(tx_or_phi, 1.0 if alpha is None else alpha), scale_by_inverse_metric()
        )
        if state is not None:
            stages = tx.init(params)
            state = (stages[0]._replace(phi=state), *stages[1:])
    else:
        tx = optax.with_extra_args_support(tx_or_phi)
    where = "gradients of 1" if gradients is None else "the given gradients"
    if gradients is None and state is not None:
        where += ": give gradients for those of the run"
    params, gradients, state, extra_args = _tree.bare((params, gradients, state, extra_args))
    phis, extremes, readings, bases = _read(tx, params, gradients, state, extra_args)
    if _is_abstract((params, gradients, state)):
        where = "nothing: the arrays have no values"
    elif gradients is None and (turned := _turned(bases, params)).any():
        where = "gradients of 1, and of eigenbases at none: give those of the run"
        extremes[turned] = np.nan  # gradients of 1 are of rank one: in a basis their E says nothing of a run
    with _check.quiet():  # what it had to warn of it has
        sizes, shared = _state_bytes(tx, jax.eval_shape(tx.init, params) if state is None else state, params)
    rows = [
        LeafDescription(jax.tree_util.keystr(path), np.shape(leaf), phi, float(low), float(high), size)
        for (path, leaf), phi, (low, high), size in zip(
            jax.tree_util.tree_leaves_with_path(params), phis, extremes, sizes, strict=True
        )
    ]
    bases += _kept_bases(state)
    return Description(tuple(rows), shared, where, _axes.remarks(params, readings), tuple(bases))


def _of_fast(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return what ``optax.lookahead`` does to the fast parameters, as if the slow ones were the same."""
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.OptState:
        return tx.init(optax.LookaheadParams.init_synced(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return tx.update(updates, state, optax.LookaheadParams.init_synced(params), **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _turned(bases: Sequence[str], params: Any) -> np.ndarray[Any, Any]:
    """Return which leaves have a side that an eigenbasis turns, by the lines that say so."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    said = [named(line, names) for line in bases if " turned" in line]
    return np.isin(names, said)


def _is_abstract(tree: Any) -> bool:
    """Return whether an array of a tree has a shape and no values."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _check_values(name: str, *trees: Any) -> None:
    """Raise ``TypeError`` where arrays have a shape and no values."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{name}: {_tree.leaf_name(path[1:])} is abstract, and there are no values to read: give "
                "arrays."
            )


def _check_no_metric(tx: optax.GradientTransformation, params: optax.Params) -> None:
    """Raise ``ValueError`` where what is given with an alpha has a metric: then it is no phi."""
    with _check.quiet():
        state = jax.eval_shape(tx.init, params)
    if _tree.find_states(state, ComputeMetricState):
        raise ValueError(
            "alpha: tx_or_phi has a metric of its own, with an alpha of its own, and is no phi: leave alpha "
            "out, or give the phi alone."
        )


def _kept_bases(state: optax.OptState) -> list[str]:
    kept = 0 if _is_abstract(state) else sum(int(one.kept_bases) for one in eigenbases(state))
    return [f"{kept} times no orthonormal basis was found, and the old one was kept"] if kept else []


def _read(
    tx: optax.GradientTransformationExtraArgs, params: Any, gradients: Any, state: Any, extra_args: Any
) -> tuple[list[str], np.ndarray[Any, Any], dict[Any, Any], list[str]]:
    """Return phi and extremes of ``E`` of each leaf at one update, how leaves were read, and what turns."""
    phis: list[str] = []
    bases: list[str] = []
    readings: dict[Any, Any] = {}

    def read(params: Any, gradients: Any, state: Any) -> list[jax.Array]:
        gradients = jax.tree.map(jnp.ones_like, params) if gradients is None else gradients
        with observe.listen() as observer, _axes.listen() as heard:
            _update(
                "describe", tx, gradients, tx.init(params) if state is None else state, params, extra_args
            )
        readings.update(heard)
        bases[:] = observer.bases
        metrics, names = observer.by_leaf(gradients)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(gradients)]
        phis[:] = [names.get(path, "phi") if path in metrics else "" for path in paths]
        return [metrics.get(path, jnp.ones([])) for path in paths]

    arguments = (params, gradients, state)
    if _is_abstract(arguments):
        try:
            count = len(jax.eval_shape(read, *arguments))
        except ValueError as error:
            if "inside a branch" not in str(error):
                raise
            raise ValueError(
                "describe: the arrays have no values, and tx applies its metric in a branch (MultiSteps, "
                "apply_if_finite), which is not known then: describe the optimiser inside of it."
            ) from error
        return phis, np.full([count, 2], np.nan), readings, bases
    try:
        if is_small(arguments):  # compiling takes time for each shape, and outside of jit for each operation
            metrics = evaluate(jax.make_jaxpr(read)(*arguments), *jax.tree.leaves(arguments))
            return phis, _extremes(metrics), readings, bases
        extremes = jax.jit(lambda *arguments: [_extremes_of_leaf(m, jnp) for m in read(*arguments)])
        return phis, np.asarray(extremes(*arguments)).reshape(-1, 2), readings, bases
    except Exception:  # a metric in a branch can be read outside of jit only, where all other errors return
        with _mesh_of(params), jax.disable_jit():
            return phis, _extremes(read(*arguments)), readings, bases


def _extremes(metrics: list[Any]) -> np.ndarray[Any, Any]:
    """Return the smallest and largest ``E`` of each leaf."""
    return np.asarray([_extremes_of_leaf(np.asarray(metric), np) for metric in metrics]).reshape(-1, 2)


def _extremes_of_leaf(metric: Any, numpy: Any) -> tuple[Any, Any]:
    return (numpy.min(metric), numpy.max(metric)) if metric.size else (1.0, 1.0)


def _state_bytes(
    tx: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> tuple[list[int], int]:
    """Return the bytes of state by parameter, in the order of the leaves, and those of no one parameter."""
    leaves, treedef = jax.tree.flatten(params)
    sizes = [0] * len(leaves)
    indices = jax.tree.unflatten(treedef, range(len(leaves)))

    def count(leaf: Any, index: int) -> Any:
        if not isinstance(leaf, optax.MaskedNode):
            sizes[index] += _bytes(leaf)
        return leaf

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    try:
        optax.tree.map_params(tx, count, state, indices, is_leaf=is_masked)
    except ValueError:  # optax.flatten keeps one vector, which belongs to no one parameter
        sizes = [0] * len(leaves)
    except Exception:  # a function of the user's, for labels or a mask, that reads the parameters
        sizes = _state_bytes_by_structure(state, params)
    total = sum(_bytes(leaf) for leaf in jax.tree.leaves(state))
    return sizes, total - sum(sizes)


def _state_bytes_by_structure(state: optax.OptState, params: optax.Params) -> list[int]:
    """Return the bytes of state by parameter: of what has the structure of the parameters, masks included."""
    numbered = _tree.numbered(params)
    sizes = [0] * len(jax.tree.leaves(params))
    for part in jax.tree.leaves(state, is_leaf=lambda node: _tree.places(node, numbered) is not None):
        arrays, numbers = jax.tree.leaves(part, is_leaf=_tree.is_masked), _tree.places(part, numbered)
        for number, array in [] if numbers is None else zip(numbers, arrays, strict=True):
            if number >= 0 and not _tree.is_masked(array):
                sizes[number] += _bytes(array)
    return sizes


def _bytes(leaf: Any) -> int:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else _tree.dtype_of(leaf)  # a random key's is not NumPy's
    return int(np.size(leaf)) * int(dtype.itemsize)

"""Looking at a metric while it works: statistics of E."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._varying import varying_like
from riemann_optax.covector import Covector, require_covectors


class RecordMetricState(NamedTuple):
    """State of :func:`record_metric`: one float32 number per leaf, in the order of ``jax.tree.leaves``.

    Vectors, not trees of scalars: a tree of scalars in the structure of the parameters would pass for
    parameters in ``optax.tree.map_params``, and get their shardings.

    Attributes:
      metric_min: smallest ``E`` of each leaf at the last update.
      metric_mean: mean ``E`` of each leaf.
      metric_max: largest ``E`` of each leaf.
      rate_min: smallest effective rate ``1/E`` of each leaf.
      rate_mean: mean effective rate of each leaf.
      rate_max: largest effective rate of each leaf.
      metric_quantiles: shape (leaves, number of quantiles), the quantiles of ``E`` asked for; ``()`` where
        none are, because Orbax refuses to save an array without elements.
      leaf_ids: uint32, shape (leaves, 2), a hash of the name of each leaf: under ``optax.partition`` a record
        has some of the leaves of the parameters only, and has to say which.
    """

    metric_min: jax.Array
    metric_mean: jax.Array
    metric_max: jax.Array
    rate_min: jax.Array
    rate_mean: jax.Array
    rate_max: jax.Array
    metric_quantiles: jax.Array | tuple[()]
    leaf_ids: jax.Array


def record_metric(quantiles: tuple[float, ...] = ()) -> optax.GradientTransformationExtraArgs:
    """Pass updates through and keep each leaf's smallest, mean and largest ``E`` and effective rate ``1/E``.

    Place it between the stages, after the edits of the metric. Leaves without a metric count as ``E = 1``.
    Read the state with :func:`metric_statistics`. Under sharding, one all-reduce for each statistic of each
    leaf, which XLA combines; quantiles sort, and therefore gather, each leaf.

    Args:
      quantiles: which quantiles of ``E`` to keep as well, each in [0, 1].

    Returns:
      A gradient transformation with state :class:`RecordMetricState`, ones before the first update.

    Raises:
      TypeError: where ``quantiles`` are no sequence.
      ValueError: for a quantile outside [0, 1]; at ``update``, where no leaf carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy(), alpha=1.0),
      ...     ro.record_metric(),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> params = {"w": jnp.array([0.0, 3.0])}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> for name, value in ro.metric_statistics(state, params)["['w']"].items():
      ...     print(name, value)
      metric_min 1.0
      metric_mean 2.5
      metric_max 4.0
      rate_min 0.25
      rate_mean 0.625
      rate_max 1.0
    """
    if not isinstance(quantiles, tuple | list):
        raise TypeError(f"quantiles must be a tuple of numbers, got {quantiles!r}.")
    for quantile in quantiles:
        _check.check_number("quantiles", quantile, low=0.0, high=1.0)

    def init(params: optax.Params) -> RecordMetricState:
        ids = list(_names_by_id(params))
        leaves = len(ids)
        # Six separate buffers: one shared by six fields could not be donated.
        statistics = [jnp.ones([leaves], jnp.float32) for _ in range(6)]
        table = jnp.ones([leaves, len(quantiles)], jnp.float32) if quantiles else ()
        leaf_ids = jnp.asarray(np.asarray(ids, np.uint32).reshape(-1, 2))
        statistics, table = varying_like((statistics, table), params)
        return RecordMetricState._make([*statistics, table, leaf_ids])

    def update(
        updates: optax.Updates,
        state: RecordMetricState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RecordMetricState]:
        del params, extra_args
        require_covectors(updates, "record_metric")
        leaves = jax.tree.leaves(updates)

        def collect(statistic: Callable[[Covector], jax.Array], length: int) -> jax.Array:
            euclidean = jnp.ones([length], jnp.float32)
            carries = [isinstance(leaf, Covector) and leaf.metric.size > 0 for leaf in leaves]
            rows = [statistic(leaf) if c else euclidean for leaf, c in zip(leaves, carries, strict=True)]
            return jnp.stack(rows) if rows else jnp.ones([0, length], jnp.float32)

        columns = collect(_statistics, 6)
        table = state.metric_quantiles
        if quantiles:
            levels = jnp.asarray(quantiles, jnp.float32)
            table = collect(
                lambda c: jnp.quantile(_tree.gathered(c.metric).astype(jnp.float32), levels), levels.size
            )
        numbers = (columns[:, index] for index in range(6))
        return updates, RecordMetricState._make([*numbers, table, state.leaf_ids])

    return optax.GradientTransformationExtraArgs(init, update)


def _statistics(covector: Covector) -> jax.Array:
    """Return smallest, mean and largest ``E`` and ``1/E``; the extremes of one are those of the other."""
    stored, other = covector.metric, covector.inverse_metric
    if covector.inverted:
        stored, other = other, stored
    low, high = jnp.min(stored), jnp.max(stored)
    rows = [low, jnp.mean(stored), high], [1 / high, jnp.mean(other), 1 / low]
    first, second = reversed(rows) if covector.inverted else rows
    return jnp.stack([*first, *second]).astype(jnp.float32)


def metric_statistics(state: optax.OptState, params: optax.Params) -> dict[str, dict[str, float]]:
    """Return what :func:`record_metric` has kept, by leaf.

    Args:
      state: the state of a transformation with ``record_metric`` in it, once or, as in ``optax.partition``,
        in several parts with leaves of their own. Variables of Flax NNX may stay in it, and in ``params``.
      params: the parameters, for the names of the leaves.

    Returns:
      ``{leaf path: {"metric_min": ..., ..., "rate_max": ...}}`` with Python floats, and
      ``"metric_quantiles"`` as a list where quantiles were asked for; in the order of ``params``, without the
      leaves that no record has.

    Raises:
      ValueError: where there is no such state, one of other parameters, two of the same leaf, or the state of
        several runs under ``jax.vmap``.
      TypeError: inside of ``jit``, or for an abstract state.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.riemannian_sgd(0.1, record=True)
      >>> params = {"w": jnp.zeros(2)}
      >>> print(list(ro.metric_statistics(tx.init(params), params)))
      ["['w']"]
    """
    found_records = _tree.find_states(_tree.bare(state), RecordMetricState)
    if not found_records:
        raise ValueError(
            "metric_statistics: the state holds no record of a metric: put record_metric() between the "
            "stages."
        )
    for record in found_records:
        check_readable("metric_statistics", record.metric_mean, ndim=1)
    records = jax.device_get(found_records)
    names = _names_by_id(params)
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for index, words in enumerate(record.leaf_ids):
            name = names.get(tuple(map(int, words)))
            if name is None:
                raise ValueError(
                    f"metric_statistics: the record has {len(record.leaf_ids)} leaves, and number {index} of "
                    "them is none of params: pass the parameters as this part of the optimiser sees them."
                )
            if name in found:
                raise ValueError(
                    f"metric_statistics: the state holds two records of leaf {name}: pass the part of the "
                    "state that holds one."
                )
            fields = record._fields[: record._fields.index("metric_quantiles")]
            found[name] = {field: float(getattr(record, field)[index]) for field in fields}
            if len(record.metric_quantiles):
                found[name]["metric_quantiles"] = record.metric_quantiles[index].tolist()
    return {name: found[name] for name in names.values() if name in found}


def check_readable(name: str, array: Any, ndim: int = 0) -> None:
    """Raise an error unless an array of a state holds values, of one run.

    Args:
      name: of the function that reads them.
      array: of the state.
      ndim: the number of axes that it has in the state of one run.
    """
    if isinstance(array, jax.core.Tracer):
        raise TypeError(
            f"{name} makes Python numbers, and inside of jit or vmap there are none: return the state from "
            "the compiled step, and read it then."
        )
    if isinstance(array, jax.ShapeDtypeStruct):
        raise TypeError(f"{name}: the state is abstract, and there are no values to read: pass one of a run.")
    if jnp.ndim(array) > ndim:
        raise ValueError(
            f"{name}: the state is that of {jnp.shape(array)[0]} runs at once, as jax.vmap makes it: read "
            "one of them, jax.tree.map(lambda x: x[0], (state, params))."
        )


def _names_by_id(params: optax.Params) -> dict[tuple[int, ...], str]:
    """Return the names of the leaves by the words of their hashes, in the order of the leaves."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(_tree.bare(params))]
    return {_words(jax.tree_util.keystr(path)): jax.tree_util.keystr(path) for path in paths}


def _words(name: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return tuple(int(word) for word in np.frombuffer(digest, "<u4"))

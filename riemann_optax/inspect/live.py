"""Seeing a metric live: one flat dictionary of scalars from the state of an optimiser."""

from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax.boundary import is_nnx_optimizer, trained
from riemann_optax.eigenbasis import InEigenbasisState
from riemann_optax.eigenbasis.schedule import refreshes
from riemann_optax.inspect.energy import SynapticCachingState, TrackEnergyState
from riemann_optax.inspect.recording import RecordMetricState, check_readable, metric_statistics


def metric_scalars(
    state: optax.OptState,
    params: optax.Params,
    prefix: str = "",
    groups: Any = None,
    *,
    quantiles: Sequence[float] = (),
    rigid_above: float = 2.0,
    update_every: int | None = None,
    settling_steps: int = 0,
) -> dict[str, float]:
    """Return what the recorders in an optimiser's state know, as a flat dictionary of Python numbers.

    For a writer of logs: ``writer.write_scalars(step, scalars)`` of ``clu``, ``wandb.log(scalars, step)``, or
    ``for name, value in scalars.items(): writer.add_scalar(name, value, step)`` of TensorBoard.

    Cost: it waits for the last update and copies 32 bytes for each leaf to the host, 4 more for each
    quantile, and a scalar for each of the others. So call it every so many steps, outside of ``jit``. A step
    itself does nothing more than ``record_metric`` (``record=True`` of the aliases) and ``track_energy`` do.

    A weight counts as rigid where ``E > rigid_above``. The share of rigid weights is read off the quantiles
    of a record, linearly between two of them, and so is right to the largest gap between their levels.
    Without quantiles there is no share: the mean of ``E`` does not tell.

    Args:
      state: the state of the optimiser, or an ``nnx.Optimizer``; with ``record_metric``, ``track_energy``,
        ``synaptic_caching``, ``in_eigenbasis``, ``skip_nonfinite`` or ``inject_hyperparams`` anywhere in it.
      params: the parameters, for the names of the leaves; with an ``nnx.Optimizer`` the model will do.
      prefix: put before each name.
      groups: a function of a leaf's path that names its group: of the leaves of a group the extremes, and the
        mean of their means weighted by their sizes. None gives each leaf.
      quantiles: the levels that ``record_metric(quantiles)`` was made with, which its state does not hold;
        with them, the share of rigid weights is given.
      rigid_above: the ``E`` above which a weight is rigid; at 2 it takes less than half of a Euclidean step.
      update_every: the steps between two refreshes that ``in_eigenbasis(update_every=...)`` was made with,
        which its state does not hold; with it, the refreshes of a basis are given. Under a ``refresh_budget``
        it is the longer period that :func:`describe` shows.
      settling_steps: likewise its steps until then: give 300 for :func:`riemannian_eigenbasis`. Default 0.

    Returns:
      ``E_min/LEAF``, ``E_mean/LEAF``, ``E_max/LEAF``, and likewise ``rate`` for the effective rate ``1/E``;
      ``rigid/LEAF``, the share of rigid weights; ``energy/modification``, ``energy/maintenance`` (now) and
      ``energy/total_maintenance`` (over all updates), and the same of ``synaptic_caching`` with
      ``caching/consolidations``, summed over the parts of a partition;
      ``bad_steps`` and ``bad_steps_in_a_row``, skipped by ``skip_nonfinite`` or ``optax.apply_if_finite``;
      ``eigenbasis/updates`` and ``eigenbasis/kept_bases`` of ``in_eigenbasis``, how often a basis was due and
      none was found; ``eigenbasis/refreshes``, how often a refresh of the first basis was due (they take
      turns, so of others it was once or, while they settle, a few times more; with ``tau`` one that has not
      turned stays as it is); ``hyperparams/NAME`` of
      ``optax.inject_hyperparams``, and of several with one name ``hyperparams/LABEL/NAME`` with the label of
      ``optax.partition``, or with their number.

    Raises:
      ValueError: where the state holds none of these, or is that of several runs under ``jax.vmap``; a level
        is outside [0, 1], or a record has another number of quantiles.
      TypeError: inside of ``jit``, for an abstract state, or for a transformation in the place of its state.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.riemannian_sgd(0.1, phi=ro.phi.maintenance_energy(), alpha=1.0, conformal=None, record=True)
      >>> params = {"w": jnp.array([0.0, 3.0])}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> for name, value in ro.metric_scalars(state, params).items():
      ...     print(name, value)
      E_min/w 1.0
      E_mean/w 2.5
      E_max/w 4.0
      rate_min/w 0.25
      rate_mean/w 0.625
      rate_max/w 1.0
    """
    quantiles = np.asarray(quantiles).tolist() if isinstance(quantiles, np.ndarray | jax.Array) else quantiles
    numbers = isinstance(quantiles, Sequence) and all(isinstance(one, Real) for one in quantiles)
    if not numbers or not all(0 <= level <= 1 for level in quantiles):
        raise ValueError(f"quantiles must be levels in [0, 1], such as (0.5, 0.9), got {quantiles!r}.")
    _check.check_number("rigid_above", rigid_above)
    if groups is not None and not callable(groups):
        raise TypeError(f"groups must be a function of a leaf's path, or None for each leaf, got {groups!r}.")
    if update_every is not None:
        _check.check_count("update_every", update_every)
    _check.check_count("settling_steps", settling_steps, low=0)
    if isinstance(state, optax.GradientTransformation):
        raise TypeError("metric_scalars: state is the transformation: pass the state that update returns.")
    if params is None:
        raise TypeError("metric_scalars: params must be the parameters, got None: they name the leaves.")
    if is_nnx_optimizer(state):
        params = _of_model(state, params)
    state = _tree.bare(getattr(state, "opt_state", state))
    params = _tree.bare(params)
    _check_values(state)
    scalars: dict[str, float] = {}
    if _tree.find_states(state, RecordMetricState):
        scalars |= _of_leaves(metric_statistics(state, params), params, groups, quantiles, rigid_above)
    for kind, prefix_of in ((TrackEnergyState, "energy"), (SynapticCachingState, "caching")):
        for spent in jax.device_get(_tree.find_states(state, kind)):
            for name in ("modification", "maintenance", "total_maintenance", "consolidations"):
                if hasattr(spent, name):
                    key = f"{prefix_of}/{name}"
                    scalars[key] = scalars.get(key, 0.0) + float(getattr(spent, name))
    for guard in _tree.find_states(state, optax.ApplyIfFiniteState):
        for name, count in (("", guard.total_notfinite), ("_in_a_row", guard.notfinite_count)):
            scalars[f"bad_steps{name}"] = scalars.get(f"bad_steps{name}", 0.0) + float(count)
    turned = eigenbases(state)
    if turned:
        scalars["eigenbasis/updates"] = float(max(int(one.count) for one in turned))
        scalars["eigenbasis/kept_bases"] = float(sum(int(one.kept_bases) for one in turned))
        if update_every is not None:
            last = max(int(scalars["eigenbasis/updates"]) - 1, 0)  # the first update finds the bases
            scalars["eigenbasis/refreshes"] = float(refreshes(last, update_every, settling_steps))
    scalars |= _hyperparams(state)
    if not scalars:
        raise ValueError(
            "metric_scalars: the state holds nothing that records: put record_metric() between the stages "
            "(record=True of the aliases) or track_energy() last."
        )
    return {prefix + name: value for name, value in scalars.items()}


def eigenbases(state: Any) -> list[InEigenbasisState]:
    """Return the states of all eigenbases, also of one inside of another, as ``soap`` has them."""
    found: list[InEigenbasisState] = []
    for one in _tree.find_states(state, InEigenbasisState):
        found += [one, *eigenbases(one.inner)]
    return found


def _of_model(optimizer: Any, params: Any) -> Any:
    from flax import nnx

    return trained("metric_scalars", optimizer, params) if isinstance(params, nnx.Module) else params


def _check_values(state: Any) -> None:
    """Raise an error where the state is of several runs, or there are no values in it."""
    one_per_leaf = [record.metric_mean for record in _tree.find_states(state, RecordMetricState)]
    scalars = [
        energy.modification
        for kind in (TrackEnergyState, SynapticCachingState)
        for energy in _tree.find_states(state, kind)
    ]
    scalars += [guard.total_notfinite for guard in _tree.find_states(state, optax.ApplyIfFiniteState)]
    scalars += [turned.count for turned in _tree.find_states(state, InEigenbasisState)]
    scalars += [made.count for made in _tree.find_states(state, optax.InjectStatefulHyperparamsState)]
    for arrays, ndim in ((one_per_leaf, 1), (scalars, 0)):
        for array in arrays:
            check_readable("metric_scalars", array, ndim)


def _hyperparams(state: Any) -> dict[str, float]:
    """Return the injected numbers; of several with one name, with what tells them apart before it."""
    found = list(_injected(state))
    names = Counter(name for _, _, name, _ in found)
    labelled = Counter((labels, name) for labels, _, name, _ in found)
    scalars = {}
    for labels, number, name, value in found:
        parts = () if names[name] == 1 else labels
        if names[name] > 1 and labelled[labels, name] > 1:
            parts = (*labels, str(number))
        scalars["/".join(("hyperparams", *parts, name))] = value
    return scalars


def _injected(state: Any) -> Iterator[tuple[tuple[str, ...], int, str, float]]:
    """Yield labels of ``optax.partition``, number of the state, name and value of each injected number."""

    def is_injected(node: Any) -> bool:
        return isinstance(node, optax.InjectStatefulHyperparamsState)

    waiting: list[tuple[tuple[str, ...], Any]] = [((), state)]
    number = 0
    while waiting:
        outer, tree = waiting.pop(0)
        for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_injected):
            if not is_injected(node):
                continue
            labels = outer + tuple(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
            for name, value in node.hyperparams.items():
                if np.ndim(value) == 0 and _is_real(value):
                    yield labels, number, name, float(value)
            number += 1
            waiting.append((labels, node.inner_state))


def _is_real(value: Any) -> bool:
    """Return whether a value is a number that a float can show: a random key and a complex number are not."""
    dtype = value.dtype if hasattr(value, "dtype") else _tree.dtype_of(value)
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))


def _of_leaves(
    statistics: dict[str, dict[str, Any]],
    params: Any,
    groups: Any,
    quantiles: Sequence[float],
    rigid_above: float,
) -> dict[str, float]:
    named: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    short_names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for (path, leaf), name in zip(leaves, short_names, strict=True):
        row = statistics.get(jax.tree_util.keystr(path))
        if row is not None:
            if groups is None and short_names.count(name) > 1:  # of {"a/b": ..., "a": {"b": ...}}
                name = jax.tree_util.keystr(path)
            named.setdefault(name if groups is None else str(groups(name)), []).append((np.size(leaf), row))
    scalars = {}
    for name, rows in named.items():
        weights = [size for size, _ in rows]
        for short, field in (("E", "metric"), ("rate", "rate")):
            scalars[f"{short}_min/{name}"] = min(row[f"{field}_min"] for _, row in rows)
            means = [row[f"{field}_mean"] for _, row in rows]
            scalars[f"{short}_mean/{name}"] = float(
                np.average(means, weights=weights if sum(weights) else None)
            )
            scalars[f"{short}_max/{name}"] = max(row[f"{field}_max"] for _, row in rows)
        if quantiles:
            shares = [_rigid_share(row, quantiles, rigid_above) for _, row in rows]
            scalars[f"rigid/{name}"] = float(np.average(shares, weights=weights if sum(weights) else None))
    return scalars


def _rigid_share(row: dict[str, Any], quantiles: Sequence[float], rigid_above: float) -> float:
    """Return the share of weights with ``E > rigid_above``, by the recorded quantiles of ``E``."""
    values = row.get("metric_quantiles", [])
    if len(values) != len(quantiles):
        raise ValueError(
            f"metric_scalars: quantiles has {len(quantiles)} levels and the record has {len(values)}: give "
            "the levels that record_metric was made with."
        )
    if rigid_above < row["metric_min"]:
        return 1.0
    levels, values = zip(
        *sorted([(0.0, row["metric_min"]), *zip(quantiles, values, strict=True), (1.0, row["metric_max"])]),
        strict=True,
    )
    return float(1 - np.interp(rigid_above, values, levels))

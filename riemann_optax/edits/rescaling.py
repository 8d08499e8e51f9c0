"""Edits that rescale a metric: by its own mean, or into bounds."""

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._tree import Group
from riemann_optax.covector import Covector, map_covectors
from riemann_optax.edits._edit import stateless_edit


def normalize_metric(over: Group = "tree", *, axes: Axes = "flax") -> optax.GradientTransformationExtraArgs:
    r"""Divide the metric by its mean, :math:`E_i \leftarrow E_i/\mathrm{mean}(E)`.

    The metric then divides the rate among the weights, and the learning rate alone sets its size. Place it
    before :func:`competitive_plasticity`, which gives losing weights an infinite ``E``: the mean would be
    infinite too.

    Args:
      over: the group of the mean: ``"tree"`` (under sharding one all-reduce per leaf, which XLA combines),
        ``"leaf"`` or ``"neuron"`` (the fan-in of each output, by ``axes``).
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.

    Returns:
      A gradient transformation without state, to be placed between the two stages.

    Raises:
      ValueError: for an unknown group or ``axes``; at ``update``, where no leaf carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy(), alpha=1.0),
      ...     ro.normalize_metric(),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> params = jnp.array([0.0, 2.0])
      >>> print(ro.metric_at(tx, params, tx.init(params), params))
      [0.5 1.5]
    """
    _check.check_choice("over", over, _tree.GROUPS)
    _axes.check_axes(axes)

    def edit(updates: optax.Updates) -> optax.Updates:
        metric = map_covectors(
            lambda c: jnp.broadcast_to(c.metric, c.shape), updates, euclidean=lambda _: optax.MaskedNode()
        )
        means = _axes.group_mean(metric, over, axes)
        return jax.tree.map(
            lambda c, mean: c.with_metric(c.metric / mean) if isinstance(c, Covector) else c, updates, means
        )

    return stateless_edit("normalize_metric", edit)


def clip_metric(low: float | None = None, high: float | None = None) -> optax.GradientTransformationExtraArgs:
    r"""Clip the metric to ``low <= E <= high``, and so the effective rates to ``1/high`` and ``1/low``.

    .. math::
      E_i \leftarrow \min\big(\max(E_i, \mathrm{low}), \mathrm{high}\big)

    Place it before :func:`competitive_plasticity`, which stops weights by an infinite ``E``: clipped to
    ``high`` they would move again.

    Args:
      low: the smallest ``E``, positive, or None.
      high: the largest ``E``, positive, or None.

    Returns:
      A gradient transformation without state, to be placed between the two stages.

    Raises:
      ValueError: where a concrete bound is not positive or ``low > high``; at ``update``, where no leaf
        carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy(), alpha=1.0),
      ...     ro.clip_metric(high=10.0),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> params = jnp.array([0.0, 50.0])
      >>> print(ro.metric_at(tx, params, tx.init(params), params))
      [ 1. 10.]
    """
    for name, bound in (("low", low), ("high", high)):
        if bound is not None:
            _check.check_number(name, bound, low=0.0, low_open=True)
    if _check.is_concrete_number(low) and _check.is_concrete_number(high) and low > high:  # type: ignore[operator]
        raise ValueError(f"low must not exceed high, got low={low} and high={high}.")

    def clip(covector: Covector) -> Covector:
        metric = covector.metric
        if low is not None:
            metric = jnp.maximum(metric, jnp.asarray(low, metric.dtype))
        if high is not None:
            metric = jnp.minimum(metric, jnp.asarray(high, metric.dtype))
        return covector.with_metric(metric)

    return stateless_edit("clip_metric", lambda updates: map_covectors(clip, updates))

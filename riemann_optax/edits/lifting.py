"""Edits that lift an Optax transformation to one half of the covector, or multiply the metric by a phi."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from riemann_optax import _tree
from riemann_optax._check import check_transformation
from riemann_optax.covector import Covector, map_covectors, require_covectors
from riemann_optax.metric import check_phi_values, split
from riemann_optax.phi import from_weights


class OnMetricState(NamedTuple):
    """State of :func:`on_metric`.

    Attributes:
      state_of_metric: the state of the transformation, whose values are of ``E`` and not of the gradient.
    """

    state_of_metric: optax.OptState


OnMetricState.is_of_metric = True  # type: ignore[attr-defined]


def on_metric(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Apply an Optax transformation to the metric ``E`` and leave the gradient alone.

    .. math::
      (\nabla f,\, E) \;\mapsto\; (\nabla f,\, \mathrm{tx}(E))

    For example ``on_metric(optax.ema(0.9))`` smooths the metric over time. ``tx`` sees the tree of ``E`` in
    float32 (or wider), with 1 for Euclidean leaves, which stay Euclidean. Keeping ``E > 0`` is up to ``tx``.

    Args:
      tx: any transformation whose result has the structure of its input.

    Returns:
      A gradient transformation with state :class:`OnMetricState`, to be placed between the two stages.

    Raises:
      TypeError: where ``tx`` is no gradient transformation.
      ValueError: at ``update``, where no leaf carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy(), alpha=1.0),
      ...     ro.on_metric(optax.scale(2.0)),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> params = jnp.array([0.0, 1.0])
      >>> print(ro.metric_at(tx, params, tx.init(params), params))
      [2. 4.]
    """
    check_transformation("tx", tx)
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> OnMetricState:
        return OnMetricState(tx.init(_tree.zeros_like(params)))

    def update(
        updates: optax.Updates, state: OnMetricState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, OnMetricState]:
        require_covectors(updates, "on_metric")
        params = _tree.trained(params, updates)
        _, metric = split(updates)
        metric, inner = tx.update(metric, state.state_of_metric, params, **extra_args)
        return _with_metric(updates, metric), OnMetricState(inner)

    return optax.GradientTransformationExtraArgs(init, update)


def on_gradient(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Apply an Optax transformation to the gradient and leave the metric attached to it alone.

    .. math::
      (\nabla f,\, E) \;\mapsto\; (\mathrm{tx}(\nabla f),\, E)

    ``on_gradient(optax.trace(0.9))`` is momentum on the covector. Before stage 1 the same momentum would also
    change what phi sees; here phi sees the raw gradient.

    Args:
      tx: any transformation whose result has the structure of its input; Euclidean leaves are included. It
        sees gradients and parameters in float32 or wider, and the result has the dtype of the gradient.

    Returns:
      A gradient transformation with the state of ``tx``, to be placed between the two stages.

    Raises:
      TypeError: where ``tx`` is no gradient transformation.
      ValueError: at ``update``, where no leaf carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.activity(), alpha=1.0),
      ...     ro.on_gradient(optax.clip(1.0)),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> gradients = jnp.array([3.0])
      >>> print(tx.update(gradients, tx.init(gradients))[0])  # clipped to 1, but E = 1 + 3
      [0.25]
    """
    check_transformation("tx", tx)
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.OptState:
        return tx.init(_tree.widen(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        require_covectors(updates, "on_gradient")
        components = _tree.widen(_components(updates))
        weights = _tree.widen(_tree.trained(params, updates))
        components, state = tx.update(components, state, weights, **extra_args)

        def attach(old: Any, new: jax.Array) -> Any:
            new = new.astype(old.dtype)
            return old.with_components(new) if isinstance(old, Covector) else new

        return jax.tree.map(attach, updates, components), state

    return optax.GradientTransformationExtraArgs(init, update)


def multiply_metric(
    factor: optax.GradientTransformation | Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    r"""Multiply the metric by a second factor, :math:`E_i \leftarrow E_i\,c_i`.

    Args:
      factor: a phi, whose value is the factor; or a function of a weight array that returns the factor in
        its shape, such as ``lambda w: 1 / (abs(w) + 1e-3)`` for the multiplicative geometry in which large
        weights move more. The factor must be positive.

    Returns:
      A gradient transformation with the state of ``factor``, to be placed between the two stages.

    Raises:
      TypeError: where ``factor`` is neither.
      ValueError: at ``update``, where no leaf carries a metric or the factor has another structure.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy(), alpha=1.0),
      ...     ro.multiply_metric(lambda w: 1 / (abs(w) + 0.5)),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> params = jnp.array([0.0, 0.5])
      >>> print(ro.metric_at(tx, params, tx.init(params), params))  # (1 + |w|) / (|w| + 0.5)
      [2.  1.5]

    References:
      Cornford et al, `Brain-like learning with exponentiated gradients
      <https://doi.org/10.1101/2024.10.25.620272>`_, bioRxiv, 2024
    """
    if callable(factor) and not isinstance(factor, optax.GradientTransformation):
        factor = from_weights(factor)
    check_transformation("factor", factor)
    phi = optax.with_extra_args_support(factor)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        require_covectors(updates, "multiply_metric")
        components = _components(updates)
        values, state = phi.update(components, state, _tree.trained(params, updates), **extra_args)
        check_phi_values(values, components)

        def multiply(covector: Any, value: jax.Array) -> Any:
            if not isinstance(covector, Covector):
                return covector
            if covector.inverted:
                return covector.with_inverse_metric(covector.inverse_metric / value)
            return covector.with_metric(covector.metric * value)

        return jax.tree.map(multiply, updates, values), state

    return optax.GradientTransformationExtraArgs(phi.init, update)


def _components(updates: optax.Updates) -> optax.Updates:
    return map_covectors(lambda c: c.components, updates)


def _with_metric(updates: optax.Updates, metric: optax.Updates) -> optax.Updates:
    return jax.tree.map(
        lambda old, new: old.with_metric(new) if isinstance(old, Covector) else old, updates, metric
    )

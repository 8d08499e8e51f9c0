"""The metric that has Adam's units of rate, which all aliases but one share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check
from riemann_optax._axes import Axes
from riemann_optax._tree import Group
from riemann_optax.covector import Covector, map_covectors
from riemann_optax.edits._edit import stateless_edit
from riemann_optax.inspect.recording import record_metric
from riemann_optax.metric import Role, compute_metric
from riemann_optax.phi import factored_activity

# Until then bases are refreshed more often, at first in every step: they turn fastest when training begins.
SETTLING_STEPS = 300


def adaptive_metric(
    phi: optax.GradientTransformation | None,
    alpha: optax.ScalarOrSchedule,
    b2: float,
    eps: float,
    role: Role,
    conformal: Group | None,
    record: bool,
    axes: Axes,
) -> list[optax.GradientTransformation]:
    """Return stage 1 with its edits: the metric whose rates are Adam's."""
    _check.check_number("eps", eps, low=0.0)
    _check.check_decay(b2, "b2")
    _check.check_flag("record", record)
    edits: list[optax.GradientTransformation] = [] if role == "inverse_metric" else [_add_to_metric(eps)]
    if phi is None:
        phi = factored_activity(decay=b2, axes=axes)
        if role == "metric" and conformal is not None:  # E is then a root mean square gradient
            edits.append(_bound_steps(b2))
    if record:
        edits.append(record_metric())
    return [compute_metric(phi, alpha, role, conformal=conformal, axes=axes), *edits]


def _add_to_metric(eps: float) -> optax.GradientTransformationExtraArgs:
    def add(covector: Covector) -> Covector:
        metric = covector.metric
        return covector.with_metric(metric + jnp.asarray(eps).astype(metric.dtype))

    return stateless_edit("eps", lambda updates: map_covectors(add, updates))


def _bound_steps(b2: float) -> optax.GradientTransformationExtraArgs:
    """Keep ``E`` at what the present gradient alone would add to a mean of squares with decay ``b2``.

    Rows times columns know nothing of one weight: in a silent row and column the product is far below the
    weight's own root mean square, and the step without bound.
    """

    def bound_all(updates: optax.Updates) -> optax.Updates:
        @functools.cache  # once for each dtype, not for each leaf
        def share(dtype: Any) -> jax.Array:
            return jnp.sqrt(1 - jnp.asarray(b2).astype(dtype))

        def bound(covector: Covector) -> Covector:
            metric = covector.metric
            size = jnp.abs(covector.components).astype(metric.dtype)
            return covector.with_metric(jnp.maximum(metric, share(metric.dtype) * size))

        return map_covectors(bound, updates)

    return stateless_edit("bound_steps", bound_all)

"""Wrappers: from an optimiser to an optimiser."""

from riemann_optax.wrappers.guard import skip_nonfinite
from riemann_optax.wrappers.kinds import parameter_kinds, partition_by_kind
from riemann_optax.wrappers.norm_matched import NormMatchedBaseState, norm_matched_base
from riemann_optax.wrappers.precision import (
    LowPrecisionState,
    MasterWeightsState,
    low_precision_state,
    master_weights,
)
from riemann_optax.wrappers.restart import RestartAtBoundaryState, restart_at_boundary

__all__ = [
    "LowPrecisionState",
    "MasterWeightsState",
    "NormMatchedBaseState",
    "RestartAtBoundaryState",
    "low_precision_state",
    "master_weights",
    "norm_matched_base",
    "parameter_kinds",
    "partition_by_kind",
    "restart_at_boundary",
    "skip_nonfinite",
]

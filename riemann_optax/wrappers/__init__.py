"""Wrappers: each takes an optimiser and returns one."""

from riemann_optax.wrappers.guard import skip_nonfinite
from riemann_optax.wrappers.kinds import parameter_kinds, partition_by_kind
from riemann_optax.wrappers.norm_matched import NormMatchedBaseState, norm_matched_base
from riemann_optax.wrappers.precision import (
    LowPrecisionState,
    MasterWeightsState,
    low_precision_state,
    master_weights,
)
from riemann_optax.wrappers.reset import ResetUnitsState, reset_units
from riemann_optax.wrappers.restart import RestartAtBoundaryState, restart_at_boundary
from riemann_optax.wrappers.soft_resets import SoftResetsState, soft_resets
from riemann_optax.wrappers.unit_rules import (
    DormantUnitsState,
    LeastUsefulUnitsState,
    SilentUnitsState,
    UnitRule,
    dormant_units,
    least_useful_units,
    silent_units,
)

__all__ = [
    "DormantUnitsState",
    "LeastUsefulUnitsState",
    "LowPrecisionState",
    "MasterWeightsState",
    "NormMatchedBaseState",
    "ResetUnitsState",
    "RestartAtBoundaryState",
    "SilentUnitsState",
    "SoftResetsState",
    "UnitRule",
    "dormant_units",
    "least_useful_units",
    "low_precision_state",
    "master_weights",
    "norm_matched_base",
    "parameter_kinds",
    "partition_by_kind",
    "reset_units",
    "restart_at_boundary",
    "silent_units",
    "skip_nonfinite",
    "soft_resets",
]

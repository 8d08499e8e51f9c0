"""Riemannian metrics for Optax: per-parameter learning rates you can choose, see and trust."""

import importlib

from riemann_optax import anchor, checkpoint, fields, geometry, phi, sharding, supply, testing
from riemann_optax._annotated import annotated_axes
from riemann_optax._conventions import MatrixAxes, kernel_axes
from riemann_optax._version import __version__ as __version__
from riemann_optax.anchor.isometry import IsometryPullState, add_isometry_pull
from riemann_optax.anchor.pull import AnchoredWeightsState, add_anchored_weights
from riemann_optax.anchor.spectral import SpectralPullState, add_spectral_pull
from riemann_optax.boundary import ConsolidatingState, consolidate
from riemann_optax.covector import Covector, MetricAttachedError
from riemann_optax.edits import (
    MetricNoiseState,
    OnMetricState,
    add_idle_noise,
    add_metric_noise,
    check_metric,
    clip_metric,
    competitive_plasticity,
    momentum_from_phi,
    multiply_metric,
    normalize_metric,
    on_gradient,
    on_metric,
)
from riemann_optax.eigenbasis import BoundaryInEigenbasisState, InEigenbasisState, in_eigenbasis
from riemann_optax.fields import attach_field
from riemann_optax.geometry.retraction import retract
from riemann_optax.geometry.spectrum import Spectrum, preconditioned_spectrum
from riemann_optax.inspect import (
    Description,
    LeafDescription,
    RecordMetricState,
    SynapticCachingState,
    TrackEnergyState,
    describe,
    metric_at,
    metric_scalars,
    metric_statistics,
    record_metric,
    synaptic_caching,
    track_energy,
)
from riemann_optax.metric import ComputeMetricState, compute_metric, split
from riemann_optax.optimizers import (
    ScheduleFreeState,
    SoapState,
    ema,
    eval_params,
    riemannian_adamw,
    riemannian_eigenbasis,
    riemannian_schedule_free,
    riemannian_sgd,
    schedule_free,
    soap,
    starting_rate,
)
from riemann_optax.scaling import in_orthonormal_frame, scale_by_inverse_metric, scale_by_metric
from riemann_optax.supply import value_and_grad
from riemann_optax.wrappers import (
    DormantUnitsState,
    LeastUsefulUnitsState,
    LowPrecisionState,
    MasterWeightsState,
    NormMatchedBaseState,
    ResetUnitsState,
    RestartAtBoundaryState,
    SilentUnitsState,
    SoftResetsState,
    UnitRule,
    dormant_units,
    least_useful_units,
    low_precision_state,
    master_weights,
    norm_matched_base,
    parameter_kinds,
    partition_by_kind,
    reset_units,
    restart_at_boundary,
    silent_units,
    skip_nonfinite,
    soft_resets,
)

__all__ = [
    "AnchoredWeightsState",
    "BoundaryInEigenbasisState",
    "ComputeMetricState",
    "ConsolidatingState",
    "Covector",
    "Description",
    "DormantUnitsState",
    "InEigenbasisState",
    "IsometryPullState",
    "LeafDescription",
    "LeastUsefulUnitsState",
    "LowPrecisionState",
    "MasterWeightsState",
    "MatrixAxes",
    "MetricAttachedError",
    "MetricNoiseState",
    "NormMatchedBaseState",
    "OnMetricState",
    "RecordMetricState",
    "ResetUnitsState",
    "RestartAtBoundaryState",
    "ScheduleFreeState",
    "SilentUnitsState",
    "SoapState",
    "SoftResetsState",
    "SpectralPullState",
    "Spectrum",
    "SynapticCachingState",
    "TrackEnergyState",
    "UnitRule",
    "add_anchored_weights",
    "add_idle_noise",
    "add_isometry_pull",
    "add_metric_noise",
    "add_spectral_pull",
    "anchor",
    "annotated_axes",
    "attach_field",
    "check_metric",
    "checkpoint",
    "clip_metric",
    "competitive_plasticity",
    "compute_metric",
    "consolidate",
    "describe",
    "dormant_units",
    "ema",
    "eval_params",
    "fields",
    "geometry",
    "in_eigenbasis",
    "in_orthonormal_frame",
    "kernel_axes",
    "least_useful_units",
    "low_precision_state",
    "master_weights",
    "metric_at",
    "metric_scalars",
    "metric_statistics",
    "momentum_from_phi",
    "multiply_metric",
    "norm_matched_base",
    "normalize_metric",
    "on_gradient",
    "on_metric",
    "parameter_kinds",
    "partition_by_kind",
    "phi",
    "preconditioned_spectrum",
    "record_metric",
    "reset_units",
    "restart_at_boundary",
    "retract",
    "riemannian_adamw",
    "riemannian_eigenbasis",
    "riemannian_schedule_free",
    "riemannian_sgd",
    "scale_by_inverse_metric",
    "scale_by_metric",
    "schedule_free",
    "sharding",
    "silent_units",
    "skip_nonfinite",
    "soap",
    "soft_resets",
    "split",
    "starting_rate",
    "supply",
    "synaptic_caching",
    "testing",
    "track_energy",
    "value_and_grad",
]


def __getattr__(name: str) -> object:
    """Import ``flow`` and ``plot`` when they are asked for: they alone need diffrax and matplotlib."""
    if name in ("flow", "plot"):
        return importlib.import_module(f"riemann_optax.{name}")
    raise AttributeError(f"module 'riemann_optax' has no attribute {name!r}")

"""Riemannian metrics for Optax: per-parameter learning rates you can choose, see and trust."""

import importlib

from riemann_optax import anchor, checkpoint, fields, geometry, phi, sharding
from riemann_optax.boundary import ConsolidatingState, consolidate
from riemann_optax.competition import competitive_plasticity
from riemann_optax.controls import NormMatchedBaseState, norm_matched_base
from riemann_optax.covector import Covector, MetricAttachedError
from riemann_optax.describe import Description, LeafDescription, describe, metric_at
from riemann_optax.edits import (
    clip_metric,
    conformal,
    multiply_metric,
    normalize_metric,
    on_gradient,
    on_metric,
)
from riemann_optax.eigenbasis import InEigenbasisState, MatrixAxes, in_eigenbasis, kernel_axes
from riemann_optax.fields import attach_field
from riemann_optax.guard import check_metric, skip_nonfinite
from riemann_optax.inspect import (
    RecordMetricState,
    TrackEnergyState,
    metric_statistics,
    record_metric,
    track_energy,
)
from riemann_optax.metric import ComputeMetricState, compute_metric, split
from riemann_optax.noise import MetricNoiseState, add_idle_noise, add_metric_noise
from riemann_optax.optimizers import riemannian_adamw, riemannian_sgd
from riemann_optax.precision import LowPrecisionState, MasterWeightsState, low_precision_state, master_weights
from riemann_optax.presets import parameter_kinds, partition_by_kind
from riemann_optax.pull import AnchoredWeightsState, add_anchored_weights
from riemann_optax.retraction import retract
from riemann_optax.scaling import in_orthonormal_frame, scale_by_inverse_metric
from riemann_optax.spectrum import Spectrum, preconditioned_spectrum

__version__ = "0.1.0"

__all__ = [
    "AnchoredWeightsState",
    "ComputeMetricState",
    "ConsolidatingState",
    "Covector",
    "Description",
    "InEigenbasisState",
    "LeafDescription",
    "LowPrecisionState",
    "MasterWeightsState",
    "MatrixAxes",
    "MetricAttachedError",
    "MetricNoiseState",
    "NormMatchedBaseState",
    "RecordMetricState",
    "Spectrum",
    "TrackEnergyState",
    "add_anchored_weights",
    "add_idle_noise",
    "add_metric_noise",
    "anchor",
    "attach_field",
    "check_metric",
    "checkpoint",
    "clip_metric",
    "competitive_plasticity",
    "compute_metric",
    "conformal",
    "consolidate",
    "describe",
    "fields",
    "geometry",
    "in_eigenbasis",
    "in_orthonormal_frame",
    "kernel_axes",
    "low_precision_state",
    "master_weights",
    "metric_at",
    "metric_statistics",
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
    "retract",
    "riemannian_adamw",
    "riemannian_sgd",
    "scale_by_inverse_metric",
    "sharding",
    "skip_nonfinite",
    "split",
    "track_energy",
]


def __getattr__(name: str) -> object:
    """Import ``flow`` when it is asked for: it alone needs diffrax."""
    if name == "flow":
        return importlib.import_module("riemann_optax.flow")
    raise AttributeError(f"module 'riemann_optax' has no attribute {name!r}")

"""Edits of a metric: what may stand between the two stages."""

from riemann_optax.edits.checking import check_metric
from riemann_optax.edits.competition import competitive_plasticity
from riemann_optax.edits.lifting import OnMetricState, multiply_metric, on_gradient, on_metric
from riemann_optax.edits.momentum import momentum_from_phi
from riemann_optax.edits.noise import MetricNoiseState, add_idle_noise, add_metric_noise
from riemann_optax.edits.rescaling import clip_metric, normalize_metric

__all__ = [
    "MetricNoiseState",
    "OnMetricState",
    "add_idle_noise",
    "add_metric_noise",
    "check_metric",
    "clip_metric",
    "competitive_plasticity",
    "momentum_from_phi",
    "multiply_metric",
    "normalize_metric",
    "on_gradient",
    "on_metric",
]

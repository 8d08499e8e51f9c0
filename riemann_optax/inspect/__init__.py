"""Looking at a metric: before a run, and while it works."""

from riemann_optax.inspect.describe import Description, LeafDescription, describe, metric_at
from riemann_optax.inspect.live import metric_scalars
from riemann_optax.inspect.recording import (
    RecordMetricState,
    TrackEnergyState,
    metric_statistics,
    record_metric,
    track_energy,
)

__all__ = [
    "Description",
    "LeafDescription",
    "RecordMetricState",
    "TrackEnergyState",
    "describe",
    "metric_at",
    "metric_scalars",
    "metric_statistics",
    "record_metric",
    "track_energy",
]

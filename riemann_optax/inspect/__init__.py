"""Looking at a metric: before a run, and while it works; and at the energy of a run."""

from riemann_optax.inspect.describe import describe, metric_at
from riemann_optax.inspect.description import Description, LeafDescription
from riemann_optax.inspect.energy import (
    SynapticCachingState,
    TrackEnergyState,
    synaptic_caching,
    track_energy,
)
from riemann_optax.inspect.live import metric_scalars
from riemann_optax.inspect.recording import (
    RecordMetricState,
    metric_statistics,
    record_metric,
)

__all__ = [
    "Description",
    "LeafDescription",
    "RecordMetricState",
    "SynapticCachingState",
    "TrackEnergyState",
    "describe",
    "metric_at",
    "metric_scalars",
    "metric_statistics",
    "record_metric",
    "synaptic_caching",
    "track_energy",
]

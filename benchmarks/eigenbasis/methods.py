"""Who takes part: each makes an optimiser of a schedule of the rate, which is all that is tuned."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

import riemann_optax as ro
from benchmarks.shared.experiment import Method, Role

OURS, OURS_SELDOM, INFINITE = "metric", "metric, every 50", "metric, alpha infinite, every 50"
SOAP, MUON = "SOAP: Adam in the eigenbasis", "Muon"
ALPHA = 30.0


def metric_with_momentum(alpha: float = ALPHA, state_dtype: Any = None) -> optax.GradientTransformation:
    """Build the conformal activity metric, and Nesterov momentum on its tangent as a mean, as Adam's is."""
    return optax.chain(
        ro.scale_by_metric(ro.phi.activity(decay=0.97, state_dtype=state_dtype), alpha, conformal="tree"),
        optax.trace(0.9, nesterov=True, accumulator_dtype=state_dtype),
        optax.scale(0.1),  # a steady step is then as long as the rate says, as it is for Adam
    )


def tuned(make: Callable[[optax.Schedule], optax.GradientTransformation]) -> Method:
    """Return a peer with a rate of its own."""
    return Method(make, "peer", {"rate": None})


def turned(
    inner: optax.GradientTransformation,
    role: Role = "ours",
    rate_of: str | None = None,
    **options: Any,
) -> Method:
    """Return a transformation in the eigenbasis, with a rate of its own or another's."""

    def make(schedule: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(ro.in_eigenbasis(inner, **options), optax.scale_by_learning_rate(schedule))

    return Method(make, role, {} if rate_of else {"rate": None}, point_of=rate_of)


NARROW = jnp.bfloat16
METHODS = {
    "Adam": tuned(optax.adam),
    "AdamW, b2 .95": tuned(lambda schedule: optax.adamw(schedule, b2=0.95)),
    MUON: tuned(optax.contrib.muon),
    SOAP: turned(optax.scale_by_adam(0.95, 0.95), "peer", second_moments="keep"),
    OURS: turned(metric_with_momentum()),
    OURS_SELDOM: turned(metric_with_momentum(), update_every=50),
    INFINITE: turned(metric_with_momentum(1e6), update_every=50),
    "metric, bf16 factors and bases": turned(metric_with_momentum(), rate_of=OURS, state_dtype=NARROW),
    "metric, one-sided, all state bf16": turned(
        metric_with_momentum(state_dtype=NARROW), rate_of=OURS, sides="smaller", state_dtype=NARROW
    ),
}

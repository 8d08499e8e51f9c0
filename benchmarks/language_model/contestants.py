"""Who takes part: each makes an optimiser of a schedule of the rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import riemann_optax as ro

Make = Callable[[optax.Schedule], optax.GradientTransformation]


class Contestant(NamedTuple):
    """One row of the table.

    Attributes:
      name: What the table calls it.
      make: Makes the optimiser of a schedule.
      rate_of: Name of the contestant whose rate it takes over untuned, or None where it is tuned itself.
    """

    name: str
    make: Make
    rate_of: str | None = None


def metric_with_momentum(alpha: float, state_dtype: Any = None) -> optax.GradientTransformation:
    """Build the conformal activity metric, and Nesterov momentum on its tangent as a mean, as Adam's is."""
    return optax.chain(
        ro.compute_metric(ro.phi.activity(decay=0.97, state_dtype=state_dtype), alpha),
        ro.conformal("tree"),
        ro.scale_by_inverse_metric(),
        optax.trace(0.9, nesterov=True, accumulator_dtype=state_dtype),
        optax.scale(0.1),  # a steady step is then as long as the rate says, as it is for Adam
    )


def in_eigenbasis(
    inner: optax.GradientTransformation, schedule: optax.Schedule, **options: Any
) -> optax.GradientTransformation:
    """Build a transformation in the eigenbasis with its rate."""
    return optax.chain(ro.in_eigenbasis(inner, **options), optax.scale_by_learning_rate(schedule))


OURS, OURS_SELDOM, INFINITE = "metric", "metric, every 50", "metric, alpha infinite, every 50"
SOAP, MUON = "SOAP: Adam in the eigenbasis", "Muon"

CONTESTANTS = [
    Contestant("Adam", optax.adam),
    Contestant("AdamW, b2 .95", lambda schedule: optax.adamw(schedule, b2=0.95)),
    Contestant(MUON, optax.contrib.muon),
    Contestant(
        SOAP, lambda schedule: in_eigenbasis(optax.scale_by_adam(0.95, 0.95), schedule, second_moments="keep")
    ),
    Contestant(OURS, lambda schedule: in_eigenbasis(metric_with_momentum(30.0), schedule)),
    Contestant(
        OURS_SELDOM, lambda schedule: in_eigenbasis(metric_with_momentum(30.0), schedule, update_every=50)
    ),
    Contestant(
        INFINITE, lambda schedule: in_eigenbasis(metric_with_momentum(1e6), schedule, update_every=50)
    ),
    Contestant(
        "metric, bf16 factors and bases",
        lambda schedule: in_eigenbasis(metric_with_momentum(30.0), schedule, state_dtype=jnp.bfloat16),
        rate_of=OURS,
    ),
    Contestant(
        "metric, one-sided, all state bf16",
        lambda schedule: in_eigenbasis(
            metric_with_momentum(30.0, jnp.bfloat16), schedule, sides="smaller", state_dtype=jnp.bfloat16
        ),
        rate_of=OURS,
    ),
]

"""Whole optimisers, each a chain and nothing else; and the momentum that gives them Adam's units of rate."""

from riemann_optax.optimizers.aliases import (
    RECOMMENDED_RATES,
    riemannian_adamw,
    riemannian_schedule_free,
    riemannian_sgd,
)
from riemann_optax.optimizers.eigenbasis import riemannian_eigenbasis
from riemann_optax.optimizers.momentum import ema
from riemann_optax.optimizers.rate import starting_rate
from riemann_optax.optimizers.schedule_free import (
    ScheduleFreeState,
    eval_params,
    schedule_free,
)
from riemann_optax.optimizers.soap import SoapState, soap

__all__ = [
    "RECOMMENDED_RATES",
    "ScheduleFreeState",
    "SoapState",
    "ema",
    "eval_params",
    "riemannian_adamw",
    "riemannian_eigenbasis",
    "riemannian_schedule_free",
    "riemannian_sgd",
    "schedule_free",
    "soap",
    "starting_rate",
]

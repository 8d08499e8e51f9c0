"""What is measured: Optax's optimisers and the metric's, by name."""

from collections.abc import Callable

import optax

import riemann_optax as ro

Make = Callable[[], optax.GradientTransformation]
RATE = 1e-3

PEERS: dict[str, Make] = {
    "sgd": lambda: optax.sgd(RATE),
    "momentum": lambda: optax.sgd(RATE, momentum=0.9),
    "adam": lambda: optax.adam(RATE),
    "adamw": lambda: optax.adamw(RATE),
    "nadam": lambda: optax.nadam(RATE),
    "rmsprop": lambda: optax.rmsprop(RATE),
    "adagrad": lambda: optax.adagrad(RATE),
    "adafactor": lambda: optax.adafactor(RATE),
    "sm3": lambda: optax.sm3(RATE),
    "lion": lambda: optax.lion(RATE),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(RATE),
    "muon": lambda: optax.contrib.muon(RATE),
}


def equations(
    phi: optax.GradientTransformation, momentum: float | None = None
) -> optax.GradientTransformation:
    """Build Eqs. 2 and 3, with momentum if asked for."""
    return ro.riemannian_sgd(RATE, momentum, phi=phi)


METRICS: dict[str, Make] = {
    "stateless metric": lambda: equations(ro.phi.maintenance_energy()),
    "averaged phi": lambda: equations(ro.phi.activity()),
    "averaged phi, bf16 state": lambda: equations(ro.low_precision_state(ro.phi.activity())),
    "averaged phi, int8 state": lambda: equations(ro.low_precision_state(ro.phi.activity(), "int8")),
    "averaged phi, momentum": lambda: equations(ro.phi.activity(), 0.9),
    "factored phi": lambda: equations(ro.phi.factored_activity()),
    "factored phi, momentum": lambda: equations(ro.phi.factored_activity(), 0.9),
    "riemannian_adamw": lambda: ro.riemannian_adamw(RATE),
    "riemannian_schedule_free": lambda: ro.riemannian_schedule_free(RATE),
    "riemannian_eigenbasis": lambda: ro.riemannian_eigenbasis(RATE),
    "conformal, momentum": lambda: ro.riemannian_adamw(RATE, phi=ro.phi.activity()),
    "conformal, momentum, eigenbasis": lambda: ro.in_eigenbasis(
        ro.riemannian_adamw(RATE, phi=ro.phi.activity(), alpha=30.0)
    ),
}

ALL = {**PEERS, **METRICS}

# Products with a matrix of side 4096 are tens of thousands of operations per weight: seconds for each step.
TOO_LARGE = {"matrix": {"muon", "riemannian_eigenbasis", "conformal, momentum, eigenbasis"}}

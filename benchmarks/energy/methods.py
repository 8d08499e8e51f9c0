"""Who takes part: the published rules, ours, and what has the same liberties without the metric."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro
from benchmarks.energy.averaging import averaged_changes
from benchmarks.energy.caching import synaptic_caching
from benchmarks.shared.experiment import Method
from benchmarks.shared.tuning import Axis

Values = Mapping[str, jax.Array]
Transformation = optax.GradientTransformation
# Rates of a metric that is all phi are stated as those where phi is 1.
ALPHA = 1e6
OURS = (
    "error-gated metric + caching",
    "metric per neuron + caching",
    "error-gated metric, averaged gradient",
    "riemannian_adamw",
)


def error_gate() -> ro.phi.Phi:
    """Build the phi that is the loss of the batch, for all weights: as plasticity, errors teach."""

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any, **extra_args: Any
    ) -> tuple[Any, Any]:
        return jax.tree.map(lambda gradient: jnp.full_like(gradient, value), updates), state

    return ro.phi.Phi(optax.init_empty_state, update, name="error_gate", needs=("value",))


def plastic(phi: Transformation, rate: jax.typing.ArrayLike) -> Transformation:
    """Return descent at the learning rate ``rate * phi``: the inverse metric is all phi."""
    return optax.chain(
        ro.compute_metric(phi, ALPHA, "inverse_metric"),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(rate / ALPHA),
    )


def competing(values: Values, over: Literal["leaf", "neuron"]) -> Transformation:
    """Return descent in which only the largest changes of a group happen."""
    return optax.chain(
        ro.compute_metric(ro.phi.activity(), 0.0),
        ro.competitive_plasticity(values["fraction"], over),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(values["rate"]),
    )


class Scale(NamedTuple):
    """Where the grids of a protocol are.

    Attributes:
      sgd: learning rate.
      gate: learning rate per unit of the loss.
      neuron: learning rate per unit of a neuron's root mean square gradient.
      threshold: of synaptic caching.
    """

    sgd: float
    gate: float
    neuron: float
    threshold: float


def online_methods(scale: Scale) -> dict[str, Method]:
    """Return all rules of a protocol with one example per update, the quick ones first."""
    sgd, gate = Axis(scale.sgd, 1.6), Axis(scale.gate, 1.5)
    cache, fraction = {"threshold": Axis(scale.threshold)}, {"fraction": Axis(0.2, 2.5)}
    memory = {"memory": Axis(1000.0, 3.0)}

    def cached(rule: Any, **options: float) -> Any:
        return lambda values, key: synaptic_caching(rule(values), values["threshold"], **options)

    def descent(values: Values) -> Transformation:
        return optax.sgd(values["rate"])

    def gated(values: Values) -> Transformation:
        return plastic(error_gate(), values["rate"])

    def by_neuron(values: Values) -> Transformation:
        return plastic(ro.phi.per_neuron(decay=0.0), values["rate"])

    def averaged(rule: Any) -> Any:
        return lambda values, key: optax.chain(rule(values), averaged_changes(1 - 1 / values["memory"]))

    return {
        "synaptic caching": Method(cached(descent), "peer", {"rate": sgd} | cache),
        OURS[0]: Method(cached(gated, fading=0.0), "ours", {"rate": gate} | cache),
        "synaptic caching, nothing fades": Method(cached(descent, fading=0.0), "peer", {"rate": sgd} | cache),
        OURS[1]: Method(cached(by_neuron, fading=0.0), "ours", {"rate": Axis(scale.neuron, 1.6)} | cache),
        OURS[2]: Method(averaged(gated), "ours", {"rate": gate} | memory),
        "SGD, averaged gradient": Method(averaged(descent), "control", {"rate": sgd} | memory),
        "SGD": Method(lambda values, key: descent(values), "base", {"rate": sgd}),
        "error-gated metric": Method(lambda values, key: gated(values), "ours", {"rate": gate}),
        "competition by neuron": Method(
            lambda values, key: competing(values, "neuron"), "peer", {"rate": sgd} | fraction
        ),
        "competition by layer": Method(
            lambda values, key: competing(values, "leaf"), "peer", {"rate": sgd} | fraction
        ),
    }


def modern_methods() -> dict[str, Method]:
    """Return the rules of the modern network: AdamW, whose accuracy is the target, first."""
    adam, sgd = Axis(1e-3, 1.6), Axis(0.1, 1.6)

    def descent(values: Values) -> Transformation:
        return optax.sgd(values["rate"])

    def factored(values: Values, key: Any) -> Transformation:
        return ro.riemannian_adamw(values["rate"])

    def cached(rule: Any) -> Any:
        return lambda values, key: synaptic_caching(rule(values), values["threshold"], fading=0.0)

    def gated(values: Values) -> Transformation:
        return plastic(error_gate(), values["rate"])

    return {
        "AdamW": Method(lambda values, key: optax.adamw(values["rate"]), "base", {"rate": adam}),
        OURS[3]: Method(factored, "ours", {"rate": adam}),
        "SGD": Method(lambda values, key: descent(values), "base", {"rate": sgd}),
        "SGD, momentum": Method(
            lambda values, key: optax.sgd(values["rate"], momentum=0.9), "base", {"rate": Axis(0.01, 1.6)}
        ),
        "error-gated metric": Method(lambda values, key: gated(values), "ours", {"rate": Axis(0.2, 1.6)}),
        OURS[0]: Method(cached(gated), "ours", {"rate": Axis(0.2, 1.6), "threshold": Axis(0.1)}),
        "synaptic caching, nothing fades": Method(
            cached(descent), "peer", {"rate": sgd, "threshold": Axis(0.1)}
        ),
        "competition by layer": Method(
            lambda values, key: competing(values, "leaf"), "peer", {"rate": sgd, "fraction": Axis(0.2, 2.5)}
        ),
    }


METHODS = {
    "van_rossum_pache": online_methods(Scale(sgd=0.01, gate=0.06, neuron=0.3, threshold=0.08)),
    "li_van_rossum": online_methods(Scale(sgd=0.3, gate=1.0, neuron=10.0, threshold=0.3)),
    "modern": modern_methods(),
}

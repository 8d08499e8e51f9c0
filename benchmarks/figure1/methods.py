"""The methods of the figure: the usual optimisers, and the metric with every phi in both roles."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import optax

import riemann_optax as ro

Role = Literal["metric", "inverse_metric"]
Build = Callable[[jax.Array, jax.Array, jax.Array], optax.GradientTransformation]
MakePhi = Callable[[Role, jax.Array], optax.GradientTransformation]


class Method(NamedTuple):
    """One row of the table.

    Attributes:
      name: what the table calls it.
      build: makes the optimiser from a constant learning rate, the value of the second tuned dimension and a
        random key.
      second: name of that dimension, None where the rate is all there is to tune.
      role: role of the metric, None for the usual optimisers.
      random: whether the random key makes a difference.
    """

    name: str
    build: Build
    second: Literal["alpha", "beta"] | None = None
    role: Role | None = None
    random: bool = False


# What phi is before the secant rule's first step has told it anything. Where E divides, it is the package's
# default, far above the curvatures to be found, so that this step is a small probe (up to a kappa of 1e4);
# where E multiplies, so small that it is a plain gradient step.
FIRST_PHI: dict[Role, float] = {"metric": 1e4, "inverse_metric": 1e-4}


def secant(role: Role) -> optax.GradientTransformation:
    """Build the secant rule with no curvature known in advance."""
    return ro.phi.secant_curvature(initial_phi=FIRST_PHI[role])


def flat_secant(role: Role) -> optax.GradientTransformation:
    """Build the reciprocal of the secant rule, with no curvature known in advance."""
    return ro.phi.power(ro.phi.secant_curvature(initial_phi=1 / FIRST_PHI[role]), -1.0)


def hutchinson(key: jax.Array) -> optax.GradientTransformation:
    """Build the Hutchinson estimate with this key for its probes."""
    return ro.phi.hutchinson_curvature(key=key)


# Phis that need nothing but gradients, weights and the loss, with their default settings but for the secant
# rule's initial value. The reciprocal curvatures measure flatness: what the paper's sentences, where plastic
# synapses move more, need phi to be.
PHIS: dict[str, MakePhi] = {
    "activity": lambda role, key: ro.phi.activity(),
    "accumulated activity": lambda role, key: ro.phi.accumulated_activity(),
    "Bayesian synapse": lambda role, key: ro.phi.bayesian_synapse(),
    "presynaptic release": lambda role, key: ro.phi.presynaptic_release(),
    "secant curvature": lambda role, key: secant(role),
    "Hutchinson curvature": lambda role, key: hutchinson(key),
    "maintenance energy": lambda role, key: ro.phi.maintenance_energy(),
    "modification energy": lambda role, key: ro.phi.modification_energy(),
    "activity + maintenance": lambda role, key: ro.phi.weighted_sum(
        ro.phi.activity(), ro.phi.maintenance_energy()
    ),
    "1 / secant curvature": lambda role, key: flat_secant(role),
    "1 / Hutchinson curvature": lambda role, key: ro.phi.power(hutchinson(key), -1.0),
}


def metric_method(name: str, make_phi: MakePhi, role: Role) -> Method:
    """Chain the two stages and a rate, without momentum."""

    def build(rate: jax.Array, alpha: jax.Array, key: jax.Array) -> optax.GradientTransformation:
        return optax.chain(
            ro.compute_metric(make_phi(role, key), alpha=alpha, role=role),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(rate),
        )

    return Method(name, build, second="alpha", role=role, random="Hutchinson" in name)


def recommended(rate: jax.Array, alpha: jax.Array, key: jax.Array) -> optax.GradientTransformation:
    """Build the design recommended for networks: conformal, with Nesterov on the tangent."""
    del key
    return ro.riemannian_sgd(
        rate, momentum=0.9, nesterov=True, phi=ro.phi.activity(decay=0.97), alpha=alpha, conformal="tree"
    )


def turned_secant(rate: jax.Array, alpha: jax.Array, key: jax.Array) -> optax.GradientTransformation:
    """Build the secant rule in the eigenbasis of the gradient's changes, which turns with the valley."""
    del key
    metric = optax.chain(ro.compute_metric(secant("metric"), alpha), ro.scale_by_inverse_metric())
    return optax.chain(
        ro.in_eigenbasis(metric, sides="vector", update_every=1, correlate="gradient_differences"),
        optax.scale_by_learning_rate(rate),
    )


def turned_adam(rate: jax.Array, beta: jax.Array, key: jax.Array) -> optax.GradientTransformation:
    """Build Adam in the eigenbasis of its gradients: SOAP of a vector."""
    del key
    return optax.chain(
        ro.in_eigenbasis(optax.scale_by_adam(b1=beta), sides="vector", update_every=1),
        optax.scale_by_learning_rate(rate),
    )


METHODS: list[Method] = [
    Method("SGD", lambda rate, _, key: optax.sgd(rate)),
    Method("momentum", lambda rate, beta, key: optax.sgd(rate, momentum=beta), second="beta"),
    Method("Nesterov", lambda rate, beta, key: optax.sgd(rate, momentum=beta, nesterov=True), second="beta"),
    Method("Adam", lambda rate, beta, key: optax.adam(rate, b1=beta), second="beta"),
    Method("Adam, default betas", lambda rate, _, key: optax.adam(rate)),
    Method("Adam, eigenbasis", turned_adam, second="beta"),
    *(metric_method(name, make_phi, "metric") for name, make_phi in PHIS.items()),
    Method("activity, conformal, Nesterov", recommended, second="alpha", role="metric"),
    Method("secant curvature, eigenbasis", turned_secant, second="alpha", role="metric"),
    *(metric_method(name, make_phi, "inverse_metric") for name, make_phi in PHIS.items()),
]

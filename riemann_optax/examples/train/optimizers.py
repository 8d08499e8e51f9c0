"""The optimisers the trainer compares: a Riemannian metric, and a baseline by its Optax name."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax

import riemann_optax as ro
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train.phis import PHIS


class MetricOptions(NamedTuple):
    """What the command line says about the metric; the defaults are the recommended design.

    Attributes:
      optimizer: ``"riemannian_sgd"`` or ``"riemannian_adamw"``.
      phi: a key of :data:`riemann_optax.examples.train.phis.PHIS`.
      alpha: the weight of phi in ``E = 1 + alpha * phi``.
      role: ``"metric"`` divides by E (the paper's equations), ``"inverse_metric"`` multiplies (its text).
      conformal: the group over which E is rescaled to the mean of phi, or ``"none"``.
      momentum: Nesterov momentum on the tangent (``b1`` of ``riemannian_adamw``); 0 for none.
      weight_decay: decoupled weight decay per unit of the size of a steady step.
      eigenbasis: steps between two refreshes of the eigenbases it all runs in; 0 for none.
    """

    optimizer: str = "riemannian_sgd"
    phi: str = "factored_activity"
    alpha: float = 100.0
    role: Literal["metric", "inverse_metric"] = "metric"
    conformal: Literal["none", "tree", "leaf", "neuron"] = "tree"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    eigenbasis: int = 0


def build_metric(
    options: MetricOptions, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Build the metric optimiser, with the recorder of E and of the energy spent."""
    momentum = options.momentum or None
    # Momentum by `optax.trace` makes a steady step 1 / (1 - momentum) times the learning rate, where Adam's
    # running mean leaves it at the rate: for the same decay per step the strength has to make up for that.
    in_riemannian_sgd = options.optimizer == "riemannian_sgd"
    weight_decay = options.weight_decay / (1 - options.momentum if in_riemannian_sgd else 1)
    conformal = None if options.conformal == "none" else options.conformal
    shared: dict[str, Any] = {
        "phi": PHIS[options.phi].factory(),
        "alpha": options.alpha,
        "role": options.role,
        "conformal": conformal,
        "weight_decay": weight_decay,
        "nesterov": momentum is not None,
        "record": True,
    }
    if in_riemannian_sgd:
        optimizer = ro.riemannian_sgd(learning_rate, momentum=momentum, **shared)
    else:
        optimizer = ro.riemannian_adamw(learning_rate, b1=options.momentum, **shared)
    if options.eigenbasis:
        optimizer = ro.in_eigenbasis(optimizer, update_every=options.eigenbasis)
    return optax.chain(optimizer, ro.track_energy())


def build_baseline(
    name: str, learning_rate: optax.ScalarOrSchedule, options: Mapping[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """Build an optimiser from its name in ``optax`` or ``optax.contrib``, with the recorder of energy.

    Args:
      name: such as ``"adamw"``, ``"sgd"`` or ``"muon"``.
      learning_rate: the rate or schedule.
      options: further keyword arguments, such as ``{"momentum": 0.9}``.

    Returns:
      The optimiser.

    Raises:
      InputError: if there is no such optimiser, or it does not take these arguments.

    Examples:
      >>> tx = build_baseline("sgd", 0.1, {"momentum": 0.9})
      >>> isinstance(tx, optax.GradientTransformation)
      True
    """
    factory = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    not_known = InputError(
        f"--baseline {name} is not an Optax optimiser with a learning rate: give a name such as adamw or sgd"
    )
    if not inspect.isfunction(factory):
        raise not_known
    arguments = inspect.signature(factory).parameters
    rate_argument = next((argument for argument in arguments if argument.endswith("learning_rate")), None)
    if rate_argument is None:
        raise not_known
    for option in options:
        if option not in arguments:
            raise InputError(
                f"--baseline-option {option} is not an argument of {name}: it takes {', '.join(arguments)}"
            )
    try:
        optimizer = factory(**{rate_argument: learning_rate}, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"--baseline {name} cannot be built ({error}): see --baseline-option") from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise not_known
    return optax.chain(optimizer, ro.track_energy())


def recorded_metric(optimizer_state: optax.OptState) -> Any | None:
    """Return the state of :func:`riemann_optax.record_metric` in a chain's state, None if there is none."""
    return optax.tree.get(optimizer_state, "RecordMetricState", None)


def energy_spent(optimizer_state: optax.OptState) -> float:
    """Return the sum of ``|dw|`` over all weights and steps so far."""
    return float(optax.tree.get(optimizer_state, "TrackEnergyState").modification)


def state_bytes(optimizer_state: optax.OptState) -> int:
    """Return the bytes that an optimiser's state holds beside the weights, its recorders included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer_state))

"""What is compared: the chain of three parts, every subset of it, and the plain optimisers."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import jax
import optax

import riemann_optax as ro

ALPHA, DECAY, PULL, NOISE = 12_500.0, 0.985, 5e-4, 0.07  # the probe's, with a learning rate of 100
PARTS = ("metric", "anchor", "noise")
RATES = 7  # tried for every method, a factor of two apart


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
      name: In words.
      rates: The learning rates tried.
      make: From a learning rate and a random key to the optimiser.
    """

    name: str
    rates: tuple[float, ...]
    make: Callable[[jax.Array, jax.Array], optax.GradientTransformation]


def chain(parts: frozenset[str], rate: jax.Array, key: jax.Array) -> optax.GradientTransformation:
    """Return the chain with some of its three parts.

    Without "metric" each weight has the same ``E``, that of the mean phi: the control that keeps the metric's
    size and its memory and takes its direction away. Pull and noise stand between the stages, so that they
    are divided by ``E`` and its root: they act on the idle weights.
    """
    phi = ro.phi.activity(decay=DECAY)
    stages = [ro.compute_metric(phi if "metric" in parts else ro.phi.leaf_mean(phi), ALPHA)]
    if "anchor" in parts:
        stages.append(ro.add_anchored_weights(PULL, ro.anchor.initial_weights()))
    if "noise" in parts:
        stages.append(ro.add_idle_noise(rate, NOISE, key))
    return optax.chain(*stages, ro.scale_by_inverse_metric(), optax.scale_by_learning_rate(rate))


def _subset(parts: tuple[str, ...]) -> Method:
    name = " + ".join(parts) or "none of the three"
    return Method(name, _grid(12.5), lambda rate, key: chain(frozenset(parts), rate, key))


def _grid(first: float) -> tuple[float, ...]:
    return tuple(first * 2.0**k for k in range(RATES))


SUBSETS = [
    _subset(tuple(part for part, kept in zip(PARTS, keep, strict=True) if kept))
    for keep in product((True, False), repeat=3)
]
FULL = SUBSETS[0]
METHODS = {
    method.name: method
    for method in (
        *SUBSETS,
        Method("RMSprop", _grid(5e-4), lambda rate, key: optax.rmsprop(rate, decay=DECAY)),
        Method("SGD", _grid(2.5e-4), lambda rate, key: optax.sgd(rate)),
    )
}

"""Renewal of hidden units: the rules, and an optimiser whose units a rule draws anew with all their state."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

import riemann_optax as ro
from benchmarks.continual.network import Network, on_layers, with_activities

MATURITY = 100  # updates, of continual backpropagation, as published
EVERY = 100  # updates between two choices of units, or of their limits; published is a task of 100

Values = Mapping[str, jax.Array]
Transformation = optax.GradientTransformation
Renewal = Callable[[Values], ro.UnitRule]


def with_resets(inner: Transformation, rule: ro.UnitRule, network: Network, key: jax.Array) -> Transformation:
    """Return an optimiser whose hidden units a rule draws anew as the network's are, with their state."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return network.draw(key, shape).astype(dtype)

    return on_layers(with_activities(ro.reset_units(inner, rule, initializer=draw, key=key)), network)


def least_useful(values: Values) -> ro.UnitRule:
    """Return the rule of continual backpropagation."""
    return ro.least_useful_units(values["replacement"], maturity=MATURITY)


def dormant(values: Values) -> ro.UnitRule:
    """Return the rule of ReDo."""
    return ro.dormant_units(values["threshold"], every=EVERY)


def silent(values: Values) -> ro.UnitRule:
    """Return the rule of self-normalised resets; what is tuned is the share of durations above the limit."""
    return ro.silent_units(jnp.clip(1 - values["above"], 0.0, 1.0), every=EVERY, longest=2 * EVERY)

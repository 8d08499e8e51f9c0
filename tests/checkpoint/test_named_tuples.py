"""Parameters that lie in a named tuple are no states of their own: what a dictionary gives is the oracle."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro
from riemann_optax.checkpoint import transplant


class ActorCritic(NamedTuple):
    actor: dict
    critic: dict


def outer(actor, critic):
    return ActorCritic(actor, critic)


def inner(actor, critic):
    return {"net": ActorCritic(actor, critic)}


def weights(columns):
    return {"w": jnp.ones([2, columns])}, {"w": jnp.arange(1.0, columns + 1)}


def as_dictionaries(tree):
    """The same tree with dictionaries in place of the named tuples of the parameters."""

    def is_tuple(node):
        return isinstance(node, ActorCritic)

    return jax.tree.map(lambda node: node._asdict() if is_tuple(node) else node, tree, is_leaf=is_tuple)


def advanced(tx, params):
    _, state = tx.update(jax.tree.map(lambda leaf: -2 * leaf, params), tx.init(params), params)
    return state


CHANGES = {
    "another optimiser": (optax.trace(0.9), optax.scale_by_rms(), False),
    "new shapes, a count": (optax.adam(1.0), optax.adam(1.0), False),
    "grown averages": (optax.adam(1.0), optax.adam(1.0), True),
    "grown weights": (*[ro.scale_by_metric(ro.phi.secant_curvature())] * 2, True),
    "grown means": (*[ro.riemannian_adamw(0.1)] * 2, True),
    "grown bases": (*[ro.riemannian_eigenbasis(0.1)] * 2, True),
}


@pytest.mark.parametrize("make", [outer, inner])
@pytest.mark.parametrize("name", CHANGES)
def test_named_tuples_give_what_dictionaries_give(name, make):
    before, after, told = CHANGES[name]
    small, large = make(*weights(3)), make(*weights(4))
    state = advanced(before, small)
    moved, report = transplant(state, after, large, old_params=small if told else None)
    expected, other = transplant(
        as_dictionaries(state),
        after,
        as_dictionaries(large),
        old_params=as_dictionaries(small) if told else None,
    )
    chex.assert_trees_all_equal(as_dictionaries(moved), expected)
    assert [len(kind) for kind in report] == [len(kind) for kind in other]
    assert list(report.begun_anew.values()) == list(other.begun_anew.values())

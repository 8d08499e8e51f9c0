"""Groups whose turns differ are refreshed by one computation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro


def gradients(step, shapes):
    random = np.random.default_rng(step)
    return {name: jnp.asarray(random.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("sides", ["both", "smaller"])
@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_momentum_inside_is_momentum_outside_whichever_group_is_due(sides, tau):
    """Momentum is linear, so no basis may show in it: not that of another leaf, side or turn either."""
    shapes = {"first": (6, 6), "second": (6, 6), "third": (6, 9), "fourth": (8, 6), "stack": (2, 6, 6)}
    tx = ro.in_eigenbasis(optax.trace(0.9), sides=sides, update_every=3, tau=tau, axes="flax")
    with pytest.warns(UserWarning, match="stack"):
        state = tx.init(gradients(0, shapes))
    update = jax.jit(tx.update)
    expected = {name: np.zeros(shape) for name, shape in shapes.items()}
    changed = dict.fromkeys(shapes, 0)
    for step in range(9):
        given = gradients(step, shapes)
        before = state
        updates, state = update(given, state)
        for name in shapes:
            expected[name] = 0.9 * expected[name] + np.asarray(given[name], np.float64)
            np.testing.assert_allclose(updates[name], expected[name], atol=3e-5)
            kinds = ("left_bases", "right_bases")
            pairs = [[getattr(tree, kind)[name] for tree in (before, state)] for kind in kinds]
            pairs = [pair for pair in pairs if not isinstance(pair[0], optax.MaskedNode)]
            changed[name] += sum(bool(np.any(old != new)) for old, new in pairs)
    if tau == 0.0:
        turns = 1 + 8 // 3  # the first decomposition, and then each third step
        assert all(turns <= number <= (turns + 1) * 2 for number in changed.values())


@pytest.mark.parametrize("method", ["auto", "householder"])
def test_what_is_compiled_for_refreshes_does_not_grow_with_the_leaves(method):
    def decompositions(leaves):
        shapes = {f"leaf {number}": (6, 7) for number in range(leaves)}
        tx = ro.in_eigenbasis(optax.trace(0.9), sides="smaller", orthonormalisation=method)
        given = gradients(0, shapes)
        return jax.jit(tx.update).lower(given, tx.init(given)).as_text().count("@lapack_sgeqrf")

    # Of 15 leaves two are due at some steps, and one at the others.
    assert decompositions(2) == decompositions(8) == decompositions(15) == 1


def test_a_settling_that_int32_cannot_count_is_refused():
    with pytest.raises(ValueError, match=r"^settling_steps must be below 2\*\*31 / update_every"):
        ro.in_eigenbasis(optax.identity(), update_every=10_000, settling_steps=300_000)
    ro.in_eigenbasis(optax.identity(), update_every=10**9)


@pytest.mark.parametrize(
    ("budget", "changes"),
    [(None, 12), (2 * 14 * 8**3, 12), (2 * 14 * 8**3 - 1, 2)],
    ids=["none", "wide", "tight"],
)
def test_early_refreshes_happen_where_the_budget_has_room_for_all_sides_at_once(budget, changes):
    """Two sides of 8 take ``2 * 14 * 8**3`` operations; under less, one in ten steps, and the first."""
    tx = ro.riemannian_eigenbasis(0.003, refresh_budget=budget)
    shapes = {"first": (8, 8), "second": (8, 8)}
    state, update, changed = tx.init(gradients(0, shapes)), jax.jit(tx.update), 0
    for step in range(12):
        before = state[0].left_bases["first"]
        _, state = update(gradients(step, shapes), state, gradients(0, shapes))
        changed += bool(jnp.any(before != state[0].left_bases["first"]))
    assert changed == changes

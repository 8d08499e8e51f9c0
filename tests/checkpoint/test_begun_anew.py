"""What transplant is told to begin anew."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro


def test_one_of_two_states_of_a_kind_begins_anew():
    params = jnp.ones(3)
    tx = optax.chain(optax.trace(0.9), optax.trace(0.5))
    _, state = tx.update(params, tx.init(params), params)
    moved, report = ro.checkpoint.transplant(state, tx, params, anew=["[1]"])
    assert list(report.begun_anew) == ["[1].trace"]
    chex.assert_trees_all_equal(moved, (state[0], tx.init(params)[1]))


def test_what_begins_anew_takes_no_part_in_the_match():
    """Of AdamW's aliases the order of momentum and metric differs, and so no match is the only one."""
    params = {"d": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
    before, here = ro.riemannian_adamw(optax.constant_schedule(0.003)), ro.riemannian_eigenbasis(0.003)
    _, state = before.update(params, before.init(params), params)
    with pytest.raises(
        ValueError, match=r"order of the states has changed: here \[0\].*, in the old state \[0"
    ):
        ro.checkpoint.transplant(state, here, params)
    moved, report = ro.checkpoint.transplant(state, here, params, anew=["[0]"])
    chex.assert_trees_all_equal(moved, here.init(params))
    assert set(report.begun_anew.values()) == {"asked for"}
    scheduled = ro.riemannian_eigenbasis(optax.constant_schedule(0.003))
    moved, report = ro.checkpoint.transplant(state, scheduled, params, anew=["[0]"])
    assert int(moved[-1].count) == 1
    assert len(report.kept) == 1


COPYING = {
    "schedule_free": optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "dog": optax.contrib.dog(0.1),
    "ours, which copies at its first update": ro.schedule_free(optax.sgd(0.1)),
}


def weights():
    shapes = {"thin": (3, 2), "wide": (4, 5)}
    return {n: jax.random.normal(jax.random.key(k), s) for k, (n, s) in enumerate(shapes.items())}


def after_five_updates(tx):
    params = weights()
    state = tx.init(params)
    for number in range(5):
        gradients = jax.tree.map(lambda w, number=number: jnp.sin(number + 3 * w), params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def check_nothing_moves_without_a_gradient(tx, state, params):
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.zeros_like, params), atol=2e-6)


@pytest.mark.parametrize("name", COPYING)
@pytest.mark.parametrize("anew", [".inner", "one array"])
def test_copies_of_weights_in_an_eigenbasis_begin_anew_in_its_coordinates(name, anew):
    """They stood in the coordinates of the weights, and the next update moved these by their own size."""
    tx = ro.in_eigenbasis(COPYING[name], sides="both", update_every=2)
    params, state = after_five_updates(tx)
    if anew == "one array":
        fields = {"schedule_free": ".inner.z", "dog": ".inner[1].init_params"}
        anew = fields.get(name, ".inner.iterate") + "['wide']"
    moved, report = ro.checkpoint.transplant(state, tx, params, anew=[anew])
    check_nothing_moves_without_a_gradient(tx, moved, params)
    whole = name in ("schedule_free", "dog") or anew != ".inner"
    assert int(moved.count) == (0 if whole else 5)
    assert (report.begun_anew.get(".count") == "weights inside of its eigenbasis are copied anew") == whole


@pytest.mark.parametrize("name", COPYING)
@pytest.mark.parametrize("turned_before", [False, True])
def test_copies_begin_anew_where_another_array_has_other_coordinates(name, turned_before):
    def in_bases(all_of_them):
        def sides(path, _):
            return "both" if all_of_them or "wide" in path else "none"

        return ro.in_eigenbasis(COPYING[name], sides=sides, update_every=2)

    params, state = after_five_updates(in_bases(turned_before))
    moved, _ = ro.checkpoint.transplant(state, in_bases(not turned_before), params)
    check_nothing_moves_without_a_gradient(in_bases(not turned_before), moved, params)

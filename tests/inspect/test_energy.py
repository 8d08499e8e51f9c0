"""track_energy and synaptic_caching: by hand, step by step in float64, and between two bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5, 3.0])}


def test_track_energy_sums_by_hand():
    tx = optax.chain(optax.sgd(0.1), ro.track_energy())
    state, params = tx.init(PARAMS), PARAMS
    spent = total = 0.0
    for _ in range(5):
        kept = sum(np.abs(leaf).sum() for leaf in params.values())
        total += kept
        updates, state = tx.update(params, state, params)
        spent += sum(np.abs(leaf).sum() for leaf in updates.values())
        params = optax.apply_updates(params, updates)
    energy = optax.tree.get(state, "TrackEnergyState")
    np.testing.assert_allclose(energy.modification, spent, rtol=1e-6)
    np.testing.assert_allclose(energy.maintenance, kept, rtol=1e-6)
    np.testing.assert_allclose(energy.total_maintenance, total, rtol=1e-6)


def test_track_energy_does_not_stall_on_a_long_run():
    """A plain float32 sum of 3e7 ones stops at 2**24; the compensated one does not."""
    tx = ro.track_energy()
    params = jnp.ones([1])
    full = jnp.float32(2.0**24)
    start = tx.init(params)._replace(modification=full, total_maintenance=full)

    def step(state, _):
        return tx.update(jnp.ones([1]), state, params)[1], None

    state, _ = jax.lax.scan(step, start, length=10_000)
    np.testing.assert_allclose(float(state.modification), 2.0**24 + 10_000, rtol=1e-7)
    np.testing.assert_allclose(float(state.total_maintenance), 2.0**24 + 10_000, rtol=1e-7)


def test_track_energy_needs_parameters():
    tx = ro.track_energy()
    with pytest.raises(ValueError, match=r"track_energy: .*not passing `params`"):
        tx.update(PARAMS, tx.init(PARAMS))


def walk(steps=200, seed=0):
    """Changes of two leaves that wander, so that much of what one makes another takes back."""
    random = np.random.default_rng(seed)
    return [{"a": random.normal(0, 0.1, 3), "b": random.normal(0, 0.02, (2, 2))} for _ in range(steps)]


def published(changes, threshold, fading, over):
    """Synaptic caching in NumPy: changes applied, transient parts, energies and consolidations."""
    transient = {name: np.zeros_like(change) for name, change in changes[0].items()}
    applied, modification, maintenance, consolidations = [], 0.0, 0.0, 0
    for change in changes:
        applied.append({name: change[name] - fading * transient[name] for name in change})
        transient = {name: (1 - fading) * transient[name] + change[name] for name in change}
        above = {name: np.abs(part) > threshold for name, part in transient.items()}
        if over == "tree":
            some = any(one.any() for one in above.values())
            above = {name: np.full_like(one, some) for name, one in above.items()}
        elif over == "leaf":
            above = {name: np.full_like(one, one.any()) for name, one in above.items()}
        modification += sum(np.abs(transient[name][above[name]]).sum() for name in change)
        consolidations += any(one.any() for one in above.values())
        transient = {name: np.where(above[name], 0, transient[name]) for name in change}
        maintenance += sum(np.abs(part).sum() for part in transient.values())
    return applied, transient, modification, maintenance, consolidations


def cached(changes, *arguments, **keywords):
    """Run ``synaptic_caching`` on changes: all updates, and the last state."""
    tx = ro.synaptic_caching(*arguments, **keywords)
    changes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *changes)
    start = tx.init(jax.tree.map(lambda leaf: leaf[0], changes))

    def step(state, change):
        return tx.update(change, state)[::-1]

    state, updates = jax.jit(lambda state: jax.lax.scan(step, state, changes))(start)
    return updates, state


@pytest.mark.parametrize("over", ["tree", "leaf", "weight"])
@pytest.mark.parametrize("fading", [0.0, 0.01])
def test_synaptic_caching_is_the_published_rule(over, fading):
    changes = walk()
    applied, transient, modification, maintenance, consolidations = published(changes, 0.3, fading, over)
    with jax.enable_x64(True):
        updates, state = cached(changes, 0.3, fading=fading, over=over)
        for name in transient:
            expected = np.stack([one[name] for one in applied])
            np.testing.assert_allclose(updates[name], expected, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(state.transient[name], transient[name], rtol=1e-9, atol=1e-12)
    assert state.consolidations == consolidations > 3
    np.testing.assert_allclose(state.modification, modification, rtol=1e-6)
    np.testing.assert_allclose(state.total_maintenance, maintenance, rtol=1e-6)
    np.testing.assert_allclose(
        state.maintenance, sum(np.abs(part).sum() for part in transient.values()), 1e-6
    )


def test_without_fading_updates_pass_and_the_energy_is_between_the_distance_and_the_way():
    changes = walk()
    way = sum(np.abs(leaf).sum() for change in changes for leaf in change.values())
    ends = [sum(change[name] for change in changes) for name in changes[0]]
    distance = sum(np.abs(end).sum() for end in ends)
    energies = []
    for threshold in (1e-6, 0.2, 0.5, 1e6):
        updates, state = cached(changes, threshold, fading=0.0)
        for name, leaf in updates.items():
            np.testing.assert_array_equal(leaf, np.stack([one[name] for one in changes]).astype(np.float32))
        energies.append(float(state.modification + state.maintenance))
    np.testing.assert_allclose(energies[0], way, rtol=1e-5)  # all at once
    np.testing.assert_allclose(energies[-1], distance, rtol=1e-4)  # none before the end
    assert energies == sorted(energies, reverse=True)


def test_the_parts_of_narrow_weights_add_up_to_the_weights():
    """A change that bfloat16 weights lose is not cached either."""
    changes = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), walk(50))
    updates, state = cached(changes, 1e6, fading=0.1)
    for name, leaf in updates.items():
        assert leaf.dtype == jnp.bfloat16
        assert state.transient[name].dtype == jnp.float32
        expected = np.asarray(leaf, np.float64).sum(0)
        np.testing.assert_allclose(state.transient[name], expected, rtol=1e-5, atol=1e-6)


def test_metric_scalars_show_the_cache():
    _, state = cached(walk(), 0.3)
    scalars = ro.metric_scalars(state, PARAMS)
    assert scalars["caching/consolidations"] == state.consolidations
    assert scalars["caching/modification"] == float(state.modification) > 0
    assert scalars["caching/maintenance"] == float(state.maintenance) > 0
    assert (
        scalars["caching/total_maintenance"]
        == float(state.total_maintenance)
        > scalars["caching/maintenance"]
    )


def test_the_cache_wants_steps_and_no_covectors():
    tx = optax.chain(ro.compute_metric(ro.phi.activity()), ro.synaptic_caching(0.1))
    with pytest.raises(ValueError, match="scale_by_inverse_metric"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


CHANGING = {
    "in_eigenbasis": ro.in_eigenbasis,
    "schedule_free": ro.schedule_free,
    "norm_matched_base": lambda tx: ro.norm_matched_base(tx, optax.sgd(0.1)),
    "norm_matched_base, its reference": lambda tx: ro.norm_matched_base(optax.sgd(0.1), tx),
    "reset_units": lambda tx: ro.reset_units(tx, ro.dormant_units(every=1)),
    "soft_resets": lambda tx: ro.soft_resets(tx, 0.01),
    "restart_at_boundary": lambda tx: ro.restart_at_boundary(tx, ro.anchor.initial_weights()),
}


@pytest.mark.parametrize("make", [ro.track_energy, lambda: ro.synaptic_caching(0.1)], ids=["track", "cache"])
@pytest.mark.parametrize("wrapper", CHANGING)
def test_what_changes_updates_refuses_to_have_them_counted_before(wrapper, make):
    params = {"in": jnp.ones((4, 3)), "out": jnp.ones((3, 2))}
    name = wrapper.split(",")[0]
    inside = type(make().init(params)).__name__
    counter = {"TrackEnergyState": "track_energy", "SynapticCachingState": "synaptic_caching"}[inside]
    with pytest.raises(
        ValueError, match=rf"^{name}: {counter} counts .* optax.chain\({name}\(...\), {counter}"
    ):
        CHANGING[wrapper](optax.chain(optax.sgd(0.1), make())).init(params)
    optax.chain(CHANGING[wrapper](optax.sgd(0.1)), make()).init(params)


def test_what_is_counted_behind_an_average_is_what_the_weights_have_moved():
    tx = optax.chain(ro.schedule_free(optax.sgd(0.1)), ro.track_energy())
    params = {"w": jnp.arange(3.0)}
    state, moved = tx.init(params), 0.0
    for step in range(5):
        updates, state = tx.update({"w": jnp.cos(step + params["w"])}, state, params)
        after = optax.apply_updates(params, updates)
        moved, params = moved + float(jnp.abs(after["w"] - params["w"]).sum()), after
    energy = optax.tree.get(state, "TrackEnergyState")
    np.testing.assert_allclose(energy.modification, moved, rtol=1e-5)


def test_an_account_that_overflows_is_infinite_and_stays_so():
    tx, params = ro.track_energy(), jnp.full(4, 3e38)
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    assert state.modification == state.total_maintenance == jnp.inf

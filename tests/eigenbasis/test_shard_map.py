"""Inside of shard_map, where each device has a member of its own: what is constant meets what varies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

MEMBERS, STEPS = 4, 12
METRIC_STAGE = ro.compute_metric(ro.phi.activity(), alpha=1.0)
METRIC = optax.chain(METRIC_STAGE, ro.scale_by_inverse_metric())
OPTIMISERS = {
    "one side": ro.riemannian_eigenbasis(0.01),
    "both sides, whitened": ro.riemannian_eigenbasis(0.01, sides="both", correlate="whitened_gradients"),
    "only what has turned": ro.riemannian_eigenbasis(0.01, tau=0.1),
    "schedule-free": ro.riemannian_schedule_free(0.01, sides="smaller"),
    "soap": ro.soap(0.01, precondition_frequency=3),
    "differences": ro.in_eigenbasis(METRIC, correlate="gradient_differences", update_every=3),
    "qr": ro.in_eigenbasis(METRIC, orthonormalisation="householder", update_every=3),
    "recorded": ro.riemannian_eigenbasis(0.01, record=True),
    "guarded": ro.skip_nonfinite(ro.riemannian_eigenbasis(0.01)),
    "tracked": optax.chain(ro.riemannian_eigenbasis(0.01), ro.track_energy()),
    "few entries": optax.chain(METRIC_STAGE, ro.competitive_plasticity(0.5), ro.scale_by_inverse_metric()),
}


def gradient(params, step):
    return jax.tree.map(lambda p: p - 1 + 0.3 * jnp.sin(7 * p + step), params)


def starts():
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    return jax.vmap(lambda key: {"kernel": jax.random.normal(key, (6, 4)), "bias": jnp.ones(4)})(keys)


def trained(tx, params, state):
    def step(carry, number):
        params, state = carry
        updates, state = tx.update(gradient(params, number), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), jnp.arange(STEPS, dtype=jnp.float32))[0]


@pytest.mark.parametrize("inside", [False, True], ids=["init outside", "init inside"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_member_on_each_device_is_trained_as_it_would_be_alone(name, inside):
    tx = OPTIMISERS[name]
    mesh = jax.make_mesh((MEMBERS,), ("member",), axis_types=(AxisType.Auto,))
    params = starts()
    states = jax.vmap(tx.init)(params)

    def on_one_device(params, states):
        own, state = jax.tree.map(lambda array: array[0], (params, states))
        own, _ = trained(tx, own, tx.init(own) if inside else state)
        return jax.tree.map(lambda array: array[None], own)

    spread = jax.jit(jax.shard_map(on_one_device, mesh=mesh, in_specs=P("member"), out_specs=P("member")))
    found = spread(params, states)
    for member in range(MEMBERS):
        own = jax.tree.map(lambda array, at=member: array[at], params)
        alone, _ = jax.jit(lambda p: trained(tx, p, tx.init(p)))(own)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, at=member: a[at], found), alone, rtol=1e-4, atol=1e-5
        )
        assert np.abs(alone["kernel"] - own["kernel"]).max() > 0.01

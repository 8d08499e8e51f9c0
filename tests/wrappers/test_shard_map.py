"""Wrappers inside of shard_map: states are made there, and go through a scan with types that stay."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

MEMBERS = 2
WRAPPED = {
    "soft resets": (ro.soft_resets(optax.sgd(0.1), 0.1), ("obj_fn",)),
    "restart": (ro.restart_at_boundary(optax.adam(0.1), ro.anchor.initial_weights()), ("task_boundary",)),
    "reset units": (ro.reset_units(optax.adam(0.1), ro.dormant_units(0.5, every=2)), ("activities",)),
    "skipping": (ro.skip_nonfinite(optax.adam(0.1)), ()),
    "caching": (optax.chain(optax.sgd(0.1), ro.synaptic_caching(0.05)), ()),
}


def loss(params):
    return sum(jnp.sum(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(params))


def trained(params, tx, needs):
    def step(carry, number):
        params, state = carry
        gradients = jax.grad(loss)(params)
        made = {
            "obj_fn": loss,
            "task_boundary": number == 2,
            "activities": jax.tree.map(lambda kernel: jnp.stack([kernel[0], 0 * kernel[0]]), params),
        }
        updates, state = tx.update(gradients, state, params, **{name: made[name] for name in needs})
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(5))[0][0]


@pytest.mark.parametrize("name", WRAPPED)
def test_a_member_on_each_device_is_trained_as_it_would_be_alone(name):
    tx, needs = WRAPPED[name]
    mesh = jax.make_mesh((MEMBERS,), ("member",), axis_types=(AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    shapes = {"hidden": {"kernel": (3, 4)}, "out": {"kernel": (4, 2)}}
    starts = jax.vmap(
        lambda key: jax.tree.map(
            lambda shape: jax.random.normal(key, shape), shapes, is_leaf=lambda x: type(x) is tuple
        )
    )(keys)

    def on_one_device(params):
        own = trained(jax.tree.map(lambda array: array[0], params), tx, needs)
        return jax.tree.map(lambda array: array[None], own)

    spread = jax.shard_map(on_one_device, mesh=mesh, in_specs=P("member"), out_specs=P("member"))
    found = jax.jit(spread)(starts)
    alone = [trained(jax.tree.map(lambda array, m=m: array[m], starts), tx, needs) for m in range(MEMBERS)]
    chex.assert_trees_all_close(
        found, jax.tree.map(lambda *one: jnp.stack(one), *alone), rtol=1e-5, atol=1e-6
    )

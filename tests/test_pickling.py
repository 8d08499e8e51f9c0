"""Optimisers as other programs send them: cloudpickle copies what a function holds, by value."""

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

PARAMS = {"kernel": jnp.arange(12.0).reshape(4, 3) / 7 - 0.5, "bias": jnp.ones(3)}
GRADIENTS = jax.tree.map(lambda leaf: jnp.sin(3 * leaf), PARAMS)
OPTIMISERS = {
    "adamw": ro.riemannian_adamw(0.1),
    "eigenbasis": ro.riemannian_eigenbasis(0.1),
    "schedule_free": ro.riemannian_schedule_free(0.1, sides="smaller"),
    "sgd": ro.riemannian_sgd(0.1, momentum=0.9, phi=ro.phi.unit_mean(ro.phi.activity())),
    "soap": ro.soap(0.1),
    "kinds": ro.partition_by_kind(ro.riemannian_eigenbasis(0.1), bias=optax.adam(0.1)),
    "few bits": ro.low_precision_state(ro.riemannian_adamw(0.1)),
    "guarded": ro.skip_nonfinite(ro.master_weights(ro.riemannian_adamw(0.1))),
    "recorded": ro.riemannian_adamw(optax.cosine_decay_schedule(0.1, 100), record=True),
    "anchored": optax.chain(
        ro.compute_metric(ro.phi.online_ewc()),
        ro.add_anchored_weights(0.1, ro.anchor.task_boundary_weights(), precision="phi"),
        ro.scale_by_inverse_metric(),
    ),
    "injected": optax.inject_hyperparams(ro.riemannian_adamw)(learning_rate=0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_copy_of_an_optimiser_makes_the_same_updates(name):
    tx = OPTIMISERS[name]
    copy = cloudpickle.loads(cloudpickle.dumps(tx))
    state, other = tx.init(PARAMS), copy.init(PARAMS)
    for _ in range(2):
        updates, state = tx.update(GRADIENTS, state, PARAMS)
        same, other = copy.update(GRADIENTS, other, PARAMS)
        for one, two in zip(jax.tree.leaves(updates), jax.tree.leaves(same), strict=True):
            np.testing.assert_array_equal(one, two)
    assert str(ro.describe(copy, PARAMS)) == str(ro.describe(tx, PARAMS))

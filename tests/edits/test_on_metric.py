"""What an Optax transformation remembers of E: not of the gradient, and not 0 for a new weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

DECAY = 0.9


def with_smooth_metric(alpha=1.0):
    return optax.chain(
        ro.compute_metric(ro.phi.activity(), alpha),
        ro.on_metric(optax.ema(DECAY)),
        ro.scale_by_inverse_metric(),
    )


def test_new_weights_have_no_mean_of_e_to_go_on_with():
    tx, old, new = with_smooth_metric(), {"w": jnp.ones(2)}, {"w": jnp.ones(3)}
    _, state = tx.update(old, tx.init(old), old)
    with pytest.raises(
        ValueError, match=r"ema\['w'\] of EmaState cannot be grown .* anew=\('(.*)',\)"
    ) as error:
        ro.checkpoint.transplant(state, tx, new, old_params=old)
    remedy = str(error.value).split("anew=('")[1].split("'")[0]
    grown, report = ro.checkpoint.transplant(state, tx, new, old_params=old, anew=(remedy,))
    assert "[0].phi.second_moment['w']" in report.grown
    gradients = {"w": jnp.array([1.0, 1.0, 1e-3])}
    metric = ro.metric_at(tx, gradients, grown, new)["w"]
    np.testing.assert_allclose(metric[:2], 2.0, rtol=1e-5)
    assert metric[2] >= 1.0


def test_a_basis_mixes_it_as_a_diagonal():
    """With alpha = 0 E is 1, and so is its mean, in every basis: squares of a rotation sum to 1."""
    tx = ro.in_eigenbasis(with_smooth_metric(alpha=0.0), update_every=1)
    params = jnp.zeros([4, 3])
    state = tx.init(params)
    for key in jax.random.split(jax.random.key(0), 5):
        _, state = tx.update(jax.random.normal(key, params.shape), state, params)
    np.testing.assert_allclose(state.inner[1].state_of_metric.ema, 1 - DECAY**5, rtol=1e-5)


def test_a_unit_that_is_reset_keeps_its_mean_of_e():
    params = {name: {"kernel": jnp.ones(shape)} for name, shape in {"hidden": (5, 4), "head": (4, 3)}.items()}
    tx = ro.reset_units(with_smooth_metric(), ro.dormant_units(0.0, every=4))
    seen = jax.tree.map(lambda leaf: jnp.ones([2, leaf.shape[-1]]).at[:, -1].set(0.0), params)
    state = tx.init(params)
    for _ in range(4):
        _, state = tx.update(params, state, params, activities=seen)
    assert int(state.resets) == 1
    for leaf in jax.tree.leaves(state.inner_state[1].state_of_metric.ema):
        np.testing.assert_allclose(leaf, 2 * (1 - DECAY**4), rtol=1e-5)  # E = 1 + |1|, at each update

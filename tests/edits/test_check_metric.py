"""The guard for what only values can show: asked, it names leaf and values; not asked, it does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import riemann_optax as ro

PARAMS = {"layer": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array(3.0)}, "{odd}": jnp.ones([2, 0])}


def chain(phi):
    return optax.chain(ro.compute_metric(phi), ro.check_metric(), ro.scale_by_inverse_metric())


def spoilt(value, leaf="kernel"):
    """A phi that is 1, but for one element of one leaf, where it is ``value``."""
    good = jax.tree.map(jnp.ones_like, PARAMS)
    ones = good["layer"][leaf]
    good["layer"][leaf] = jnp.atleast_1d(ones).at[-1].set(value).reshape(ones.shape)
    return optax.stateless(lambda updates, params: good)


def error_of(tx, wrap=lambda step: step):
    checked = jax.jit(checkify.checkify(wrap(tx.update), errors=checkify.user_checks))
    error, _ = checked(PARAMS, tx.init(PARAMS), PARAMS)
    return error.get()


@pytest.mark.parametrize("leaf", ["kernel", "bias"])
@pytest.mark.parametrize("value", [-4.0, -1.0, np.nan, np.inf])
def test_the_first_bad_leaf_is_named_with_its_values(value, leaf):
    message = error_of(chain(spoilt(value, leaf)))
    metric = np.array([2.0, 1 + value] if leaf == "kernel" else [1 + value])
    shown = f"from {metric.min()} to {metric.max()}"
    assert f"check_metric: E of leaf ['layer']['{leaf}'] is not positive and finite: {shown}" in message


def test_a_good_metric_passes_unchanged():
    tx = chain(ro.phi.maintenance_energy())
    assert error_of(tx) is None
    without = optax.chain(ro.compute_metric(ro.phi.maintenance_energy()), ro.scale_by_inverse_metric())
    for checked, plain in zip(
        jax.tree.leaves(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]),
        jax.tree.leaves(without.update(PARAMS, without.init(PARAMS), PARAMS)[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(checked, plain)


def test_a_step_within_a_scan_is_seen():
    """E = 1 + phi falls by 1/2 at every step and is 0 at the third."""

    def run(params, state, _):
        def step(carry, _):
            count, inner = carry
            tx = chain(optax.stateless(lambda u, p: jax.tree.map(lambda x: jnp.full_like(x, -count / 2), u)))
            _, inner = tx.update(params, inner, params)
            return (count + 1, inner), None

        return jax.lax.scan(step, (jnp.float32(0), state), length=4)[0]

    tx = chain(spoilt(1.0))
    checked = jax.jit(checkify.checkify(run, errors=checkify.user_checks))
    error, _ = checked(PARAMS, tx.init(PARAMS), None)
    assert "is not positive and finite: from 0.0 to 0.0" in error.get()


def test_without_checkify_nothing_is_checked_and_nothing_is_left_to_run():
    """XLA throws out the smallest and largest E that nobody asks for."""
    texts = []
    for edits in ([ro.check_metric()], []):
        tx = optax.chain(ro.compute_metric(spoilt(np.nan)), *edits, ro.scale_by_inverse_metric())
        texts.append(jax.jit(tx.update).lower(PARAMS, tx.init(PARAMS), PARAMS).compile().as_text())
    assert texts[0].count("reduce") == texts[1].count("reduce") == 0


def test_nothing_to_check_is_an_error():
    tx = ro.check_metric()
    with pytest.raises(ValueError, match="check_metric"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)

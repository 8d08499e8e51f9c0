"""Arrays without weights, and more weights than an int32 can count."""

import jax
import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro

ADAPTIVE = {
    "riemannian_adamw": lambda: ro.riemannian_adamw(0.1),
    "riemannian_schedule_free": lambda: ro.riemannian_schedule_free(0.1),
    "riemannian_eigenbasis": lambda: ro.riemannian_eigenbasis(0.1),
    "normalize_metric": lambda: ro.scale_by_metric(ro.phi.activity(), 1.0, ro.normalize_metric()),
    "unit_mean": lambda: ro.scale_by_metric(ro.phi.unit_mean(ro.phi.activity())),
    "limited_mean": lambda: ro.scale_by_metric(ro.phi.limited_mean(ro.phi.activity(), limit=1.0)),
    "norm_matched_base": lambda: ro.norm_matched_base(ro.riemannian_sgd(0.1), optax.identity()),
}
OF_A_LEAF = {
    "activity": lambda: ro.scale_by_metric(ro.phi.activity(), 1.0, conformal="leaf"),
    "factored_activity": lambda: ro.scale_by_metric(ro.phi.factored_activity(), 1.0, conformal="leaf"),
    "leaf_mean": lambda: ro.scale_by_metric(ro.phi.leaf_mean(ro.phi.activity())),
    "norm_matched_base": lambda: ro.norm_matched_base(ro.riemannian_sgd(0.1), optax.identity(), over="leaf"),
}


def traced(tx, shapes):
    """Trace an update of arrays of these shapes, which are never made."""
    weights = {str(index): jax.ShapeDtypeStruct(shape, jnp.float32) for index, shape in enumerate(shapes)}
    return jax.eval_shape(lambda w: tx.update(w, tx.init(w), w)[0], weights)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_model_of_more_than_two_billion_weights(name):
    found = traced(ADAPTIVE[name](), [(8192, 8192)] * 33)
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) > 2**31


@pytest.mark.parametrize("name", OF_A_LEAF)
def test_an_array_of_more_than_two_billion_weights(name):
    (found,) = jax.tree.leaves(traced(OF_A_LEAF[name](), [(50_000, 50_000)]))
    assert found.size > 2**31


def test_a_traced_share_of_more_than_two_billion_weights():
    def update(fraction, gradient):
        tx = optax.chain(
            ro.compute_metric(ro.phi.activity()),
            ro.competitive_plasticity(fraction, over="leaf"),
            ro.scale_by_inverse_metric(),
        )
        return tx.update(gradient, tx.init(gradient), gradient)[0]

    gradient = jax.ShapeDtypeStruct((50_000, 50_000), jnp.float32)
    assert jax.eval_shape(update, jax.ShapeDtypeStruct((), jnp.float32), gradient).size > 2**31


@pytest.mark.parametrize("name", [*ADAPTIVE, *OF_A_LEAF])
def test_an_array_without_weights_makes_no_nan_on_the_way(name):
    tx = {**ADAPTIVE, **OF_A_LEAF}[name]()
    params = {"none": jnp.zeros((0, 3)), "some": jnp.ones((2, 3))}
    with jax.debug_nans(True):
        updates, _ = tx.update(params, tx.init(params), params)
    assert updates["none"].shape == (0, 3)
    assert jnp.isfinite(updates["some"]).all()

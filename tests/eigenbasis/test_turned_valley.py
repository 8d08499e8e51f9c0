"""Turned valleys: straight in an eigenbasis, bent without."""

import jax
import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro
from benchmarks.figure1.methods import METHODS
from benchmarks.figure1.paths import follow, path_statistics
from benchmarks.figure1.surfaces import paper_surfaces


def test_the_turned_valley_becomes_straight():
    """At most 10 steps and straightness .9, on the turned valley as on the one along the axes."""
    with jax.enable_x64(True):
        (method,) = [m for m in METHODS if m.name == "secant curvature, eigenbasis"]
        surfaces = paper_surfaces()
        both = jax.tree.map(lambda *x: jnp.array(x), surfaces["turned"], surfaces["axis-aligned"])

        def run(surface):
            transformation = method.build(jnp.ones([]), jnp.ones([]), jax.random.key(0))
            path, losses = follow(transformation, surface, 30)
            return path_statistics(surface, path, losses)

        statistics = jax.jit(jax.vmap(run))(both)
        assert statistics.steps.max() <= 10
        assert statistics.settled.max() <= 10
        assert statistics.straightness.min() >= 0.9


@pytest.mark.parametrize(("share", "for_half", "for_the_worst"), [(None, 100, 5), (1.0, 1000, 50)])
def test_correlated_inputs_cost_many_times_the_loss_without_the_basis(share, for_half, for_the_worst):
    """What docs/optimisers.md says of its example: on each of eight other keys, at each of three rates."""

    def ratio(key, peak):
        turning, wanted = (jax.random.normal(part, (16, 16)) for part in jax.random.split(key))
        turn = jnp.linalg.qr(turning)[0]
        mix = turn * jnp.geomspace(1.0, 0.03, 16) @ turn.T
        rate = optax.cosine_decay_schedule(peak, 300)

        def last_loss(tx):
            def step(carry, _):
                w, state = carry
                loss, gradient = jax.value_and_grad(lambda w: jnp.mean((mix @ (w - wanted)) ** 2))(w)
                updates, state = tx.update(gradient, state, w)
                return (optax.apply_updates(w, updates), state), loss

            w = jnp.zeros([16, 16])
            return jax.lax.scan(step, (w, tx.init(w)), length=300)[1][-1]

        turned = last_loss(ro.riemannian_eigenbasis(rate, weight_decay=0.0, gradient_share=share))
        return turned / last_loss(ro.riemannian_adamw(rate, weight_decay=0.0))

    keys, rates = jax.random.split(jax.random.key(7), 8), jnp.array([0.1, 0.3, 1.0])
    found = jax.jit(jax.vmap(jax.vmap(ratio, (0, None)), (None, 0)))(keys, rates)
    assert jnp.median(found[0]) < 1 / for_half
    assert found[0].max() < 1 / for_the_worst
    assert found[1:].max() < 1 / 10_000

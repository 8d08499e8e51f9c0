"""Parts of a model whose gradients are much smaller than those of others: AdamW does not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro


def model(share):
    """Two arrays and what makes their gradients, of size 1 and of a share of it."""
    params = {"loud": jnp.zeros([8, 8]), "quiet": jnp.zeros([8, 8])}
    random = np.random.default_rng(0)
    return params, lambda: {
        name: size * jnp.asarray(random.normal(size=[8, 8]), jnp.float32)
        for name, size in (("loud", 1.0), ("quiet", share))
    }


def way(tx, share, updates=50):
    """The mean length of a step of each array."""
    params, gradients = model(share)
    state, update = tx.init(params), jax.jit(tx.update)
    total = {"loud": 0.0, "quiet": 0.0}
    for _ in range(updates):
        steps, state = update(gradients(), state, params)
        total = {name: total[name] + float(jnp.abs(steps[name]).mean()) for name in total}
    return total


ALIASES = {
    "adamw": lambda: ro.riemannian_adamw(0.1, weight_decay=0.0),
    "schedule_free": lambda: ro.riemannian_schedule_free(0.1, weight_decay=0.0),
    "schedule_free in bases": lambda: ro.riemannian_schedule_free(0.1, weight_decay=0.0, sides="smaller"),
    "eigenbasis": lambda: ro.riemannian_eigenbasis(0.1, weight_decay=0.0),
}


@pytest.mark.parametrize("name", ALIASES)
def test_a_loss_with_a_small_weight_is_followed_as_under_adamw(name):
    """With alpha 100 such an array took a tenth of the step: a policy beside a critic, a second loss."""
    found = way(ALIASES[name](), 1e-3)
    assert found["quiet"] > 0.8 * found["loud"]


def test_the_floor_is_where_the_page_says():
    """``docs/moving.md``: at a ten-thousandth of the mean half of Adam's step, at a tenth of that a tenth."""
    for share, expected in ((1e-4, 1 / 2), (1e-5, 1 / 11)):
        found = way(ALIASES["adamw"](), share / 2)  # the mean over both arrays is half of the loud one's
        assert found["quiet"] / found["loud"] == pytest.approx(expected, rel=0.15)


def test_a_metric_of_each_array_has_no_floor_between_arrays():
    found = way(ro.riemannian_adamw(0.1, weight_decay=0.0, conformal="leaf"), 1e-6)
    assert found["quiet"] == pytest.approx(found["loud"], rel=0.15)

"""check_phi accepts the phis of this package and says in words what a broken one breaks."""

import jax
import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro
from riemann_optax.testing import check_phi


def phi(update, init=lambda params: ()):
    return optax.GradientTransformationExtraArgs(init, update)


def square(gradients):
    return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradients)


def test_report_of_good_phis():
    assert check_phi(ro.phi.activity()) == (True, 1.0, False)
    assert check_phi(ro.phi.maintenance_energy()) == (True, 0.0, True)
    assert check_phi(ro.phi.modification_energy()).state_per_weight == 2.0
    loss = lambda p: sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(p))  # noqa: E731
    assert check_phi(ro.phi.hutchinson_curvature(), obj_fn=loss).needs_params
    halved = phi(lambda g, s, p=None, **_: (jax.tree.map(lambda x: -0.5 * x / (1 + x), square(g)), s))
    assert not check_phi(halved).nonnegative


BROKEN = {
    "narrow": (
        phi(lambda g, s, p=None, **_: (jax.tree.map(jnp.abs, g), s)),
        "bfloat16: phi has dtype bfloat16",
    ),
    "negative": (
        phi(lambda g, s, p=None, **_: (jax.tree.map(lambda x: -2.0 * x, square(g)), s)),
        "is not positive and finite at leaf",
    ),
    "singular": (
        phi(lambda g, s, p=None, **_: (jax.tree.map(lambda x: 1 / x, square(g)), s)),
        r"not positive and finite .*at zero gradients",
    ),
    "structure": (
        phi(lambda g, s, p=None, **_: ({"matrix": square(g)["matrix"]}, s)),
        "the result of phi lacks leaf",
    ),
    "growing state": (
        phi(lambda g, s, p=None, **_: (square(g), (*s, jnp.zeros([])))),
        "the state changes its structure",
    ),
    "alias": (
        phi(lambda g, s, p=None, **_: (square(g), s), init=lambda params: params),
        "returns a parameter itself as state",
    ),
    "extra arguments": (
        phi(lambda g, s, p=None: (square(g), s)),
        "update raises TypeError",
    ),
    "abstract init": (
        phi(
            lambda g, s, p=None, **_: (square(g), s),
            init=lambda params: jax.tree.map(lambda p: p * 0, params),
        ),
        "does not survive jax.ShapeDtypeStruct",
    ),
    "placeholder": (
        phi(lambda g, s, p=None, **_: (square(g), s), init=lambda params: jax.tree.leaves(params)[0] * 1),
        "does not survive optax.tree.map_params",
    ),
    "impure": (
        phi(
            lambda g, s, p=None, **_: (
                jax.tree.map(lambda x: x + isinstance(x, jax.core.Tracer), square(g)),
                s,
            )
        ),
        "under jit differs",
    ),
    "init": (
        phi(lambda g, s, p=None, **_: (square(g), s), init=lambda params: params["no"]),
        "init raises KeyError",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_breach_is_said_in_words(name):
    broken, words = BROKEN[name]
    with pytest.raises(AssertionError, match=words):
        check_phi(broken)


def test_a_factory_that_was_not_called():
    with pytest.raises(TypeError, match="has to be called"):
        check_phi(ro.phi.activity)

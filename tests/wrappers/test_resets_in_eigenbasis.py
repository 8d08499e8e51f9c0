"""Units reset in and around an eigenbasis: exact on a side that is not turned, refused on one that is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .small_resets import kernels, reset, seen_like


def in_a_frame(sides):
    inner = ro.in_eigenbasis(optax.sgd(0.1, momentum=0.9), sides=sides, update_every=2)
    return [ro.reset_units(inner, ro.dormant_units(0.0, every=every)) for every in (6, 100)]


def test_in_an_eigenbasis_whose_sides_are_not_those_of_the_units():
    """The momentum in the original coordinates is that without a reset, and 0 for the unit."""
    params = kernels(hidden=(5, 4), head=(4, 3))
    tx, without = in_a_frame(lambda name, leaf: "input" if "hidden" in name else "output")
    states = [tx.init(params), without.init(params)]
    for step in range(6):
        gradients = jax.tree.map(lambda w, step=step: jnp.cos(w + step), params)
        for number, one in enumerate((tx, without)):
            _, states[number] = jax.jit(one.update)(
                gradients, states[number], params, activities=seen_like(params)
            )
    found, expected = (momentum(state.inner_state) for state in states)
    assert [int(state.resets) for state in states] == [1, 0]
    np.testing.assert_allclose(found["hidden"][:, :3], expected["hidden"][:, :3], rtol=1e-6)
    np.testing.assert_allclose(found["head"][:3], expected["head"][:3], rtol=1e-6)
    np.testing.assert_allclose(found["hidden"][:, 3], 0, atol=1e-7)
    np.testing.assert_allclose(found["head"][3], 0, atol=1e-7)
    assert (np.abs(expected["hidden"][:, 3]) > 0.01).all()


def momentum(state):
    trace = state.inner[0].trace
    left, right = state.left_bases["hidden"]["kernel"][0], state.right_bases["head"]["kernel"][0]
    return {"hidden": left @ trace["hidden"]["kernel"], "head": trace["head"]["kernel"] @ right.T}


@pytest.mark.parametrize(
    ("sides", "inner"), [("both", optax.adam(0.1)), ("input", optax.sgd(0.1, momentum=0.9))]
)
def test_a_unit_that_an_eigenbasis_mixes_with_others_is_refused(sides, inner):
    tx = ro.reset_units(ro.in_eigenbasis(inner, sides=sides), ro.dormant_units(0.0, every=1))
    with pytest.raises(ValueError, match=r"in_eigenbasis mixes the units of a weight of shape"):
        reset(kernels(hidden=(5, 4), head=(4, 3)), tx)


def test_weights_kept_in_the_basis_around_another_are_refused():
    """Units of a side that is not turned; but what is kept of their weights is in turned coordinates."""
    pull = optax.chain(ro.add_anchored_weights(0.1, ro.anchor.initial_weights()), optax.sgd(0.1))
    inside = ro.in_eigenbasis(pull, sides="none")
    around = ro.in_eigenbasis(inside, sides=lambda name, leaf: "output" if "head" in name else "none")
    with pytest.raises(ValueError, match=r"mixes the units of a weight of shape .* keep anchors outside"):
        reset(kernels(hidden=(5, 4), head=(4, 3)), ro.reset_units(around, ro.dormant_units(0.0, every=1)))


def test_the_eigenbasis_alias_takes_the_remedy_of_its_refusal():
    """Each array with the axes of a weight is then new for the unit, whatever the basis of the other side."""
    params = kernels(hidden=(5, 4), head=(4, 3))

    def made(**sides):
        return ro.reset_units(ro.riemannian_eigenbasis(0.1, **sides), ro.dormant_units(0.0, every=4))

    with pytest.raises(ValueError, match=r'"input" for the first layer, "none" between two hidden layers'):
        reset(params, made())
    tx = made(sides=lambda name, leaf: "input" if "hidden" in name else "output")
    states = [tx.init(params)]
    for step in range(4):
        gradients = jax.tree.map(lambda w, step=step: jnp.cos(w + step), params)
        _, state = jax.jit(tx.update)(gradients, states[-1], params, activities=seen_like(params))
        states.append(state)
    assert int(states[-1].resets) == 1

    def of_unit(state):
        arrays = jax.tree.leaves(state.inner_state)
        own = [a[..., :, 3] for a in arrays if a.shape[-2:] == (5, 4)]
        return own + [a[..., 3, :] for a in arrays if a.shape[-2:] == (4, 3)]

    fresh, before, after = (of_unit(states[n]) for n in (0, 3, 4))
    assert len(after) >= 2
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, fresh, strict=True))
    for a, b in zip(after, fresh, strict=True):
        np.testing.assert_array_equal(a, b)

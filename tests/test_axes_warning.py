"""The warning about axes that neither name nor shape tells: where it is, and that its remedy settles it."""

import ast
import re

import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro


def test_a_warning_is_at_the_line_of_who_calls():
    """Not at a line of Optax, whose ``chain`` stands between."""
    tx = optax.chain(optax.clip(1.0), ro.riemannian_eigenbasis(0.1))
    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        tx.init({"kernel": jnp.zeros([4, 6, 8])})
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "params",
    [
        {"first": {"kernel": jnp.ones([3, 3, 4, 8])}},
        {"encoder": {"stem": {"kernel": jnp.ones([3, 3, 4, 8])}, "head": {"kernel": jnp.ones([4, 4])}}},
        {"layers": [{"down": {"kernel": jnp.ones([3, 3, 4, 8])}}]},
        {"kernel": jnp.ones([3, 3, 4, 8])},
        {"blocks": [{"mix": {"kernel": jnp.ones([3, 3, 4, 8])}} for _ in range(12)]},
        {f"Block_{i}": {"mix": {"kernel": jnp.ones([3, 3, 4, 8])}, "norm": jnp.ones(8)} for i in range(12)},
        {
            name: {"kernel": jnp.ones([3, 3, 4, width])}
            for name, width in {"down": 4, "mix": 8, "up": 8}.items()
        },
        {"block": {"gate": jnp.ones([3, 3, 4, 8]), "inner": {"deeper": {"kernel": jnp.ones([3, 3, 4, 8])}}}},
    ],
    ids=["module", "nested", "list", "array", "numbered list", "numbered names", "modules", "module in one"],
)
def test_the_dictionary_that_a_warning_shows_settles_it(params, recwarn):
    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        ro.riemannian_eigenbasis(0.1).init(params)
    shown = re.search(r"such as axes=(\{.*\});", str(caught[0].message))[1]
    recwarn.clear()
    for preset in ("flax", "convolution"):
        axes = ast.literal_eval(shown.replace("flax", preset))
        ro.riemannian_eigenbasis(0.1, axes=axes).init(params)
    assert not recwarn.list


def test_a_module_that_is_named_is_confirmed(recwarn):
    """A preset that was right could not be told from one that nobody had thought of."""
    params = {"first": {"kernel": jnp.ones([3, 3, 4, 8])}}
    ro.riemannian_eigenbasis(0.1, axes={"first": "flax"}).init(params)
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match=r'name the module with its preset, such as axes=\{"first": "flax"\}'
    ):
        ro.riemannian_eigenbasis(0.1).init(params)


def test_a_loop_warns_once():
    """The needs of an optimiser are read from its state in the abstract, and that is not news."""
    params, batch = {"stem": {"kernel": jnp.ones([3, 3, 2, 2])}}, jnp.ones(4)
    tx = optax.chain(ro.in_eigenbasis(ro.scale_by_metric(ro.phi.online_ewc())), optax.sgd(0.1))
    step = ro.value_and_grad(lambda p, x: jnp.mean(x * jnp.sum(p["stem"]["kernel"] ** 2)), needs=tx)

    def loop():
        step(params, batch, state=ro.sharding.init(tx, params))

    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        loop()
    assert len(caught) == 1

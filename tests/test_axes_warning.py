"""The warning about axes that neither name nor shape tells: where it is, and that its remedy settles it."""

import ast
import re

import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro
from riemann_optax import _axes


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


def test_the_remedy_of_another_convention_is_in_its_own_words(recwarn):
    """Named ``"flax"``, a convolution of Equinox has 2 outputs, and all other layers are read wrong too."""
    params = {"patch": {"weight": jnp.ones([32, 4, 2, 2])}, "head": {"weight": jnp.ones([16, 32])}}
    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        ro.riemannian_eigenbasis(0.1, axes="equinox").init(params)
    said = str(caught[0].message)
    assert '"equinox_scanned" in the place of "equinox" for stacked layers, "equinox_convolution"' in said
    axes = ast.literal_eval(re.search(r"such as axes=(\{.*\});", said)[1])
    recwarn.clear()
    assert _axes.read(params, axes) == _axes.read(params, "equinox")
    ro.riemannian_eigenbasis(0.1, axes=axes).init(params)
    assert not recwarn.list


def all_of(shape):
    return {"weight": jnp.ones(shape), "bias": jnp.ones(shape[0])}


@pytest.mark.parametrize(
    ("params", "axes"),
    [
        ({"layers": [all_of([8, 4, 3, 3, 3]), all_of([16, 8]), all_of([4, 16])]}, "equinox"),
        (
            {"enc": {"patch": all_of([8, 4, 3, 3]), "lin": all_of([16, 8])}, "head": all_of([8, 16])},
            "equinox",
        ),
        (
            {"first": {"kernel": jnp.ones([3, 3, 4, 8])}, "head": {"kernel": jnp.ones([5, 6])}},
            {"head": {"kernel": ro.MatrixAxes((1,), (0,))}},
        ),
        (
            {"stem": all_of([8, 4, 2, 2]), "out": all_of([6, 5]), "mix": {"kernel": jnp.ones([3, 3, 4, 8])}},
            {"stem": "equinox", "out": "equinox"},
        ),
        (
            {f"Block_{i}": {"mix": {"kernel": jnp.ones([3, 3, 4, 8])}} for i in range(3)}
            | {"Block_3": {name: {"kernel": jnp.ones([3, 3, 4, 8])} for name in ("mix", "stem")}},
            "flax",
        ),
        ({'a"b': {"kernel": jnp.ones([3, 3, 4, 8])}, "a\\b": {"kernel": jnp.ones([3, 3, 4, 8])}}, "flax"),
    ],
    ids=["list of Equinox", "nested Equinox", "named axes", "named presets", "one of more", "quotes"],
)
def test_the_dictionary_that_a_warning_shows_changes_nothing(params, axes, recwarn):
    """It confirms, and every array is read as it was."""
    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        ro.riemannian_eigenbasis(0.1, axes=axes).init(params)
    code = re.search(r"such as axes=(\{.*\});", str(caught[0].message))[1]
    shown = eval(code, {"ro": ro})
    assert _axes.read(params, shown) == _axes.read(params, axes)
    recwarn.clear()
    ro.riemannian_eigenbasis(0.1, axes=shown).init(params)
    assert not recwarn.list


def test_a_function_of_axes_is_told_what_to_return(recwarn):
    params = {"stem": {"kernel": jnp.ones([3, 3, 4, 8])}}
    with pytest.warns(UserWarning, match="let the function of axes= return it, ro.MatrixAxes") as caught:
        ro.riemannian_eigenbasis(0.1, axes=lambda name, leaf: "flax").init(params)
    read = ast.parse(
        re.search(r"return it, (ro\.MatrixAxes\(.*\)) of ", str(caught[0].message))[1], mode="eval"
    )
    axes = eval(compile(read, "axes", "eval"), {"ro": ro})
    recwarn.clear()
    ro.riemannian_eigenbasis(0.1, axes=lambda name, leaf: axes).init(params)
    assert not recwarn.list


def test_what_stands_beside_stacks_is_asked_about(recwarn):
    """As in a scanned block: a stack of vectors looks like a matrix, one of convolutions like a window."""
    params = {
        "layers": {
            "D": jnp.ones([3, 32]),
            "dwconv": {"kernel": jnp.ones([3, 3, 1, 32])},
            "norm": {"scale": jnp.ones([3, 32])},
            "proj": {"kernel": jnp.ones([3, 32, 24])},
        },
        "head": {"kernel": jnp.ones([32, 24])},
    }
    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        ro.riemannian_eigenbasis(0.1).init(params)
    said = str(caught[0].message)
    assert all(name in said for name in ("['D']", "['dwconv']", "['proj']"))
    assert "['head']" not in said
    recwarn.clear()
    ro.riemannian_eigenbasis(0.1, axes={"layers": "scanned"}).init(params)
    assert not recwarn.list


def test_describe_warns_once():
    params = {"stem": {"kernel": jnp.ones([3, 3, 4, 8])}}
    with pytest.warns(UserWarning, match="in_eigenbasis reads") as caught:
        print(ro.describe(ro.riemannian_eigenbasis(0.1), params))
    assert len(caught) == 1


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


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (8, 1), (1, 8), (1, 1)])
def test_an_array_with_one_long_axis_is_in_no_doubt(shape, recwarn):
    """Haiku's BatchNorm has such scales: however they are read, they are vectors."""
    ro.riemannian_eigenbasis(0.1, sides="both").init({"batch_norm": {"offset": jnp.ones(shape)}})
    assert not recwarn.list

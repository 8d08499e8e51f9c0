"""An optimiser of Flax NNX passes for its transformation; what is of another kind is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import riemann_optax as ro
from riemann_optax.testing import check_examples

PARAMS = {"w": jnp.array([1.0, -2.0])}


class Net(nnx.Module):
    def __init__(self):
        self.frozen = nnx.BatchStat(jnp.ones(3))
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x * self.frozen[...])


def trained_net():
    """After two steps, so that the state is not that of init."""
    model = Net()
    optimizer = nnx.Optimizer(model, ro.riemannian_adamw(0.1), wrt=nnx.Param)
    for step in range(2):
        gradients = nnx.grad(lambda model, step=step: jnp.sum((model(jnp.ones([4, 3])) - step) ** 2))(model)
        optimizer.update(model, gradients)
    return model, optimizer, gradients


def test_describe_takes_an_nnx_optimizer_and_its_state():
    model, optimizer, gradients = trained_net()
    found = ro.describe(optimizer, model, gradients)
    params, state = nnx.state(model, nnx.Param), optimizer.opt_state
    assert found == ro.describe(optimizer.tx, params, gradients, state)
    assert found != ro.describe(optimizer.tx, params, gradients)  # with the state of init
    assert [leaf.name for leaf in found.leaves] == ["['layer']['bias']", "['layer']['kernel']"]
    assert found == ro.describe(optimizer, params, gradients)


def test_describe_takes_what_an_nnx_optimizer_trains():
    model = nnx.LoRA(3, 2, 4, base_module=nnx.Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, ro.riemannian_adamw(0.1), wrt=nnx.LoRAParam)
    assert len(ro.describe(optimizer, model).leaves) == 2


def test_metric_at_takes_an_nnx_optimizer_and_its_state():
    model, optimizer, gradients = trained_net()
    params = nnx.state(model, nnx.Param)
    expected = ro.metric_at(optimizer.tx, gradients, optimizer.opt_state, params)
    for found in (
        ro.metric_at(optimizer, gradients, params=model),
        ro.metric_at(optimizer, gradients, optimizer.opt_state, params),
        ro.metric_at(optimizer.tx, gradients, optimizer.opt_state, model),
    ):
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)


def test_shardings_of_an_nnx_optimizer():
    model, optimizer, _ = trained_net()
    params = nnx.state(model, nnx.Param)
    assert ro.sharding.state_shardings(optimizer, model) == ro.sharding.state_shardings(optimizer.tx, params)
    found, expected = ro.sharding.init(optimizer, model), optimizer.tx.init(params)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    target = ro.checkpoint.target(optimizer, model)
    assert jax.tree.map(jnp.shape, target) == jax.tree.map(jnp.shape, expected)


WANT_A_TRANSFORMATION = {
    "describe": lambda tx: ro.describe(tx, PARAMS),
    "metric_at": lambda tx: ro.metric_at(tx, PARAMS, (), PARAMS),
    "state_shardings": lambda tx: ro.sharding.state_shardings(tx, PARAMS),
    "sharding.init": lambda tx: ro.sharding.init(tx, PARAMS),
    "checkpoint.target": lambda tx: ro.checkpoint.target(tx, PARAMS),
}


@pytest.mark.parametrize("name", WANT_A_TRANSFORMATION)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "got 3: a function that makes one has to be called"),
        (ro.riemannian_adamw, "a function that makes one has to be called"),
        (
            TrainState.create(apply_fn=None, params=PARAMS, tx=optax.sgd(0.1)),
            "got TrainState: pass its tx",
        ),
    ],
    ids=["a number", "a function", "a train state"],
)
def test_what_is_no_transformation_is_refused(name, given, words):
    with pytest.raises(TypeError, match=rf"^tx(_or_phi)? must be an optax.GradientTransformation.*{words}"):
        WANT_A_TRANSFORMATION[name](given)


def test_an_nnx_optimizer_is_no_transformation_elsewhere():
    _, optimizer, _ = trained_net()
    with pytest.raises(TypeError, match=r"got Optimizer: pass its tx"):
        ro.in_eigenbasis(optimizer)


def test_metric_at_wants_a_state():
    with pytest.raises(TypeError, match=r"^metric_at: state must be the state of tx, got None: give"):
        ro.metric_at(ro.riemannian_sgd(0.1), PARAMS)


def test_an_alpha_for_a_whole_optimiser_is_refused():
    for tx in (ro.riemannian_adamw(0.1), optax.chain(optax.clip(1.0), ro.riemannian_sgd(0.1))):
        with pytest.raises(ValueError, match=r"^alpha: tx_or_phi has a metric of its own.* leave alpha out"):
            ro.describe(tx, PARAMS, alpha=3.0)
    own = optax.stateless(lambda updates, params: jax.tree.map(jnp.abs, updates))  # undeclared
    (leaf,) = ro.describe(own, PARAMS, alpha=3.0).leaves
    assert (leaf.metric_min, leaf.metric_max) == (4.0, 4.0)


@pytest.mark.parametrize(
    "declared", [{"needs": ("value",)}, {"least": -0.5}, {"update_with_means": lambda *_, **__: None}]
)
def test_a_phi_declares_under_a_name(declared):
    phi = ro.phi.activity()
    with pytest.raises(
        ValueError, match=r"^Phi: needs, update_with_means and least are declared under a name"
    ):
        ro.phi.Phi(phi.init, phi.update, **declared)
    assert ro.phi.Phi(phi.init, phi.update).name == "activity"  # rebuilt
    assert jax.tree.map(lambda function: function, phi).needs == phi.needs


@pytest.mark.parametrize("signal", ["inputs", "activities"])
@pytest.mark.parametrize("given", ["abc", {"w": 1.0}, len])
def test_what_is_no_signal_is_refused(signal, given):
    def loss(w, x):
        ro.supply.observe(w, **{signal: given})
        return jnp.mean((x @ w) ** 2)

    with pytest.raises(TypeError, match=rf"^observe: {signal} must be an array, or the number 1, got "):
        loss(jnp.ones([3, 1]), jnp.ones([2, 3]))
    with pytest.raises(TypeError, match=rf"^observe: {signal} must be an array, or the number 1, got "):
        ro.value_and_grad(loss, "inputs")(jnp.ones([3, 1]), jnp.ones([2, 3]))


def test_check_examples_wants_a_function():
    with pytest.raises(TypeError, match=r"^loss_fn must be a function loss_fn\(model, batch\), got int\."):
        check_examples(3, jnp.ones(2), jnp.ones(2))


def test_pictures_want_axes():
    pytest.importorskip("matplotlib")
    for draw in (
        lambda: ro.plot.name_lines(3),
        lambda: ro.plot.metric([{"E_min/w": 1.0, "E_mean/w": 1.0, "E_max/w": 1.0}], axes=3),
    ):
        with pytest.raises(TypeError, match=r"axes must be axes of matplotlib, got int: give one"):
            draw()

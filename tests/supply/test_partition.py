"""Some weights are frozen, or trained by another optimiser: each phi sees its own, by optax.partition."""

import jax
import jax.numpy as jnp
import optax
import pytest

import riemann_optax as ro
from riemann_optax.examples.train.phis import PHIS

from . import models
from .models import close, sgd_with
from .test_matrix import NEEDY

CASE = models.CASES["haiku"]
LABELS = {
    "mlp/~/linear_0": {"w": "frozen", "b": "frozen"},
    "mlp/~/linear_1": {"w": "trained", "b": "trained"},
}
OF_MODULES = {"mlp/~/linear_0": False, "mlp/~/linear_1": True}  # a mask may be a prefix of the parameters


def steps(tx, loss, params, **options):
    """Three updates; the weights after each."""
    step = ro.value_and_grad(loss, tx, samples=3, **options)
    state, history = tx.init(params), []
    for number in range(3):
        _, gradients, extra = step(params, CASE.batch, state=state, task_boundary=number == 1)
        updates, state = tx.update(gradients, state, params, **extra)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


@pytest.mark.parametrize("kind", ["partition", "masked"])
@pytest.mark.parametrize("name", NEEDY)
def test_a_phi_of_some_of_the_weights_is_that_of_a_model_of_these_alone(name, kind):
    """The oracle: the frozen layer is no parameter at all, but a constant of the loss."""
    params = CASE.make()
    alpha = min(PHIS[name].alpha, 1e-2)
    tx = sgd_with(PHIS[name].factory(), alpha=alpha)
    if kind == "partition":
        whole = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, LABELS)
    else:
        frozen = jax.tree.map(lambda flag: not flag, OF_MODULES)
        whole = optax.chain(optax.masked(tx, OF_MODULES), optax.masked(optax.set_to_zero(), frozen))
    first, last = "mlp/~/linear_0", "mlp/~/linear_1"

    def of_the_last(trained, batch):
        return CASE.loss({first: params[first], last: trained[last]}, batch)

    ours = steps(whole, CASE.loss, params)
    theirs = steps(tx, of_the_last, {last: params[last]})
    for one, other in zip(ours, theirs, strict=True):
        close(one[last], other[last])
        close(one[first], params[first])
    assert not jnp.array_equal(ours[-1][last]["w"], params[last]["w"])


def test_a_weight_that_cannot_be_observed_is_left_to_another_optimiser():
    """The oracle: the inputs of the layer, by hand."""
    params = {"layer": CASE.make()["mlp/~/linear_0"], "temperature": jnp.ones(5)}

    def loss(params, batch):
        layer = params["layer"]
        outputs = jnp.tanh(batch["x"] @ layer["w"] + layer["b"])
        ro.supply.observe(layer["w"], inputs=batch["x"])
        ro.supply.observe(layer["b"], inputs=1)
        return jnp.mean((outputs * params["temperature"]) ** 2)

    tx = sgd_with(ro.phi.idbd(axes="haiku"))
    with pytest.raises(ValueError, match=r"leaf \['temperature'\] cannot be observed.*with optax\.partition"):
        ro.value_and_grad(loss, tx)(params, CASE.batch)
    labels = {"layer": {"w": "phi", "b": "phi"}, "temperature": "plain"}
    parts = optax.partition({"phi": tx, "plain": optax.sgd(0.1)}, labels)
    _, gradients, extra = ro.value_and_grad(loss, parts)(params, CASE.batch)
    close(extra["inputs"]["layer"]["w"], CASE.batch["x"])
    parts.update(gradients, parts.init(params), params, **extra)
    swapped = {"layer": {"w": "phi", "b": "plain"}, "temperature": "phi"}
    parts = optax.partition({"phi": tx, "plain": optax.sgd(0.1)}, swapped)
    _, gradients, extra = ro.value_and_grad(loss, parts)(params, CASE.batch)
    with pytest.raises(ValueError, match=r"^inputs must be .* leaf \['temperature'\]: .*supply\.observe"):
        parts.update(gradients, parts.init(params), params, **extra)


@pytest.mark.parametrize("argument", ["obj_fn", "value_fn"])
def test_a_loss_that_wants_what_is_left_out_is_told_who_puts_it_back(argument):
    params = {"trained": jnp.ones(2), "other": jnp.ones(2)}
    tx = optax.partition(
        {"ours": sgd_with(ro.phi.hutchinson_curvature(), alpha=1.0), "adam": optax.adam(0.1)},
        {"trained": "ours", "other": "adam"},
    )

    def loss(params, batch=1.0):
        return jnp.sum(params["trained"] ** 2) + jnp.sum((params["other"] - batch) ** 2)

    with pytest.raises(ValueError, match=r"^hutchinson_curvature: obj_fn fails .*ro\.value_and_grad, whose"):
        tx.update(params, tx.init(params), params, **{argument: loss})
    step = ro.value_and_grad(loss, tx)  # the remedy
    _, gradients, extra = step(params, jnp.ones(1), state=tx.init(params))
    tx.update(gradients, tx.init(params), params, **extra)


def test_an_error_of_the_loss_itself_stays_what_it_is():
    tx, params = sgd_with(ro.phi.hutchinson_curvature(), alpha=1.0), jnp.ones(2)

    def loss(params):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tx.update(params, tx.init(params), params, obj_fn=loss)

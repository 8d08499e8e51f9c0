"""Every extra argument, held to one that is computed another way."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import riemann_optax as ro

from . import models
from .models import DATA, Net, W, close, quadratic, sgd_with


def test_value_and_gradient_are_those_of_jax():
    value, gradients, extra = ro.value_and_grad(quadratic)(W, DATA)
    expected = jax.value_and_grad(quadratic)(W, DATA)
    close((value, gradients), expected)
    assert extra == {}


def test_value_and_gradient_are_those_of_nnx():
    ours, theirs = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    value, gradients, _ = ro.value_and_grad(models.of_convnet)(ours, models.IMAGES)
    expected, their_gradients = nnx.value_and_grad(models.of_convnet)(theirs, models.IMAGES)
    close(value, expected)
    close(nnx.to_pure_dict(gradients), nnx.to_pure_dict(their_gradients))
    assert jax.tree.structure(gradients) == jax.tree.structure(their_gradients)


def test_statistics_and_counters_of_nnx_are_those_after_one_evaluation():
    """Whatever is evaluated beside: as if the loss had been differentiated once."""
    ours, theirs = models.ConvNet(nnx.Rngs(0)), models.ConvNet(nnx.Rngs(0))
    needs = ("per_example_gradients", "activities", "inputs", "outputs_fn", "output_norm_gradients")
    _, gradients, extra = ro.value_and_grad(models.of_convnet, needs, statistics="running")(
        ours, models.IMAGES
    )
    extra["outputs_fn"](nnx.state(ours, nnx.Param))
    _, their_gradients = nnx.value_and_grad(models.of_convnet)(theirs, models.IMAGES)
    close(nnx.to_pure_dict(gradients), nnx.to_pure_dict(their_gradients))
    for kind in (nnx.BatchStat, nnx.RngCount, nnx.Param):
        close(nnx.to_pure_dict(nnx.state(ours, kind)), nnx.to_pure_dict(nnx.state(theirs, kind)))
    assert ours.norm.mean[...].any()
    assert type(ours.norm) is nnx.BatchNorm


def test_the_gradient_of_an_equinox_model_is_that_of_equinox():
    case = models.CASES["equinox"]
    model = case.make()
    value, gradients, _ = ro.value_and_grad(case.loss)(model, case.batch)
    expected, theirs = eqx.filter_value_and_grad(case.loss)(model, case.batch)
    close(value, expected)
    assert jax.tree.structure(gradients) == jax.tree.structure(theirs)
    close(jax.tree.leaves(gradients), jax.tree.leaves(theirs))


def test_aux_is_that_of_the_gradient():
    def loss(w, batch, scale):
        return scale * quadratic(w, batch), {"scaled": scale}

    (value, aux), _, _ = ro.value_and_grad(loss, "obj_fn", has_aux=True)(W, DATA, 2.0)
    close(value, 2 * quadratic(W, DATA))
    assert aux == {"scaled": 2.0}


def test_the_loss_as_a_function_gives_the_hessian():
    _, _, extra = ro.value_and_grad(quadratic, ro.phi.hutchinson_curvature())(W, DATA)
    assert set(extra) == {"obj_fn"}
    close(jax.hessian(extra["obj_fn"])(W), jax.hessian(quadratic)(W, DATA))


def test_dropout_masks_are_those_of_the_gradient_wherever_the_loss_is_evaluated():
    model = models.ConvNet(nnx.Rngs(0), rate=0.5)
    params = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    step = ro.value_and_grad(models.of_convnet, ("value", "value_fn", "outputs_fn", "outputs_loss_fn"))
    value, _, extra = step(model, models.IMAGES)
    close(extra["value_fn"](params), value)
    close(extra["outputs_loss_fn"](extra["outputs_fn"](params)), value)
    again, _, _ = step(model, models.IMAGES)  # the next step has other masks
    assert abs(float(again - value)) > 1e-3


def test_a_key_is_the_same_for_all_evaluations():
    case = models.CASES["linen"]
    params = case.make()
    step = ro.value_and_grad(case.loss, ("value", "value_fn"))
    value, _, extra = step(params, case.batch, key=jax.random.key(3))
    close(extra["value_fn"](params), value)
    other, _, _ = step(params, case.batch, key=jax.random.key(4))
    assert abs(float(other - value)) > 1e-3


@pytest.mark.parametrize("num_terms", [None, 30, lambda batch: 5 * batch["y"].size])
def test_perturbed_gradients_are_of_the_summed_loss_at_the_perturbed_weights(num_terms):
    tx = sgd_with(ro.phi.mesu(prior_deviation=0.06))
    step = ro.value_and_grad(quadratic, tx, samples=4, num_terms=num_terms)
    state = tx.init(W)
    value, gradients, extra = step(W, DATA, state=state)
    assert set(extra) == {"perturbed_gradients", "perturbations"}
    places = [W + 0.06 * noise for noise in extra["perturbations"]]
    terms = 6 if num_terms is None else 30
    expected = jnp.stack([terms * jax.grad(quadratic)(place, DATA) for place in places])
    close(extra["perturbed_gradients"], expected)
    close(gradients, expected.mean(0) / terms)
    close(value, quadratic(W, DATA))


def test_the_gradient_at_the_previous_weights_is_of_this_batch():
    tx = sgd_with(ro.phi.secant_curvature())
    step = ro.value_and_grad(quadratic, tx)
    state, w, previous = tx.init(W), W, None
    for index in range(3):
        batch = {"x": models.array(10 + index, 6, 3), "y": DATA["y"]}
        _, gradients, extra = step(w, batch, state=state)
        if index:
            close(extra["gradients_at_previous_params"], jax.grad(quadratic)(previous, batch))
        updates, state = tx.update(gradients, state, w, **extra)
        previous, w = w, optax.apply_updates(w, updates)


def test_the_outputs_and_the_loss_of_the_outputs():
    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    _, _, extra = ro.value_and_grad(models.of_convnet, ro.phi.gauss_newton_curvature())(model, models.IMAGES)
    assert set(extra) == {"outputs_fn", "outputs_loss_fn"}
    close(extra["outputs_fn"](params), model(models.IMAGES["images"]))
    logits = models.array(1, models.EXAMPLES, 4)
    close(extra["outputs_loss_fn"](logits), models.cross_entropy(logits, models.LABELS))


def test_outputs_that_are_not_seen_are_asked_for():
    _, _, extra = ro.value_and_grad(quadratic, ro.phi.gauss_newton_curvature())(W, DATA)
    with pytest.raises(
        ValueError, match=r"outputs of the model were not seen in the loss function: mark them"
    ):
        extra["outputs_fn"](W)


@pytest.mark.parametrize("need", ["gradients_at_previous_params", "perturbed_gradients"])
def test_a_state_that_is_needed_is_asked_for(need):
    phi = ro.phi.secant_curvature() if need.startswith("grad") else ro.phi.mesu()
    step = ro.value_and_grad(quadratic, phi)
    with pytest.raises(ValueError, match=rf"^{need} depends on the optimiser's state: give it to the step"):
        step(W, DATA)
    with pytest.raises(ValueError, match=rf"^{need}: the state holds no "):
        step(W, DATA, state=optax.sgd(0.1).init(W))
    matrix = {"w": models.array(0, 4, 4)}
    turned = ro.in_eigenbasis(sgd_with(phi))
    with pytest.raises(
        ValueError, match=rf"^{need}: the phi that reads it works in the coordinates of in_eig"
    ):
        ro.value_and_grad(lambda p, b: jnp.sum(p["w"] ** 2), turned)(matrix, DATA, state=turned.init(matrix))


def test_a_train_state_is_taken_as_the_state():
    tx = sgd_with(ro.phi.secant_curvature())
    state = TrainState.create(apply_fn=None, params=W, tx=tx)
    _, _, extra = ro.value_and_grad(quadratic, tx)(W, DATA, state=state)
    assert set(extra) == {"gradients_at_previous_params"}


def test_what_no_loss_tells_is_passed_on():
    tx = sgd_with(ro.phi.synaptic_intelligence())
    step = ro.value_and_grad(quadratic, tx)
    _, _, extra = step(W, DATA)
    assert extra == {}
    _, _, extra = step(W, DATA, task_boundary=True)
    assert extra == {"task_boundary": True}


@pytest.mark.parametrize("search", ["zoom", "backtracking"])
def test_optax_line_searches_get_what_they_read(search):
    searches = {
        "zoom": lambda: optax.scale_by_zoom_linesearch(max_linesearch_steps=5),
        "backtracking": lambda: optax.scale_by_backtracking_linesearch(max_backtracking_steps=5),
    }
    # A phi that reads the loss, and one that reads gradients, before the search.
    tx = optax.chain(
        ro.scale_by_metric(ro.phi.secant_curvature(), 1.0), optax.scale(-1.0), searches[search]()
    )
    step = ro.value_and_grad(quadratic, tx)
    w, state = W, tx.init(W)
    values = []
    for _ in range(4):
        value, gradients, extra = step(w, DATA, state=state)
        assert set(extra) == {"value", "grad", "value_fn", "gradients_at_previous_params"}
        updates, state = tx.update(gradients, state, w, **extra)
        w = optax.apply_updates(w, updates)
        values.append(float(value))
    assert values == sorted(values, reverse=True)


def test_what_a_state_does_not_tell_is_asked_for_by_name():
    tx = optax.polyak_sgd()
    value, _, extra = ro.value_and_grad(quadratic, (tx, "value"))(W, DATA)
    assert extra == {"value": value}
    plateau = optax.contrib.reduce_on_plateau()
    assert set(ro.value_and_grad(quadratic, plateau)(W, DATA)[2]) == {"value"}
    with pytest.raises(
        ValueError, match=r"^needs must be an optimiser or names of extra arguments, got 'val'"
    ):
        ro.value_and_grad(quadratic, "val")


def test_batches_that_are_no_batches():
    step = ro.value_and_grad(lambda w, b: jnp.sum(w * b["x"].sum() * b["y"].sum()), "per_example_gradients")
    with pytest.raises(ValueError, match=r"^batch: its arrays have first axes of lengths \[2, 3\]"):
        step(jnp.ones([]), {"x": jnp.ones(2), "y": jnp.ones(3)})


def test_complex_gradients_are_as_optax_takes_them():
    def loss(z, batch):
        return jnp.mean(jnp.abs(z * batch["x"] - batch["y"]) ** 2)

    z, batch = jnp.array(1.0 + 2.0j), {"x": DATA["y"], "y": DATA["y"]}
    _, gradient, extra = ro.value_and_grad(loss, "per_example_gradients")(z, batch)
    assert loss(z - 0.1 * gradient, batch) < loss(z, batch)
    close(extra["per_example_gradients"].mean(0), gradient)


def test_the_step_is_scanned_and_sharded():
    """The same under lax.scan, and with the examples spread over eight devices."""
    case = models.CASES["haiku"]
    params = case.make()
    tx = sgd_with(ro.phi.online_ewc(memory=0.9))
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), case.batch)
    step = ro.value_and_grad(case.loss, tx, chunk_size=8)

    def update(carry, boundary, batch=batch):
        params, state = carry
        value, gradients, extra = step(params, batch, state=state, task_boundary=boundary)
        updates, state = tx.update(gradients, state, params, **extra)
        return (optax.apply_updates(params, updates), state), value

    boundaries = jnp.array([False, True, False])
    start = params, tx.init(params)
    scanned, _ = jax.jit(lambda: jax.lax.scan(update, start, boundaries))()
    looped = start
    for boundary in boundaries:
        looped, _ = update(looped, boundary)
    close(scanned[0], looped[0])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    sharded = jax.jit(lambda carry, batch: update(carry, jnp.array(True), batch)[0])(start, spread)
    close(sharded[0], update(start, jnp.array(True))[0][0])


@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_gradients_of_examples_that_are_spread_over_devices(kind, chunk_size):
    case = models.CASES["haiku"]
    params, batch = case.make(), jax.tree.map(lambda x: jnp.concatenate([x] * 4), case.batch)
    step = ro.value_and_grad(
        case.loss, ("per_example_gradients", "output_norm_gradients"), chunk_size=chunk_size
    )
    alone = step(params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
        everywhere = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
        if kind == jax.sharding.AxisType.Explicit and chunk_size:
            with pytest.raises(
                ValueError, match=r"^chunk_size: the examples of the batch are spread over the"
            ):
                jax.jit(step)(everywhere, spread)
        else:
            close(jax.jit(step)(everywhere, spread), alone)


def test_what_is_given_by_name_is_not_made():
    batch = {"x": jnp.eye(2), "y": jnp.ones(2)}

    def loss(w, batch):
        return 0.5 * jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

    def mine(w, **kwargs):
        return jnp.sum(100 * w**2)

    tx = optax.chain(ro.compute_metric(ro.phi.hutchinson_curvature()), ro.scale_by_inverse_metric())
    _, _, extra = ro.value_and_grad(loss, needs=(tx, "value_fn"))(jnp.ones(2), batch, obj_fn=mine)
    assert extra["obj_fn"] is mine
    assert extra["value_fn"] is not mine
    assert ro.value_and_grad(loss, needs="value")(jnp.ones(2), batch, value=7.0)[2] == {"value": 7.0}


@pytest.mark.parametrize("phi", [ro.phi.activity, ro.phi.hutchinson_curvature, ro.phi.online_ewc])
def test_an_nnx_optimizer_tells_what_it_trains(phi):
    """The low-rank matrices alone, as under ``nnx.DiffState``; the rest keeps its weights."""

    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(4, 2, rngs=rngs)
            self.lora = nnx.LoRA(4, 2, 2, base_module=self.base, rngs=rngs)

        def __call__(self, x):
            return self.lora(x)

    def loss(model, x):
        return jnp.mean((model(x) - 1) ** 2)

    model, x = Adapted(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (5, 4))
    optimizer = nnx.Optimizer(model, ro.riemannian_sgd(0.1, phi=phi()), wrt=nnx.LoRAParam)
    step, kernel = ro.value_and_grad(loss, needs=optimizer), model.base.kernel[...]
    before, gradients, extra = step(model, x, state=optimizer)
    expected = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, x)
    for own, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5)
    for _ in range(20):
        optimizer.update(model, gradients, **extra)
        value, gradients, extra = step(model, x, state=optimizer)
    assert value < before
    np.testing.assert_array_equal(model.base.kernel[...], kernel)


class Dropped(nn.Module):
    """A network of Linen as users write it: with a dropout that its caller turns on."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x)))


def of_dropped(params, batch, *, train=False, dropout_rng=None, power=2):
    rngs = {"dropout": dropout_rng} if train else None
    outputs = Dropped().apply({"params": params}, batch["x"], train=train, rngs=rngs)
    return jnp.mean(jnp.abs(outputs[:, 0] - batch["y"]) ** power)


@pytest.mark.parametrize("needs", [(), "obj_fn", "per_example_gradients", ("inputs", "activities")], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "jit"])
def test_arguments_that_the_loss_has_by_name_reach_it(needs, compiled):
    batch = {"x": jax.random.normal(jax.random.key(0), (6, 3)), "y": jnp.arange(6.0)}
    params = Dropped().init(jax.random.key(1), batch["x"])["params"]
    loss = jax.jit(of_dropped, static_argnames=("train", "power")) if compiled else of_dropped
    step = ro.value_and_grad(loss, needs)
    for named in ({}, {"power": 3}, {"train": True, "dropout_rng": jax.random.key(2)}):
        value, gradients, extra = step(params, batch, **named)
        close((value, gradients), jax.value_and_grad(of_dropped)(params, batch, **named))
        assert not extra.keys() & named.keys()
        if "obj_fn" in extra:
            close(extra["obj_fn"](params), of_dropped(params, batch, **named))
        if "per_example_gradients" in extra and "train" not in named:
            mean = jax.tree.map(lambda g: g.mean(0), extra["per_example_gradients"])
            close(mean, gradients)


def test_an_argument_by_name_that_could_be_meant_for_both_is_refused():
    def loss(w, batch, value=0.0):
        return quadratic(w, batch) + value

    with pytest.raises(ValueError, match=r"^value is an argument of loss_fn, and an extra argument"):
        ro.value_and_grad(loss)(W, DATA, value=1.0)
    for named in ({"labels": DATA["y"]}, {"labels": {"y": DATA["y"]}}):
        step = ro.value_and_grad(lambda w, batch, labels: quadratic(w, batch), "per_example_gradients")
        with pytest.raises(ValueError, match=r"^further argument labels of the loss has arrays of"):
            step(W, DATA, **named)


@pytest.mark.parametrize("needs", [(), "obj_fn", ("inputs", "activities")], ids=str)
def test_a_loss_that_has_its_data_from_elsewhere_needs_no_batch(needs):
    inputs = jax.random.normal(jax.random.key(0), (6, 3))
    network = nn.Dense(1)
    params = network.init(jax.random.key(1), inputs)

    def loss(params, power=2):
        return jnp.mean(jnp.abs(network.apply(params, inputs)) ** power)

    value, gradients, extra = ro.value_and_grad(loss, needs)(params)
    close((value, gradients), jax.value_and_grad(loss)(params))
    if "inputs" in extra:
        np.testing.assert_allclose(extra["inputs"]["params"]["kernel"].reshape(6, 3), inputs, rtol=1e-6)
    cubed, _, _ = ro.value_and_grad(loss, needs)(params, power=3)
    close(cubed, loss(params, 3))
    with pytest.raises(ValueError, match="batch: a NoBatch without arrays, and the number of examples"):
        ro.value_and_grad(loss, "per_example_gradients")(params)
    with pytest.raises(TypeError, match=r"loss_fn is called with 1 arguments"):
        ro.value_and_grad(of_dropped)(params)

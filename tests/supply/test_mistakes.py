"""What a user can do wrong, and whether the error says what to do instead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

from . import models
from .models import DATA, Net, W, close, quadratic, sgd_with


def with_aux(w, batch):
    return quadratic(w, batch), {"more": 1}


def with_key(w, batch, key):
    return quadratic(w * jax.random.bernoulli(key, 0.5, w.shape), batch)


NEEDS = ("obj_fn", "per_example_gradients", "inputs", "value")


@pytest.mark.parametrize("need", NEEDS)
@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        (with_aux, {}, r"got a tuple of 2: give value_and_grad has_aux=True"),
        (
            quadratic,
            {"has_aux": True},
            r"\(value, aux\) where has_aux=True, got an array of shape \(\)",
        ),
        (
            lambda w, b: (b["x"] @ w) ** 2,
            {},
            r"got an array of shape \(\d,\) .*: return the mean over the exam",
        ),
        (lambda w, b: None, {}, r"one number, got None: does it end with return"),
        (lambda w, b: jnp.sum(w > 0), {}, r"real floating-point number, got .* dtype int32"),
    ],
    ids=["aux", "no aux", "vector", "none", "integer"],
)
def test_a_loss_that_is_not_one_number(loss, options, words, need):
    with pytest.raises(TypeError, match=rf"^loss_fn must return .*{words}"):
        ro.value_and_grad(loss, need, **options)(W, DATA)


def test_a_key_that_is_missing_or_not_taken():
    with pytest.raises(TypeError, match=r"'key'\): call step\(model, batch, key=jax\.random\.key"):
        ro.value_and_grad(with_key)(W, DATA)
    with pytest.raises(TypeError, match=r"'key'\): add an argument key to it, or give the step none"):
        ro.value_and_grad(quadratic)(W, DATA, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"'rng'\): call its argument rng key, or give that by its own name"):
        ro.value_and_grad(lambda w, b, rng: quadratic(w, b))(W, DATA, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"'labels'\): give the step labels behind the batch, or by name"):
        ro.value_and_grad(lambda w, b, labels: quadratic(w, b))(W, DATA)
    with pytest.raises(TypeError, match=r"2 arguments, .*too many positional .*takes the model alone: give"):
        ro.value_and_grad(lambda w: jnp.sum(w))(W, DATA)
    with pytest.raises(TypeError, match=r"3 arguments, .*too many positional arguments\): call step"):
        ro.value_and_grad(quadratic)(W, DATA, 1.0)
    with pytest.raises(TypeError, match=r"^loss_fn must be a function loss_fn\(model, batch\), got Arr"):
        ro.value_and_grad(W)


@pytest.mark.parametrize("needs", [None, ro.phi.idbd, (ro.phi.idbd,), 3])
def test_needs_that_are_none(needs):
    with pytest.raises(TypeError, match=r"^needs must be an optimiser, names of extra arguments, or a tuple"):
        ro.value_and_grad(quadratic, needs)


def test_whatever_holds_a_transformation_tells_its_needs():
    tx = sgd_with(ro.phi.secant_curvature())
    for needs in (tx, [tx]):
        _, _, extra = ro.value_and_grad(quadratic, needs)(W, DATA, state=tx.init(W))
        assert set(extra) == {"gradients_at_previous_params"}
    several = optax.MultiSteps(sgd_with(ro.phi.hutchinson_curvature()), 2)
    _, _, extra = ro.value_and_grad(quadratic, several)(W, DATA, state=several.init(W))
    assert set(extra) == {"obj_fn"}
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    _, _, extra = ro.value_and_grad(models.of_convnet, optimizer)(model, models.IMAGES, state=optimizer)
    assert set(extra) == {"gradients_at_previous_params"}


@pytest.mark.parametrize(
    ("tx", "need"),
    [
        (sgd_with(ro.phi.secant_curvature()), "gradients_at_previous_params"),
        (sgd_with(ro.phi.mesu()), "perturbed_gradients"),
        (ro.soft_resets(optax.sgd(0.1), 0.1), "obj_fn"),
    ],
)
def test_what_is_of_one_batch_is_not_put_beside_the_gradient_of_several(tx, need):
    several = optax.MultiSteps(tx, 2)
    for wrapped in (several, optax.chain(several.gradient_transformation(), optax.identity())):
        with pytest.raises(ValueError, match=rf"^{need}: optax.MultiSteps accumulates gradients"):
            ro.value_and_grad(quadratic, wrapped)(W, DATA, state=wrapped.init(W))
    ro.value_and_grad(quadratic, tx)(W, DATA, state=tx.init(W))


def test_accumulated_in_the_loop_the_change_of_the_gradient_is_that_of_all_batches():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    parts = [(x[:4], jnp.ones(4)), (x[4:], -jnp.ones(4))]
    tx = sgd_with(ro.phi.secant_curvature())
    step = ro.value_and_grad(lambda w, b: 0.5 * jnp.mean((b[0] @ w - b[1]) ** 2), tx)
    w = jnp.zeros(2)
    state = tx.init(w)

    def mean(w, state):
        made = [step(w, part, state=state)[1:] for part in parts]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *made)

    gradients, extra = mean(w, state)
    change, state = tx.update(1e4 * gradients, state, w, **extra)  # phi begins at 1e4, and steps are short
    gradients, extra = mean(w + change, state)
    found = gradients - extra["gradients_at_previous_params"]
    np.testing.assert_allclose(found, np.asarray(x.T @ x / 8, float) @ np.asarray(change, float), rtol=1e-3)


def test_a_batch_without_arrays():
    step = ro.value_and_grad(lambda w, b: jnp.sum(w**2), "per_example_gradients")
    with pytest.raises(ValueError, match=r"^batch: a NoneType without arrays, and the number of examples is"):
        step(W, None)


def test_a_name_that_is_nearly_one_of_the_vocabulary():
    step = ro.value_and_grad(quadratic)
    with pytest.warns(UserWarning, match=r"argument task_bondary, which no phi .* is it task_boundary\?"):
        step(W, DATA, task_bondary=True)
    assert step(W, DATA, temperature=2.0)[2] == {"temperature": 2.0}


def test_a_declared_need_of_ones_own_that_is_missing():
    def update(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(lambda u: jnp.full_like(u, value), updates), state

    own = ro.phi.Phi(optax.init_empty_state, update, name="own", needs=["value"])
    tx = sgd_with(own)
    with pytest.raises(ValueError, match=r"^own needs the extra argument value, a scalar: the loss of"):
        tx.update(W, tx.init(W), W)
    tx.update(W, tx.init(W), W, value=1.0)


@pytest.mark.parametrize("compile_it", [jax.jit, nnx.jit], ids=["jax.jit", "nnx.jit"])
def test_a_compiled_loss_is_observed_although_it_was_compiled_before(compile_it):
    model, batch = Net(nnx.Rngs(0)), models.IMAGES
    expected = ro.value_and_grad(models.of_convnet, ("inputs", "outputs_fn"))(model, batch)[2]
    graph, params = nnx.split(model)

    @compile_it
    def loss(params, batch):
        return models.of_convnet(ro.supply.watch(nnx.merge(graph, params)), batch)

    loss(params, batch)
    for _ in range(2):
        _, _, extra = ro.value_and_grad(loss, ("inputs", "outputs_fn"))(params, batch)
        close(jax.tree.leaves(extra["inputs"]), jax.tree.leaves(expected["inputs"]))
        close(extra["outputs_fn"](params), expected["outputs_fn"](params))


def test_layers_in_a_function_that_was_compiled_before_are_observed():
    graph, params = nnx.split(Net(nnx.Rngs(0)))
    apply = jax.jit(lambda params, images: ro.supply.watch(nnx.merge(graph, params))(images))

    def loss(params, batch):
        return models.cross_entropy(apply(params, batch["images"]), batch["labels"])

    expected = ro.value_and_grad(models.of_convnet, "inputs")(Net(nnx.Rngs(0)), models.IMAGES)[2]
    loss(params, models.IMAGES)
    for _ in range(2):
        _, _, extra = ro.value_and_grad(loss, "inputs")(params, models.IMAGES)
        close(jax.tree.leaves(extra["inputs"]), jax.tree.leaves(expected["inputs"]))


@pytest.mark.parametrize("need", ["outputs_loss_fn", "output_norm_gradients"])
@pytest.mark.parametrize("transform", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_outputs_inside_of_a_transformation_are_not_taken(transform, need):
    """They are of one example, or of a trace that ends before they are used."""

    def loss(w, batch):
        predict = transform(lambda x: ro.supply.outputs(jnp.tanh(x @ w)))
        return jnp.mean((predict(batch["x"]) - batch["y"]) ** 2)

    step = ro.value_and_grad(loss, need)
    with pytest.raises(ValueError, match=r"seen inside of a vmap, jit or loop only"):
        step(W, DATA)[2]["outputs_loss_fn"](DATA["y"])

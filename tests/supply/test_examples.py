"""Gradients of single examples, and what would mix them."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import riemann_optax as ro

from . import models
from .models import Net, close


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 100])
def test_per_example_gradients_are_those_of_a_loop(chunk_size):
    step = ro.value_and_grad(models.of_convnet, "per_example_gradients", chunk_size=chunk_size)
    model = Net(nnx.Rngs(0))
    _, _, extra = step(model, models.IMAGES)
    expected = []
    for index in range(models.EXAMPLES):
        one = jax.tree.map(lambda x, i=index: x[i : i + 1], models.IMAGES)
        expected.append(nnx.to_pure_dict(nnx.grad(models.of_convnet)(model, one)))
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *expected)
    close(nnx.to_pure_dict(extra["per_example_gradients"]), stacked)


def test_output_norm_gradients_are_those_of_a_loop():
    case = models.CASES["haiku"]
    params = case.make()
    _, _, extra = ro.value_and_grad(case.loss, "output_norm_gradients")(params, case.batch)

    def norm(params, x):
        return jnp.sum(models.PERCEPTRON.apply(params, x[None]) ** 2)

    expected = [jax.grad(norm)(params, x) for x in case.batch["x"]]
    close(extra["output_norm_gradients"], jax.tree.map(lambda *g: jnp.stack(g), *expected))


def test_batch_norm_is_refused_by_name_or_takes_running_statistics():
    model = models.ConvNet(nnx.Rngs(0), rate=0.0)
    with pytest.raises(
        ValueError, match=r"BatchNorm \(norm\), which mixes the examples of a batch: give value"
    ):
        ro.value_and_grad(models.of_convnet, "per_example_gradients")(model, models.IMAGES)
    step = ro.value_and_grad(models.of_convnet, "per_example_gradients", statistics="running")
    # The statistics as they are before this step.
    frozen = nnx.clone(model)
    frozen.norm.use_running_average = True
    _, _, extra = step(model, models.IMAGES)
    mean = jax.tree.map(lambda g: g.mean(0), nnx.to_pure_dict(extra["per_example_gradients"]))
    close(mean, nnx.to_pure_dict(nnx.grad(models.of_convnet)(frozen, models.IMAGES)))


class LinenNorm(linen.Module):
    by_call: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4, name="dense")(x)
        if self.by_call:
            return linen.BatchNorm(name="norm")(x, use_running_average=False)
        return linen.BatchNorm(use_running_average=False, name="norm")(x)


@pytest.mark.parametrize("by_call", [False, True])
def test_batch_norm_of_linen(by_call):
    model = LinenNorm(by_call)
    variables = model.init(jax.random.key(0), models.VECTORS["x"])

    def loss(params, batch, statistics):
        out, updated = model.apply({"params": params, **statistics}, batch["x"], mutable=["batch_stats"])
        return jnp.mean((out - 1.0) ** 2), updated

    statistics = {"batch_stats": variables["batch_stats"]}
    arguments = variables["params"], {"x": models.VECTORS["x"]}, statistics
    with pytest.raises(ValueError, match=r"BatchNorm \(norm\), which mixes"):
        ro.value_and_grad(loss, "per_example_gradients", has_aux=True)(*arguments)
    step = ro.value_and_grad(loss, "per_example_gradients", has_aux=True, statistics="running")
    (_, updated), _, extra = step(*arguments)
    assert updated["batch_stats"]["norm"]["mean"].any()

    def frozen(params, x):
        dense, norm = params["dense"], params["norm"]
        out = (x @ dense["kernel"] + dense["bias"]) / jnp.sqrt(1 + 1e-5) * norm["scale"] + norm["bias"]
        return jnp.mean((out - 1.0) ** 2)

    expected = [jax.grad(frozen)(variables["params"], x) for x in models.VECTORS["x"]]
    close(extra["per_example_gradients"], jax.tree.map(lambda *g: jnp.stack(g), *expected))


def test_batch_norm_of_haiku():
    network = hk.without_apply_rng(
        hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), is_training=True))
    )
    params, state = network.init(jax.random.key(0), models.VECTORS["x"])

    def loss(params, batch, state):
        return jnp.mean(network.apply(params, state, batch["x"])[0] ** 2)

    with pytest.raises(ValueError, match=r"BatchNorm \(batch_norm\), which mixes"):
        ro.value_and_grad(loss, "per_example_gradients")(params, {"x": models.VECTORS["x"]}, state)


def test_a_single_example_has_a_mask_of_its_own():
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.weight = nnx.Param(jnp.ones(40))
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(x * self.weight[...])

    def loss(model, batch):
        return jnp.sum(model(batch["x"])) / batch["x"].shape[0]

    batch = {"x": jnp.ones([3, 40])}
    _, _, extra = ro.value_and_grad(loss, "per_example_gradients")(Dropped(nnx.Rngs(0)), batch)
    masks = np.asarray(extra["per_example_gradients"]["weight"])
    assert set(np.unique(masks)) == {0.0, 2.0}
    assert len({row.tobytes() for row in masks}) == 3


def test_a_loss_that_names_the_batchs_axis_of_the_mesh_is_told_that_one_example_has_none():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    spec = jax.sharding.PartitionSpec
    with jax.set_mesh(mesh):
        batch = jax.device_put(jnp.ones([4, 3]), spec("data"))
        step = ro.value_and_grad(
            lambda w, x: jnp.mean(jnp.dot(x, w, out_sharding=spec("data", None)) ** 2),
            needs="per_example_gradients",
        )
        with pytest.raises(ValueError, match=r"^the gradient of a single example: .* must not name it"):
            jax.jit(step)(jnp.ones([3, 2]), batch)

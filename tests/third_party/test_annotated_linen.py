"""Linen models whose parameters are boxes with names of axes, and stay in their boxes in training."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen
from flax.core import meta
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from . import training

LOGICAL = (("inputs", None), ("features", "model"))
each_rule = pytest.mark.parametrize("rule", training.RULES)


class Network(linen.Module):
    """The common network with kernels and biases in boxes."""

    logical: bool = False

    @linen.compact
    def __call__(self, inputs):
        features, other = ("features", "inputs") if self.logical else ("model", None)
        hidden = jnp.tanh(self.layer("first", (other, features))(inputs))
        return self.layer("second", (features, other))(hidden)

    def layer(self, name, names):
        annotate = linen.with_logical_partitioning if self.logical else linen.with_partitioning
        values = training.host_weights()[name]
        return linen.Dense(
            values["bias"].size,
            kernel_init=annotate(lambda *_: jnp.asarray(values["kernel"]), names),
            bias_init=annotate(lambda *_: jnp.asarray(values["bias"]), names[1:]),
            name=name,
        )


def create(model, rule, mesh):
    """Return a training state made under jit where its own annotations put it, and those placements."""

    def make():
        params = model.init(jax.random.key(0), training.INPUTS[:1])["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=training.RULES[rule](training.RATE))

    abstract = jax.eval_shape(make)
    if model.logical:
        shardings = linen.logical_to_mesh_sharding(linen.get_partition_spec(abstract), mesh, LOGICAL)
    else:
        shardings = linen.get_sharding(abstract, mesh)
    return jax.jit(make, out_shardings=shardings)(), shardings


def train(state, shardings, mesh):
    spread = NamedSharding(mesh, P("data", None))

    def step(state, inputs, targets):
        def loss(params):
            return training.mean_square(state.apply_fn({"params": params}, inputs), targets)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    step = jax.jit(step, in_shardings=(shardings, spread, spread), out_shardings=shardings, donate_argnums=0)
    inputs, targets = training.spread_data(mesh)
    for _ in range(training.STEPS):
        state = step(state, inputs, targets)
    return state


@each_rule
@pytest.mark.parametrize("logical", [False, True], ids=["axes of the mesh", "logical axes"])
def test_boxes_give_the_placement_of_the_whole_training_state(logical, rule):
    """``get_sharding`` of the abstract state is what the state is created with under jit."""
    mesh = training.make_mesh()
    with jax.set_mesh(mesh), linen.logical_axis_rules(LOGICAL):
        state, shardings = create(Network(logical), rule, mesh)
        training.assert_placed(meta.unbox(state.params), mesh)
        training.assert_momentum_is_placed(state.opt_state, mesh)
        state = train(state, shardings, mesh)
    training.assert_trained_as_plainly(meta.unbox(state.params), rule)


@each_rule
def test_boxes_without_a_mesh(rule):
    """The same model on one device: the boxes are still there, and the state keeps its structure."""
    model = Network()
    params = model.init(jax.random.key(0), training.INPUTS[:1])["params"]
    assert any(isinstance(leaf, meta.AxisMetadata) for leaf in jax.tree.leaves(params, is_leaf=is_box))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=training.RULES[rule](training.RATE))
    before = jax.tree.structure(state.opt_state)

    @jax.jit
    def step(state):
        gradients = jax.grad(lambda p: training.mean_square(model.apply({"params": p}, training.INPUTS)))(
            state.params
        )
        return state.apply_gradients(grads=gradients)

    for _ in range(training.STEPS):
        state = step(state)
    assert jax.tree.structure(state.opt_state) == before
    training.assert_trained_as_plainly(meta.unbox(state.params), rule)


def is_box(node):
    return isinstance(node, meta.AxisMetadata)


@each_rule
def test_eager_state_on_an_explicit_mesh(rule):
    """On an Explicit mesh placements follow from the weights, boxed or not."""
    mesh = training.make_mesh(AxisType.Explicit)
    boxed = jax.eval_shape(Network().init, jax.random.key(0), training.INPUTS[:1])["params"]
    with jax.set_mesh(mesh):
        values = jax.tree.map(
            lambda value, place: jax.device_put(value, NamedSharding(mesh, place)),
            training.host_weights(),
            training.PLACES,
        )
        params = jax.tree.map(lambda box, value: box.replace_boxed(value), boxed, values, is_leaf=is_box)
        inputs, targets = training.spread_data(mesh)

        def loss(params):
            params = meta.unbox(params)
            hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"])
            outputs = jnp.matmul(hidden, params["second"]["kernel"], out_sharding=P("data", None))
            return training.mean_square(outputs + params["second"]["bias"], targets)

        params, _ = training.train_plainly(training.RULES[rule](training.RATE), params, loss)
    training.assert_trained_as_plainly(meta.unbox(params), rule)

"""NNX models whose variables carry sharding annotations, as libraries for large models build them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import riemann_optax as ro

from . import training

MESHES = [AxisType.Auto, AxisType.Explicit]
LOGICAL = (("inputs", None), ("features", "model"))
each_rule = pytest.mark.parametrize("rule", training.RULES)
each_mesh = pytest.mark.parametrize("axis_type", MESHES, ids=lambda axis_type: axis_type.name.lower())


class Network(nnx.Module):
    """The common network; ``annotate(initializer, names)`` puts the annotation on."""

    def __init__(self, annotate, logical=False):
        features, inputs = ("features", "inputs") if logical else ("model", None)
        self.first = self.layer("first", annotate, (inputs, features))
        self.second = self.layer("second", annotate, (features, inputs))

    @staticmethod
    def layer(name, annotate, names):
        values = training.host_weights()[name]

        def constant(value):
            return lambda key, shape, dtype: jnp.zeros(shape, dtype) + value  # a sum lies on the mesh

        return nnx.Linear(
            *values["kernel"].shape,
            kernel_init=annotate(constant(values["kernel"]), names),
            bias_init=annotate(constant(values["bias"]), names[1:]),
            rngs=nnx.Rngs(0),
        )

    def __call__(self, inputs):
        hidden = jnp.tanh(self.first(inputs))
        if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
            return self.second(hidden)
        # On an Explicit mesh a product over a sharded axis has to say where its result lies.
        outputs = jnp.matmul(hidden, self.second.kernel[...], out_sharding=P("data", None))
        return outputs + self.second.bias[...]


def as_pure(tree):
    """Return a tree without Variables; the function has another name in older releases."""
    return getattr(nnx, "as_pure", getattr(nnx, "pure", None))(tree)


def pure(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def train(model, optimizer, mesh, steps=training.STEPS):
    """Train on a batch that is spread over the devices."""
    inputs, targets = training.spread_data(mesh)

    @nnx.jit
    def step(model, optimizer, inputs, targets):
        gradients = nnx.grad(lambda m: training.mean_square(m(inputs), targets))(model)
        optimizer.update(model, gradients)

    for _ in range(steps):
        step(model, optimizer, inputs, targets)


@each_rule
@each_mesh
def test_annotated_model_trains_as_one_without_annotations(axis_type, rule):
    mesh = training.make_mesh(axis_type)
    with jax.set_mesh(mesh):
        model = Network(nnx.with_partitioning)
        optimizer = nnx.Optimizer(model, training.RULES[rule](training.RATE), wrt=nnx.Param)
        before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.state(optimizer))
        train(model, optimizer, mesh)
    training.assert_placed(pure(model), mesh)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.state(optimizer)) == before
    training.assert_trained_as_plainly(pure(model), rule)


@pytest.mark.parametrize("way", ["context", "metadata", "mesh in metadata"])
@each_mesh
def test_logical_axis_names(axis_type, way):
    """The names stand for axes of the mesh by rules of the context, or by rules kept with each variable."""
    mesh = training.make_mesh(axis_type)
    options = {
        "context": {},
        "metadata": {"sharding_rules": LOGICAL},
        "mesh in metadata": {"sharding_rules": LOGICAL, "mesh": mesh},
    }[way]

    def annotate(initializer, names):
        return nnx.with_partitioning(initializer, names, **options)

    rules = nnx.logical_axis_rules(LOGICAL) if way == "context" else contextlib.nullcontext()
    with jax.set_mesh(mesh), rules:
        model = Network(annotate, logical=True)
        optimizer = nnx.Optimizer(model, training.RULES["in_eigenbasis"](training.RATE), wrt=nnx.Param)
        train(model, optimizer, mesh)
    training.assert_placed(pure(model), mesh)
    training.assert_trained_as_plainly(pure(model), "in_eigenbasis")


@each_rule
@each_mesh
def test_created_under_jit_with_constraints_from_the_annotations(axis_type, rule):
    """The documented way for a model that fits on no single device."""
    mesh = training.make_mesh(axis_type)

    @nnx.jit
    def create():
        model = Network(nnx.with_partitioning)
        optimizer = nnx.Optimizer(model, training.RULES[rule](training.RATE), wrt=nnx.Param)
        if axis_type == AxisType.Auto:
            for part in (model, optimizer):
                state = nnx.state(part)
                nnx.update(part, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return model, optimizer

    with jax.set_mesh(mesh):
        model, optimizer = create()
        kernel = model.first.kernel[...]
        if axis_type == AxisType.Explicit and kernel.sharding.is_fully_replicated:
            pytest.skip("this release of Flax does not place what is made under jit on an Explicit mesh")
        training.assert_placed(pure(model), mesh)
        training.assert_momentum_is_placed(nnx.state(optimizer), mesh)
        train(model, optimizer, mesh)
    training.assert_trained_as_plainly(pure(model), rule)


@each_rule
@each_mesh
def test_abstract_optimizer_has_placements_that_fit(axis_type, rule):
    """A checkpoint is restored into shapes and shardings that are read off the annotations."""
    mesh = training.make_mesh(axis_type)

    def create():
        model = Network(nnx.with_partitioning)
        return nnx.Optimizer(model, training.RULES[rule](training.RATE), wrt=nnx.Param)

    _, abstract = nnx.get_abstract_model(create, mesh)
    with jax.set_mesh(mesh):
        state = nnx.state(create())
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for (path, leaf), concrete in zip(
        jax.tree_util.tree_leaves_with_path(abstract), jax.tree.leaves(state), strict=True
    ):
        assert (leaf.shape, leaf.dtype) == (concrete.shape, concrete.dtype), jax.tree_util.keystr(path)
        leaf.sharding.shard_shape(leaf.shape)  # raises where the mesh does not divide the array


@each_rule
def test_an_annotation_of_the_optimiser_state_is_respected(rule):
    """``optimizer_sharding`` places what mirrors a weight elsewhere than the weight itself."""

    def annotate(initializer, names):
        if len(names) < 2:
            return initializer
        return nnx.with_partitioning(initializer, names, optimizer_sharding=("data", names[1]))

    def kernels(optimizer):
        return [leaf for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.shape == (8, 16)]

    mesh = training.make_mesh()
    wanted = NamedSharding(mesh, P("data", "model"))
    with jax.set_mesh(mesh):
        model = Network(annotate)
        control = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
        if not all(leaf.sharding.is_equivalent_to(wanted, 2) for leaf in kernels(control)):
            pytest.skip("this release of Flax knows no optimizer_sharding")
        optimizer = nnx.Optimizer(model, training.RULES[rule](training.RATE), wrt=nnx.Param)
        assert all(leaf.sharding.is_equivalent_to(wanted, 2) for leaf in kernels(optimizer))
        train(model, optimizer, mesh)
    training.assert_trained_as_plainly(pure(model), rule)


@each_mesh
def test_kinds_of_an_annotated_model(axis_type):
    """A rule for matrices and another for biases: what is masked has no array and needs no placement."""

    def make():
        return ro.partition_by_kind(training.factored_sgd(training.RATE), bias=optax.adam(training.RATE))

    mesh = training.make_mesh(axis_type)
    with jax.set_mesh(mesh):
        model = Network(nnx.with_partitioning)
        optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)
        train(model, optimizer, mesh)
    expected, _ = training.train_plainly(make())
    training.assert_moved_alike(pure(model), expected)


@pytest.mark.parametrize("make", [optax.adam, optax.sgd], ids=["adam", "sgd"])
@each_mesh
def test_the_programs_of_this_file_run_with_optax(axis_type, make):
    """The control: what fails above does not fail by the way the model is written."""
    mesh = training.make_mesh(axis_type)
    with jax.set_mesh(mesh):
        model = Network(nnx.with_partitioning)
        optimizer = nnx.Optimizer(model, make(training.RATE), wrt=nnx.Param)
        train(model, optimizer, mesh)
    expected, _ = training.train_plainly(make(training.RATE))
    training.assert_moved_alike(pure(model), expected)


def test_metric_of_an_annotated_model():
    """metric_at reads E through nnx.Optimizer; a bias under the default phi has its own gradient's size."""
    mesh = training.make_mesh()
    tx = ro.riemannian_sgd(0.1, momentum=None, phi=ro.phi.activity(decay=0.0), alpha=3.0, conformal=None)
    with jax.set_mesh(mesh):
        model = Network(nnx.with_partitioning)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        gradients = nnx.grad(lambda m: training.mean_square(m(training.INPUTS)))(model)
        metric = ro.metric_at(tx, *map(as_pure, (gradients, optimizer.opt_state, nnx.state(model))))
    plain = jax.grad(training.loss)(training.weights())
    found = nnx.to_pure_dict(metric) if isinstance(metric, nnx.State) else metric
    jax.tree.map(lambda e, g: np.testing.assert_allclose(e, 1 + 3 * np.abs(g), rtol=1e-5), found, plain)

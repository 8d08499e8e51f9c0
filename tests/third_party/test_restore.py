"""A sharded ``nnx.Optimizer`` restored by Orbax into abstract state, as fine-tuning libraries do."""

import jax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from . import training
from .test_annotated_nnx import Network, pure, train

each_rule = pytest.mark.parametrize("rule", training.RULES)


def create(rule, annotate=nnx.with_partitioning):
    model = Network(annotate)
    return model, nnx.Optimizer(model, training.RULES[rule](training.RATE), wrt=nnx.Param)


def abstract_like(state):
    """Shapes and placements of a live state, as checkpoint managers take them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def abstract_from_annotations(rule, mesh):
    """The same without an array: from the annotations alone."""
    model, optimizer = nnx.eval_shape(lambda: create(rule))
    states = nnx.state(model), nnx.state(optimizer)
    shardings = (nnx.get_named_sharding(state, mesh) for state in states)
    return tuple(
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, sharding)
        for state, sharding in zip(states, shardings, strict=True)
    )


def save(folder, model, optimizer):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "model", nnx.state(model))
        checkpointer.save(folder / "optimizer", nnx.state(optimizer))


def restore(folder, targets):
    with ocp.StandardCheckpointer() as checkpointer:
        paths = folder / "model", folder / "optimizer"
        return [checkpointer.restore(*pair) for pair in zip(paths, targets, strict=True)]


def assert_same_types(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), jax.tree_util.keystr(path)


@each_rule
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("target", ["live", "annotations"])
def test_restored_run_goes_on_to_the_same_weights(tmp_path, target, axis_type, rule):
    mesh = training.make_mesh(axis_type)
    with jax.set_mesh(mesh):
        model, optimizer = create(rule)
        train(model, optimizer, mesh, steps=3)
        save(tmp_path, model, optimizer)
        saved = nnx.state(optimizer)

        model, optimizer = create(rule)
        if target == "live":
            targets = abstract_like(nnx.state(model)), abstract_like(nnx.state(optimizer))
        else:
            targets = abstract_from_annotations(rule, mesh)
        model_state, optimizer_state = restore(tmp_path, targets)
        assert_same_types(optimizer_state, saved)
        nnx.update(model, model_state)
        nnx.update(optimizer, optimizer_state)
        train(model, optimizer, mesh, steps=training.STEPS - 3)
    training.assert_trained_as_plainly(pure(model), rule)


@each_rule
def test_without_annotations(tmp_path, rule):
    """The control: the same program on a model that says nothing of placements."""
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def plain(initializer, names):
        return initializer

    with jax.set_mesh(mesh):
        model, optimizer = create(rule, plain)
        train(model, optimizer, mesh, steps=3)
        save(tmp_path, model, optimizer)
        model, optimizer = create(rule, plain)
        targets = abstract_like(nnx.state(model)), abstract_like(nnx.state(optimizer))
        model_state, optimizer_state = restore(tmp_path, targets)
        nnx.update(model, model_state)
        nnx.update(optimizer, optimizer_state)
        train(model, optimizer, mesh, steps=training.STEPS - 3)
    training.assert_trained_as_plainly(pure(model), rule)


@each_rule
def test_onto_another_mesh(tmp_path, rule):
    """Saved on (2, 4), restored on (4, 2): every array of the state has a placement on both."""
    first = training.make_mesh()
    second = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(first):
        model, optimizer = create(rule)
        train(model, optimizer, first, steps=3)
        save(tmp_path, model, optimizer)
    with jax.set_mesh(second):
        model, optimizer = create(rule)
        model_state, optimizer_state = restore(
            tmp_path, (abstract_like(nnx.state(model)), abstract_like(nnx.state(optimizer)))
        )
        nnx.update(model, model_state)
        nnx.update(optimizer, optimizer_state)
        train(model, optimizer, second, steps=training.STEPS - 3)
        kernel = model.first.kernel[...]
        assert kernel.sharding.is_equivalent_to(NamedSharding(second, P(None, "model")), 2)
    training.assert_trained_as_plainly(pure(model), rule)

"""The manifest beside a checkpoint, and Orbax with every state of the library."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import riemann_optax as ro

from ..contract.problem import params, readable
from ..contract.registry import ENTRIES

PARAMS = {"w": jnp.zeros([3, 2]), "b": jnp.zeros(2)}


def through_json(manifest):
    return json.loads(json.dumps(manifest))


def otherwise(leaf):
    """A value that no init makes, so that a field that is left out is noticed; keys stay."""
    return leaf if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf + leaf.dtype.type(1)


@pytest.fixture(scope="module")
def states():
    """The first state of every transformation, by its name in the registry."""
    weights = params()
    return {name: entry.build().init(weights) for name, entry in ENTRIES.items()}


def test_no_state_holds_an_array_without_elements(states):
    for name, state in states.items():
        assert all(leaf.size for leaf in jax.tree.leaves(state)), name


def test_orbax_saves_and_restores_every_state(states, tmp_path):
    states = jax.tree.map(otherwise, states)
    with ocp.CheckpointManager(tmp_path) as manager:
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(states), manifest=ocp.args.JsonSave(ro.checkpoint.manifest(states))
        )
        manager.save(1, args=items)
        manager.wait_until_finished()
        targets = {name: ro.checkpoint.target(ENTRIES[name].build(), params()) for name in states}
        manifest = manager.restore(1, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
        ro.checkpoint.check(manifest, targets)
        restore = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
        restored = manager.restore(1, args=restore)["state"]
    assert jax.tree.structure(restored) == jax.tree.structure(states)
    jax.tree.map(np.testing.assert_array_equal, readable(restored), readable(states))
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [
        leaf.dtype for leaf in jax.tree.leaves(states)
    ]


def chain(phi):
    return optax.chain(ro.compute_metric(phi), ro.scale_by_inverse_metric(), optax.trace(0.9))


def refusal(saved, tree):
    with pytest.raises(ValueError, match=r"^the checkpoint.*") as caught:
        ro.checkpoint.check(saved, tree)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_checkpoint_of_another_phi_names_the_fields():
    saved = through_json(ro.checkpoint.manifest(chain(ro.phi.activity()).init(PARAMS)))
    message = refusal(saved, chain(ro.phi.maintenance_energy()).init(PARAMS))
    assert "another phi, chain or model" in message
    assert "only in the checkpoint: [0].phi.count, [0].phi.second_moment['b'], [0].phi.sec" in message
    message = refusal(saved, chain(ro.phi.secant_curvature()).init(PARAMS))
    assert "the state [0].phi is ActivityState in the checkpoint and SecantCurvatureState here" in message
    assert re.search(r"; only here: .*\[0\].phi.previous_params\['b'\]", message)


def test_another_phi_whose_arrays_look_the_same_is_told_by_its_type():
    arrays = []
    for phi in (ro.phi.hutchinson_curvature(), ro.phi.gauss_newton_curvature()):
        saved = through_json(ro.checkpoint.manifest(chain(phi).init(PARAMS)))
        arrays.append(saved["arrays"])
    assert arrays[0] == arrays[1]
    message = refusal(saved, chain(ro.phi.hutchinson_curvature()).init(PARAMS))
    assert (
        "[0].phi is GaussNewtonCurvatureState in the checkpoint and HutchinsonCurvatureState here" in message
    )


def test_another_shape_or_dtype_is_named():
    tx = chain(ro.phi.activity())
    saved = through_json(ro.checkpoint.manifest(tx.init(PARAMS)))
    wider = tx.init(PARAMS | {"w": jnp.zeros([4, 2])})
    assert "[0].phi.second_moment['w'] is float32[3,2] in the checkpoint and float32[4,2] h" in refusal(
        saved, wider
    )
    narrow = chain(ro.phi.activity(state_dtype=jnp.bfloat16)).init(PARAMS)
    assert "second_moment['b'] is float32[2] in the checkpoint and bfloat16[2] here" in refusal(saved, narrow)


def test_a_scalar_written_without_64_bit_types_is_restored_with_them(tmp_path):
    phi = ro.phi.rwalk(memory=0.7)
    weights = {"w": jnp.ones([3, 2], jnp.float32)}
    saved = phi.init(weights)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
    with jax.enable_x64(True):
        target = ro.checkpoint.target(phi, weights)
        assert target.memory.dtype == jnp.float64
        ro.checkpoint.check(through_json(ro.checkpoint.manifest(saved)), target)
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(tmp_path / "state", target)
        assert restored.memory.dtype == jnp.float64
        np.testing.assert_allclose(restored.memory, 0.7, rtol=1e-7)
        _, updated = phi.update(weights, restored, weights)
        assert float(updated.memory) == 0.7  # an update takes it from the transformation


def test_many_differences_are_counted_and_not_listed():
    many = {f"layer {number}": jnp.zeros(1) for number in range(100)}
    message = refusal(through_json(ro.checkpoint.manifest(many)), {"w": jnp.zeros(1)})
    assert message.count("layer") == 8
    assert "and 92 more; only here: ['w']" in message


@pytest.mark.parametrize("version", [0, ro.checkpoint.FORMAT_VERSION + 1, "1"])
def test_another_format_is_refused_in_words(version):
    saved = through_json(ro.checkpoint.manifest(PARAMS)) | {"format": version, "release": "0.0.9"}
    message = refusal(saved, PARAMS)
    assert f"has format {version} of riemann_optax's state, written by release 0.0.9" in message
    assert f"reads formats 1 to {ro.checkpoint.FORMAT_VERSION}" in message


def test_an_older_format_is_refused_only_for_what_changed_since():
    """Format 2 gave track_energy the sum of the maintenance, and scaled the two terms of rwalk."""
    cases = {
        chain(ro.phi.activity()): None,
        ro.track_energy(): "TrackEnergyState",
        ro.phi.rwalk(): "RWalkState",
    }
    for tx, changed in cases.items():
        state = tx.init(PARAMS)
        saved = through_json(ro.checkpoint.manifest(state)) | {"format": 1, "release": "0.0.9"}
        if changed is None:
            ro.checkpoint.check(saved, state)
        else:
            assert f"written by release 0.0.9, and {changed} changed since" in refusal(saved, state)


@pytest.mark.parametrize(
    "saved", [None, [], {}, {"format": 1}, {"format": 1, "release": "", "states": {}, "arrays": None}]
)
def test_a_damaged_manifest_is_refused(saved):
    assert "manifest is damaged" in refusal(saved, PARAMS)


def test_the_target_lies_where_the_parameters_do():
    """Nothing is allocated: abstract parameters are enough."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    abstract = {"w": jax.ShapeDtypeStruct((16, 2), jnp.float32, sharding=where)}
    target = ro.checkpoint.target(chain(ro.phi.activity()), abstract)
    leaves = jax.tree.leaves(target)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert [leaf.sharding.is_equivalent_to(where, 2) for leaf in leaves if leaf.shape] == [True, True]


def nnx_optimizer(tx):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def test_the_state_of_an_nnx_optimizer_is_told_as_the_state_it_holds():
    """NNX keeps each array in a variable: the paths of its manifest once differed from those of a target."""
    tx = ro.riemannian_adamw(0.01)
    model, optimizer = nnx_optimizer(tx)
    saved = through_json(ro.checkpoint.manifest(optimizer.opt_state))
    plain = ro.checkpoint.manifest(tx.init(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    assert saved == plain
    ro.checkpoint.check(saved, ro.checkpoint.target(tx, nnx.state(model, nnx.Param)))
    other = nnx_optimizer(ro.riemannian_adamw(0.01, phi=ro.phi.maintenance_energy()))[1]
    with pytest.raises(ValueError, match="another phi, chain or model"):
        ro.checkpoint.check(saved, other.opt_state)
    in_boxes = saved | {"arrays": {f"{path}.value": kind for path, kind in saved["arrays"].items()}}
    ro.checkpoint.check(in_boxes, optimizer.opt_state)  # as it was written before


def test_a_field_called_value_is_no_box():
    """The state of Optax's line search has one."""
    state = optax.scale_by_backtracking_linesearch(5).init(PARAMS)
    assert ".value" in ro.checkpoint.manifest(state)["arrays"]
    ro.checkpoint.check(through_json(ro.checkpoint.manifest(state)), state)


def test_what_is_no_array_is_refused_by_its_place():
    with pytest.raises(TypeError, match=r"holds a str at leaf \['name'\], which is no array"):
        ro.checkpoint.manifest({"name": "adam", "count": jnp.zeros([])})


def test_what_is_given_in_the_wrong_order_is_said():
    tx = ro.riemannian_adamw(0.1)
    state = tx.init(PARAMS)
    with pytest.raises(TypeError, match="give check the manifest first, and then the state"):
        ro.checkpoint.check(state, ro.checkpoint.manifest(state))
    with pytest.raises(TypeError, match=r"tx must be an optax\.GradientTransformation"):
        ro.checkpoint.target(PARAMS, tx)

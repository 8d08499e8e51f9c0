"""The state of one chain put into another: a run goes on to the same bits, and the report names the rest."""

from contextlib import nullcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax.checkpoint import transplant

from .. import as_users
from ..contract.problem import gradients, params, readable
from ..contract.registry import ENTRIES

STEPS = 3


def advance(tx, weights, state, first, steps=STEPS):
    """The weights after some steps, whose gradients depend on the weights and on the number of the step."""
    update = as_users.jit(tx.update)
    for step in range(first, first + steps):
        updates, state = update(gradients(weights, step), state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights, state


def adamw(**arguments):
    return ro.riemannian_adamw(0.01, **arguments)


def last(make):
    return lambda: optax.chain(adamw(), make())


# A chain, and the same updates by another one.
PAIRS = {
    "a recorder of E": (adamw, lambda: adamw(record=True)),
    "a recorder of energy": (adamw, last(ro.track_energy)),
    "a guard around it": (adamw, lambda: ro.skip_nonfinite(adamw())),
    "a clip that never clips": (adamw, lambda: optax.chain(optax.adaptive_grad_clip(1e9), adamw())),
    "all of them": (
        adamw,
        lambda: ro.skip_nonfinite(optax.chain(adamw(record=True), optax.chain(ro.track_energy()))),
    ),
    "a rate that can be set": (adamw, lambda: optax.inject_hyperparams(ro.riemannian_adamw)(0.01)),
}


@pytest.mark.parametrize("way", ["gained", "lost"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_run_goes_on_to_the_same_bits(name, way):
    before, after = (make() for make in (PAIRS[name] if way == "gained" else reversed(PAIRS[name])))
    weights, state = advance(before, params(), before.init(params()), 0)
    moved, report = transplant(state, after, weights)
    expected, _ = advance(before, weights, state, STEPS)
    got, _ = advance(after, weights, moved, STEPS)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    changed, other = (
        (report.begun_anew, report.dropped) if way == "gained" else (report.dropped, report.begun_anew)
    )
    assert not other
    assert len(jax.tree.leaves(state)) == len(report.kept) + len(report.dropped)
    assert len(jax.tree.leaves(moved)) == len(report.kept) + len(report.begun_anew)
    assert bool(changed) == (name != "a clip that never clips")


@pytest.mark.parametrize("name", ENTRIES)
def test_into_itself_nothing_changes(name):
    tx = ENTRIES[name].build()
    # A value that no init makes; a record's hashes of names have to stay, and keys are no numbers.
    same = (jax.dtypes.prng_key, np.uint32)
    state = jax.tree.map(
        lambda x: x if any(jnp.issubdtype(x.dtype, kind) for kind in same) else x + x.dtype.type(1),
        tx.init(params()),
    )
    moved, report = transplant(state, tx, params())
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, readable(moved), readable(state))
    assert not any((report.begun_anew, report.dropped, report.cast, report.grown))


def test_another_schedule_goes_on_from_the_count():
    old = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(optax.constant_schedule(1.0)))
    new = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: 10.0 * count))
    weights, state = advance(old, params(), old.init(params()), 0)
    moved, report = transplant(state, new, weights)
    assert "[1].count" in report.kept
    step = gradients(weights, STEPS)
    unscaled, _ = old.update(step, state, weights)
    scaled, _ = new.update(step, moved, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 10 * STEPS * b, rtol=1e-6), scaled, unscaled)
    _, report = transplant(state, new, weights, anew=["[1]"])
    assert report.begun_anew == {"[1].count": "asked for"}
    assert report.dropped == ("[1].count",)


def test_a_constant_rate_that_becomes_a_schedule_is_reported():
    _, report = transplant(
        optax.adam(0.1).init(params()), optax.adam(optax.cosine_decay_schedule(0.1, 9)), params()
    )
    assert report.begun_anew == {"[1].count": "new"}
    assert str(report).splitlines()[3] == "begun anew: [1].count (new)"


def test_another_phi_begins_anew_and_momentum_stays():
    old, new = (
        ro.riemannian_sgd(0.1, phi=phi, momentum=0.9)
        for phi in (ro.phi.activity(), ro.phi.secant_curvature())
    )
    _, state = advance(old, params(), old.init(params()), 0)
    moved, report = transplant(state, new, params())
    assert report.dropped == (
        "[0].phi.count",
        "[0].phi.second_moment['bias']",
        "[0].phi.second_moment['kernel']",
    )
    assert all(path.startswith("[0].phi") for path in report.begun_anew)
    assert set(report.kept) == {"[0].count", "[2].trace['bias']", "[2].trace['kernel']"}
    jax.tree.map(np.testing.assert_array_equal, moved[2], state[2])
    jax.tree.map(np.testing.assert_array_equal, moved[0].phi, new.init(params())[0].phi)


def two_means(*decays):
    return optax.chain(*[optax.ema(decay) for decay in decays])


def test_what_could_be_either_is_refused_until_it_is_said():
    state = optax.tree.map_params(two_means(0.9, 0.5), lambda x: x, two_means(0.9, 0.5).init(params()))
    state = (state[0], state[1]._replace(count=jnp.asarray(7)))
    with pytest.raises(
        ValueError, match=r"\[0\] \(EmaState\) and \[1\] \(EmaState\), and here there is \[0\]"
    ):
        transplant(state, two_means(0.5), params())
    moved, report = transplant(state, two_means(0.5), params(), places={"[0]": "[1]"})
    assert int(moved[0].count) == 7
    assert report.kept["[0].count"] == "[1].count"
    assert all(path.startswith("[0]") for path in report.dropped)


def test_neighbours_tell_which_of_two_it_is():
    old = optax.chain(optax.ema(0.9), optax.scale_by_adam(), optax.ema(0.5))
    state = old.init(params())
    state = (*state[:2], state[2]._replace(count=jnp.asarray(7)))
    moved, _ = transplant(state, optax.chain(optax.scale_by_adam(), optax.ema(0.5)), params())
    assert int(moved[1].count) == 7


def test_a_changed_order_is_refused():
    state = optax.chain(optax.ema(0.9), optax.scale_by_adam()).init(params())
    with pytest.raises(ValueError, match="the order of the states has changed"):
        transplant(state, optax.chain(optax.scale_by_adam(), optax.ema(0.9)), params())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anew": ["[5]"]}, r"anew names '\[5\]'"),
        ({"places": {"[5]": "[0]"}}, r"places names '\[5\]', and here no state"),
        ({"places": {"[0]": "[5]"}}, r"places names '\[5\]', and in the old state no"),
        ({"places": {"[0]": "[1]"}}, r"\[0\] \(ScaleByAdamState\) the place of \[1\] \(EmaState\)"),
    ],
)
def test_paths_that_are_not_there_are_refused(arguments, message):
    tx = optax.chain(optax.scale_by_adam(), optax.ema(0.9))
    with pytest.raises(ValueError, match=message):
        transplant(tx.init(params()), tx, params(), **arguments)


def test_groups_are_told_by_their_labels():
    def groups(first, second):
        labels = {"kernel": "matrices", "bias": "vectors"}
        return optax.partition({"matrices": first, "vectors": second}, labels)

    old = groups(optax.scale_by_adam(), optax.sgd(0.1))
    _, report = transplant(old.init(params()), groups(optax.sgd(0.1), optax.scale_by_adam()), params())
    assert not report.kept
    assert len(report.dropped) == len(report.begun_anew) == 3


def test_a_record_of_other_arrays_begins_anew():
    tx = ro.riemannian_sgd(0.1, record=True)
    renamed = {"offset": params()["bias"], "kernel": params()["kernel"]}
    _, report = transplant(tx.init(params()), tx, renamed)
    assert report.begun_anew["[1].leaf_ids"] == "a record of other arrays"
    assert report.begun_anew["[0].phi.second_moment['offset']"] == "new"
    assert "[0].phi.second_moment['kernel']" in report.kept


def test_what_an_eigenbasis_turns_begins_anew():
    plain, turned = (ro.riemannian_adamw(0.01), ro.in_eigenbasis(ro.riemannian_adamw(0.01), sides="both"))
    for old, new in ((plain, turned), (turned, plain)):
        _, state = advance(old, params(), old.init(params()), 0)
        _, report = transplant(state, new, params())
        reasons = {path: reason for path, reason in report.begun_anew.items() if "kernel" in path}
        assert any(path.endswith(".ema['kernel']") for path in reasons)
        assert set(reasons.values()) <= {"other coordinates", "new"}
        assert not any("kernel" in path for path in report.kept)


def test_a_state_whose_weights_are_in_other_coordinates_captures_all_of_them_anew():
    plain = ro.scale_by_metric(ro.phi.modification_energy())
    turned = ro.in_eigenbasis(plain, sides="both")
    _, state = advance(plain, params(), plain.init(params()), 0)
    moved, report = transplant(state, turned, params())
    reason = "the weights it holds are in other coordinates"
    assert (
        report.begun_anew[".inner[0].phi.count"]
        == report.begun_anew[".inner[0].phi.energy['bias']"]
        == reason
    )
    assert ".inner[0].count" in report.kept
    fresh = turned.init(params())
    _, expected = turned.update(params(), fresh, params())
    _, found = turned.update(params(), moved, params())
    jax.tree.map(np.testing.assert_array_equal, found.inner[0].phi, expected.inner[0].phi)


def test_other_sides_are_other_coordinates():
    def sides(which):
        return ro.in_eigenbasis(optax.trace(0.9), sides=which)

    _, state = advance(sides("both"), params(), sides("both").init(params()), 0)
    moved, report = transplant(state, sides("input"), params())
    assert report.begun_anew[".inner.trace['kernel']"] == "other coordinates"
    assert report.begun_anew[".left_bases['kernel']"] == "other coordinates"
    np.testing.assert_array_equal(moved.left_bases["kernel"][0], np.eye(2))


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_another_dtype_is_a_cast(narrow):
    def chain(dtype):
        phi = ro.phi.activity(state_dtype=dtype)
        return optax.chain(ro.scale_by_metric(phi), optax.trace(0.9, accumulator_dtype=dtype))

    wide = chain(jnp.float32)
    with pytest.warns(UserWarning, match="float16") if narrow == jnp.float16 else nullcontext():
        low = chain(narrow)
    _, state = advance(wide, params(), wide.init(params()), 0)
    moved, report = transplant(state, low, params())
    assert report.cast["[0][0].phi.second_moment['bias']"] == f"float32 -> {jnp.dtype(narrow).name}"
    for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(new, np.asarray(old).astype(new.dtype))
    back, report = transplant(moved, wide, params())
    assert len(report.cast) == 4
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, a.dtype)), back, moved)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_compressed_state_and_back(storage):
    weights = {"kernel": jnp.ones([4, 64])}
    plain = optax.trace(0.9)
    low = ro.low_precision_state(plain, storage)
    trace = jnp.asarray(np.random.default_rng(0).normal(size=[4, 64]), jnp.float32)
    moved, report = transplant(optax.TraceState({"kernel": trace}), low, weights)
    assert report.begun_anew == {".key": "new"}
    error = np.abs(moved.wide().trace["kernel"] - trace) / np.abs(trace)
    assert error.max() < (0.01 if storage == "bfloat16" else 0.2)
    same, _ = transplant(moved, low, weights)
    jax.tree.map(np.testing.assert_array_equal, same, moved)
    back, report = transplant(moved, plain, weights)
    assert report.dropped == (".key",)
    np.testing.assert_array_equal(back.trace["kernel"], moved.wide().trace["kernel"])


def test_arrays_of_numpy_and_those_of_an_nnx_optimizer():
    from flax import nnx

    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamw(), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    tx = adamw(record=True)
    state, report = transplant(optimizer, tx, nnx.state(model, nnx.Param))
    assert all(path.startswith("[3]") for path in report.begun_anew)
    longer = nnx.Optimizer(model, tx._replace(init=lambda _: state), wrt=nnx.Param)
    old = jax.tree.leaves(optimizer.opt_state)
    new = jax.tree.leaves((longer.opt_state[0], longer.opt_state[4:]))
    jax.tree.map(np.testing.assert_array_equal, new, old)
    plain = adamw().init(params())
    moved, _ = transplant(jax.tree.map(np.asarray, plain), adamw(), params())
    jax.tree.map(np.testing.assert_array_equal, moved, plain)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(moved))


def test_the_state_lies_where_the_parameters_lie():
    devices = jax.devices()
    assert len(devices) >= 2
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    weights = {"kernel": jnp.ones([3, 4])}
    state = adamw().init(weights)
    moved, _ = transplant(state, adamw(record=True), jax.device_put(weights, where))
    assert moved[4].ema["kernel"].sharding.is_equivalent_to(where, 2)


def test_parameters_are_needed():
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match="params must be the parameters of tx, got None"):
        ro.checkpoint.transplant(tx.init({"w": jnp.ones(2)}), tx, None)


@pytest.mark.parametrize("state", [None, "x", {"0": {"count": 3, "mu": {"w": 1.0}}}, [{"mu": [1.0]}]])
def test_what_was_restored_without_named_tuples_is_refused(state):
    """Nothing in it could be matched, and all would begin anew."""
    with pytest.raises(TypeError, match=r"restore it into riemann_optax\.checkpoint\.target"):
        transplant(state, optax.adam(0.1), {"w": jnp.ones(2)})


def test_a_transformation_in_place_of_its_state_is_refused():
    with pytest.raises(TypeError, match="transplant: state is the transformation"):
        transplant(optax.adam(0.1), optax.adam(0.1), {"w": jnp.ones(2)})


@pytest.mark.parametrize("arguments", [{"anew": "[0]"}, {"places": "[0]"}, {"tx": optax.adam}])
def test_arguments_of_other_types_are_refused(arguments):
    params = {"w": jnp.ones(2)}
    tx = optax.adam(0.1)
    with pytest.raises(TypeError, match=f"^{next(iter(arguments))} must be"):
        transplant(tx.init(params), params=params, **{"tx": tx, **arguments})


def test_a_state_without_values_is_refused():
    tx, params = optax.sgd(0.1, 0.9), {"w": jnp.ones(3)}
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"^transplant: called inside of jit or vmap"):
        jax.jit(lambda state: ro.checkpoint.transplant(state, tx, params)[0])(state)
    with pytest.raises(TypeError, match=r"^transplant: state is abstract at \[0\]\.trace\['w'\]"):
        ro.checkpoint.transplant(jax.eval_shape(tx.init, params), tx, params)
    with pytest.raises(TypeError, match=r"^params: inside of jit or vmap JAX does not tell where arrays lie"):
        jax.jit(lambda params: ro.sharding.init(tx, params))(params)


HALF = {"kernel": "on", "bias": "off"}


def frozen_half():
    return optax.partition({"on": adamw(), "off": optax.set_to_zero()}, HALF)


def started():
    weights = {"kernel": jnp.ones([4, 3]), "bias": jnp.ones(2)}
    return weights, advance_all(adamw(), weights)


def advance_all(tx, weights):
    state = tx.init(weights)
    for _ in range(STEPS):
        _, state = tx.update(weights, state, weights)
    return state


def test_a_chain_comes_into_a_partition_and_out_of_it_with_its_state():
    """The state is that of a run which was partitioned from the beginning."""
    weights, state = started()
    moved, report = transplant(state, frozen_half(), weights)
    assert not report.begun_anew
    assert all("bias" in path for path in report.dropped)
    chex.assert_trees_all_equal(moved, advance_all(frozen_half(), weights))
    back, report = transplant(moved, adamw(), weights)
    assert all("bias" in path for path in report.begun_anew)
    chex.assert_trees_all_equal(masked_to_kernel(back), masked_to_kernel(state))


def masked_to_kernel(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [leaf for path, leaf in leaves if "'bias'" not in jax.tree_util.keystr(path)]


def test_a_chain_with_a_name_keeps_its_state():
    weights, state = started()
    tx = optax.named_chain(("optimizer", adamw()), ("energy", ro.track_energy()))
    moved, report = transplant(state, tx, weights)
    chex.assert_trees_all_equal(jax.tree.leaves(moved["optimizer"]), jax.tree.leaves(state))
    assert all(path.startswith("['energy']") for path in report.begun_anew)


def test_a_place_takes_along_what_lies_in_it():
    weights, state = started()
    two = optax.partition({"on": adamw(), "off": adamw()}, HALF)
    assert not transplant(state, two, weights)[1].begun_anew  # without a place it goes to both
    moved, report = transplant(state, two, weights, places={".inner_states['on'].inner_state": ""})
    assert all(path.startswith(".inner_states['on']") for path in report.kept)
    found = jax.tree.leaves(moved.inner_states["on"])
    chex.assert_trees_all_equal(found, masked_to_kernel(state))

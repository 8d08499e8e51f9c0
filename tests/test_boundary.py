"""Task boundaries: the extra argument and the pure function do the same, wherever the state is."""

import re

import chex
import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import riemann_optax as ro

PHIS = {
    "online_ewc": lambda: ro.phi.online_ewc(memory=0.5),
    "laplace": lambda: ro.phi.laplace(examples_per_task=3),
    "synaptic_intelligence": ro.phi.synaptic_intelligence,
    "rwalk": lambda: ro.phi.rwalk(interval=2),
}
BOUNDARIES = (3, 5)
STEPS = 8


def chain(phi):
    return optax.chain(
        ro.compute_metric(phi, alpha=0.5),
        ro.add_anchored_weights(0.3, ro.anchor.task_boundary_weights(), precision="phi"),
        ro.scale_by_inverse_metric(),
        ro.add_anchored_weights(0.1, ro.anchor.task_boundary_weights()),
        optax.scale_by_learning_rate(0.1),
    )


def multi_steps(tx, every):
    steps = optax.MultiSteps(tx, every)
    return optax.GradientTransformationExtraArgs(steps.init, steps.update)


WRAPPERS = {
    "chain": lambda tx: tx,
    "inject_hyperparams": lambda tx: optax.chain(tx, optax.inject_hyperparams(optax.scale)(step_size=1.0)),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": False}),
    "partition": lambda tx: optax.partition({"ours": tx, "sgd": optax.sgd(0.1)}, {"a": "ours", "b": "sgd"}),
    "multi_steps": lambda tx: multi_steps(tx, 1),
    "skip_nonfinite": ro.skip_nonfinite,
    "in_eigenbasis": lambda tx: ro.in_eigenbasis(tx, update_every=2),
}


def start():
    return {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5, 3.0]])}


def gradients(params, step):
    return jax.tree.map(lambda w: w - jnp.sin(1.0 * step), params)


def run(tx, announce):
    """Return the last parameters and state; ``announce`` is ``"argument"``, ``"function"`` or None."""
    params, compilations = start(), 0
    state = tx.init(params)

    @jax.jit
    def update(g, state, params, boundary):
        nonlocal compilations
        compilations += 1
        extra = {"task_boundary": boundary} if announce == "argument" else {}
        return tx.update(g, state, params, **extra)

    for step in range(STEPS):
        if announce == "function" and step in BOUNDARIES:
            state = jax.jit(ro.consolidate)(state, params)
        updates, state = update(gradients(params, step), state, params, step in BOUNDARIES)
        params = optax.apply_updates(params, updates)
    assert compilations == 1
    return params, state


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
def test_the_extra_argument_and_the_pure_function_agree(phi, wrapper):
    argument, argument_state = run(wrapper(chain(phi())), "argument")
    function, function_state = run(wrapper(chain(phi())), "function")
    none, _ = run(wrapper(chain(phi())), None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), argument, function)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), argument_state, function_state
    )
    assert abs(argument["a"] - none["a"]).max() > 1e-3


def test_the_pure_function_reaches_into_the_middle_of_an_accumulation():
    params = start()
    tx = multi_steps(ro.phi.online_ewc(decay=0.0), 2)
    state = tx.init(params)
    for step in range(3):  # one update of phi and half of the next
        _, state = tx.update(gradients(params, step), state, params)
    importance = optax.tree.get(ro.consolidate(state, params), "importance")
    mean = 0.5 * (gradients(params, 0)["a"] + gradients(params, 1)["a"])
    np.testing.assert_allclose(importance["a"], mean**2, rtol=1e-6)


def test_hyper_parameters_injected_into_a_phi_reach_the_pure_function():
    make = optax.inject_hyperparams(lambda memory: ro.phi.online_ewc(memory=memory))
    phi, params = make(memory=0.25), jnp.ones(1)
    state = phi.init(params)
    for _ in range(2):
        _, state = phi.update(2 * params, state, params)
        state = ro.consolidate(state, params)
    np.testing.assert_allclose(optax.tree.get(state, "importance"), 0.25 * 4 + 4, rtol=1e-6)


def test_flax_train_state_consolidates_by_the_pure_function():
    params = start()
    tx = chain(ro.phi.online_ewc(memory=0.5))
    trained = train_state.TrainState.create(apply_fn=nn.Dense(1).apply, params=params, tx=tx)
    for step in range(STEPS):
        if step in BOUNDARIES:
            trained = trained.replace(opt_state=ro.consolidate(trained.opt_state, trained.params))
        trained = trained.apply_gradients(grads=gradients(trained.params, step))
    expected, _ = run(tx, "argument")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), trained.params, expected)


class Weights(nnx.Module):
    def __init__(self):
        self.a = nnx.Param(start()["a"])
        self.b = nnx.Param(start()["b"])


@pytest.mark.parametrize("announce", ["argument", "function"])
@pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
def test_flax_nnx_consolidates_both_ways(phi, announce):
    as_pure = getattr(nnx, "as_pure", None) or nnx.pure  # its name before Flax 0.12.7
    model = Weights()
    optimizer = nnx.Optimizer(model, chain(phi()), wrt=nnx.Param)
    for step in range(STEPS):
        if announce == "function" and step in BOUNDARIES:
            new = ro.consolidate(as_pure(optimizer.opt_state), as_pure(nnx.state(model, nnx.Param)))
            nnx.update(optimizer.opt_state, nnx.state(new))
        extra = {"task_boundary": step in BOUNDARIES} if announce == "argument" else {}
        state = nnx.state(model, nnx.Param)
        optimizer.update(model, gradients(state, step), **extra)
    expected, _ = run(chain(phi()), "argument")
    np.testing.assert_allclose(model.a[...], expected["a"], rtol=1e-5)
    np.testing.assert_allclose(model.b[...], expected["b"], rtol=1e-5)


@pytest.mark.parametrize("inside", ["jit", "eager"])
def test_flax_nnx_variables_are_taken_as_they_are_and_written_back(inside):
    """The state comes back in its variables, to be assigned; in place nothing changes."""
    tx = chain(ro.phi.online_ewc())
    model, plain = Weights(), start()
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(plain)

    def boundary(model, optimizer):
        optimizer.opt_state = nnx.data(ro.consolidate(optimizer.opt_state, nnx.state(model, nnx.Param)))

    for step in range(4):
        if step == 2:
            (nnx.jit(boundary) if inside == "jit" else boundary)(model, optimizer)
            state = ro.consolidate(state, plain)
        optimizer.update(model, gradients(nnx.state(model, nnx.Param), step))
        updates, state = tx.update(gradients(plain, step), state, plain)
        plain = optax.apply_updates(plain, updates)
    np.testing.assert_allclose(model.a[...], plain["a"], rtol=1e-6)
    importance = [float(jnp.sum(x)) for x in jax.tree.leaves(optax.tree.get(state, "importance"))]
    assert min(importance) > 0  # something has been consolidated


@pytest.mark.parametrize("wrapper", ["chain", "inject_hyperparams", "in_eigenbasis"])
@pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
def test_flax_nnx_in_one_line_inside_jit_and_between_epochs(phi, wrapper):
    """Both, and the argument of the first update of a task, reach the state that plain Optax reaches."""

    def update(model, optimizer, step, **extra):
        optimizer.update(model, gradients(nnx.state(model, nnx.Param), step), **extra)

    @nnx.jit
    def first_of_a_task(model, optimizer, step):
        ro.consolidate(optimizer, model)
        update(model, optimizer, step)

    def between(model, optimizer, step):
        before = optimizer.opt_state
        assert ro.consolidate(optimizer, model) is before
        nnx.jit(update)(model, optimizer, step)

    ends = []
    for first in (first_of_a_task, between):
        model = Weights()
        optimizer = nnx.Optimizer(model, WRAPPERS[wrapper](chain(phi())), wrt=nnx.Param)
        for step in range(STEPS):
            (first if step in BOUNDARIES else nnx.jit(update))(model, optimizer, jnp.float32(step))
        ends.append(jax.tree.leaves((nnx.state(model, nnx.Param), optimizer.opt_state)))
    for x, y in zip(*ends, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    expected, state = run(WRAPPERS[wrapper](chain(phi())), "function")
    for x, y in zip(ends[0], jax.tree.leaves((expected, state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_flax_nnx_takes_a_task_importance_and_names_what_is_missing():
    model = Weights()
    optimizer = nnx.Optimizer(model, chain(ro.phi.online_ewc(running=False)), wrt=nnx.Param)
    with pytest.raises(ValueError, match="pass task_importance to consolidate"):
        ro.consolidate(optimizer, model)
    ro.consolidate(optimizer, model, nnx.state(model, nnx.Param))
    importance = optax.tree.get(optimizer.opt_state, "importance")
    np.testing.assert_allclose(importance["a"][...], start()["a"])
    with pytest.raises(ValueError, match=r"params has no variable .* consolidate\(optimizer, model\)"):
        ro.consolidate(optimizer, start())
    plain = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match="holds no state that a task boundary changes"):
        ro.consolidate(plain, model)


def test_masked_leaves_are_left_out_of_the_extra_arguments_too():
    params = start()
    tx = optax.masked(chain(ro.phi.online_ewc(decay=0.0)), {"a": True, "b": False})
    per_example = jax.tree.map(lambda w: jnp.stack([w, 3 * w]), params)
    _, state = tx.update(params, tx.init(params), params, per_example_gradients=per_example)
    importance = optax.tree.get(ro.consolidate(state, params), "importance")
    np.testing.assert_allclose(importance["a"], 5 * params["a"] ** 2, rtol=1e-6)
    given = jax.tree.map(jnp.ones_like, params)
    importance = optax.tree.get(ro.consolidate(state, params, given), "importance")
    np.testing.assert_array_equal(importance["a"], [1.0, 1.0])


@pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
def test_nothing_is_aliased_and_buffers_can_be_donated(phi):
    tx = chain(phi())
    params = start()
    state = tx.init(params)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p), donate_argnums=(1,))
    for index in range(3):
        updates, state = step(gradients(params, index), state, params)
        state = ro.consolidate(state, params)
        kept = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
        assert not kept & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
        params = optax.apply_updates(params, updates)


def test_what_cannot_be_meant_is_an_error():
    params = start()
    with pytest.raises(ValueError, match="holds no state that a task boundary changes"):
        ro.consolidate(optax.adam(0.1).init(params), params)
    phi = ro.phi.synaptic_intelligence()
    with pytest.raises(ValueError, match="no state in opt_state takes a task_importance"):
        ro.consolidate(phi.init(params), params, params)
    ewc = ro.phi.online_ewc(running=False)
    with pytest.raises(ValueError, match="pass task_importance to consolidate"):
        ro.consolidate(ewc.init(params), params)
    with pytest.raises(ValueError, match="pass task_importance to consolidate"):
        ewc.update(params, ewc.init(params), params, task_boundary=True)
    with pytest.raises(ValueError, match=re.escape("task_importance lacks leaf ['b'] of params")):
        ro.consolidate(ro.phi.online_ewc().init(params), params, {"a": params["a"]})
    with pytest.raises(ValueError, match="task_boundary must be one boolean"):
        ewc.update(params, ewc.init(params), params, task_boundary=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="task_boundary must be one boolean"):
        ewc.update(params, ewc.init(params), params, task_boundary=1)
    mas = ro.phi.memory_aware_synapses()
    with pytest.raises(ValueError, match="needs the extra argument output_norm_gradients"):
        mas.update(params, mas.init(params), params)
    with pytest.raises(ValueError, match="per_example_gradients has shape"):
        ro.phi.online_ewc().update(params, ro.phi.online_ewc().init(params), per_example_gradients=params)
    for shape in ((5, 3), (2, 5, 2)):
        wrong = {"a": jnp.ones(shape), "b": jnp.ones((5, 1, 2))}
        with pytest.raises(ValueError, match=r"per_example_gradients has shape .* leading batch axis"):
            ro.phi.online_ewc().update(params, ro.phi.online_ewc().init(params), per_example_gradients=wrong)
    with pytest.raises(ValueError, match="interval must be an integer"):
        ro.phi.rwalk(interval=0)
    for bad in ({"memory": 1.5}, {"decay": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ro.phi.online_ewc(**bad)


def test_what_an_eigenbasis_cannot_consolidate_is_refused_by_name():
    params = {"w": jnp.ones([2, 3])}
    tx = ro.in_eigenbasis(chain(ro.phi.online_ewc()))
    with pytest.raises(ValueError, match=r"^in_eigenbasis: task_importance belongs to single weights"):
        ro.consolidate(tx.init(params), params, params)
    measured = ro.in_eigenbasis(chain(ro.phi.memory_aware_synapses(running=False)))
    state = measured.init(params)
    _, state = measured.update(params, state, params)  # no task has ended: nothing is missing
    with pytest.raises(ValueError, match=r"^in_eigenbasis: with running=False a phi needs task_importance"):
        ro.consolidate(state, params)
    plain = ro.in_eigenbasis(optax.scale_by_adam())
    with pytest.raises(ValueError, match="opt_state holds no state that a task boundary changes"):
        ro.consolidate(plain.init(params), params)


def test_an_importance_scaled_to_its_own_mean_is_warned_of():
    params = {"kernel": jnp.ones([2, 2])}
    with pytest.warns(UserWarning, match="Give conformal=None"):
        ro.riemannian_adamw(0.1, phi=ro.phi.online_ewc()).init(params)
    ro.riemannian_adamw(0.1, phi=ro.phi.online_ewc(), conformal=None).init(params)  # warnings are errors here


@pytest.mark.parametrize("eigenbasis", [False, True])
@pytest.mark.parametrize("task_boundary", [False, True])
def test_a_boundary_at_a_skipped_update_is_not_lost(eigenbasis, task_boundary):
    params = {"w": jnp.ones([2, 3])}
    inner = chain(ro.phi.online_ewc())
    tx = ro.skip_nonfinite(ro.in_eigenbasis(inner) if eigenbasis else inner)
    _, state = tx.update(params, tx.init(params), params)
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    updates, after = jax.jit(tx.update)(bad, state, params, task_boundary=task_boundary)
    np.testing.assert_array_equal(updates["w"], 0.0)
    wanted = ro.consolidate(state, params) if task_boundary else state
    for found, expected in zip(
        jax.tree.leaves(after.inner_state), jax.tree.leaves(wanted.inner_state), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("other", [{"a": jnp.ones(3)}, None, jnp.ones(4)], ids=["branch", "None", "shape"])
def test_other_parameters_than_one_array_are_named(other):
    tx, params = ro.anchor.task_boundary_weights(), jnp.ones(3)
    _, state = tx.update(params, tx.init(params), params)
    with pytest.raises(
        ValueError, match=r"^consolidate: params .* pass the parameters that are trained with"
    ):
        ro.consolidate(state, other)


def test_a_state_inside_of_flatten_is_refused_by_the_remedy():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    anchored = ro.add_anchored_weights(1.0, ro.anchor.task_boundary_weights())
    tx = optax.flatten(optax.chain(anchored, optax.sgd(0.1)))
    with pytest.raises(ValueError, match=r"^consolidate: .* inside of optax.flatten .* task_boundary=True"):
        ro.consolidate(tx.init(params), params)
    _, state = tx.update(params, tx.init(params), params, task_boundary=True)
    assert max(int(leaf) for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32) == 1


@pytest.mark.parametrize("wrap", [lambda tx: tx, ro.in_eigenbasis], ids=["plain", "in_eigenbasis"])
def test_two_boundaries_without_an_update_between_are_refused(wrap):
    """What has ended is weighed in the next update, where there is one place for the weights of one task."""
    params = {"w": jnp.ones([3, 2])}
    phi = ro.compute_metric(ro.phi.online_ewc(), alpha=0.1)
    anchored = ro.add_anchored_weights(1.0, ro.anchor.importance_weighted_weights(), precision="phi")
    tx = optax.chain(wrap(optax.chain(phi, anchored, ro.scale_by_inverse_metric())), optax.scale(-0.1))
    _, state = tx.update(params, tx.init(params), params)
    ended = ro.consolidate(state, params)
    with pytest.raises(ValueError, match=r"^consolidate: .* no update since the last boundary"):
        ro.consolidate(ended, params)
    _, state = tx.update(params, ended, params)
    ro.consolidate(state, params)


@pytest.mark.parametrize(
    "wrap", [lambda tx: tx, lambda tx: optax.masked(tx, {"a": True, "b": False})], ids=["all", "masked"]
)
@pytest.mark.parametrize(
    "make",
    [*PHIS.values(), ro.anchor.task_boundary_weights, ro.anchor.importance_weighted_weights],
    ids=[*PHIS, "task_boundary_weights", "importance_weighted_weights"],
)
def test_other_parameters_than_those_of_the_state_are_refused_by_name(make, wrap):
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones(3)}
    state = wrap(make()).init(params)
    ro.consolidate(state, params)
    for shape in ((4, 1), (), (2, 2)):
        with pytest.raises(
            ValueError, match=r"^consolidate: params has shape .* leaf \['a'\] of opt_state has"
        ):
            ro.consolidate(state, params | {"a": jnp.zeros(shape)})
    with pytest.raises(ValueError, match=r"^consolidate: params lacks leaf \['a'\]"):
        ro.consolidate(state, {"b": params["b"], "c": params["a"]})


def test_a_model_of_equinox_stands_for_its_parameters():
    model = equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params = equinox.filter(model, equinox.is_inexact_array)
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.online_ewc())
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    chex.assert_trees_all_equal(ro.consolidate(state, model), ro.consolidate(state, params))

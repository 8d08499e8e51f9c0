"""Momentum as a mean and schedule-free averaging, beside Optax."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def gradients(step, params):
    return {"w": params["w"] * jnp.array([1.0, 5.0, 0.1]) + np.random.default_rng(step).normal(size=3)}


def path(tx, steps=50):
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    state, update, found = tx.init(params), jax.jit(tx.update), []
    for step in range(steps):
        updates, state = update(gradients(step, params), state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(params["w"]))
    return np.stack(found), params, state


def test_without_nesterov_it_is_the_ema_of_optax():
    ours, theirs = (path(optax.chain(m, optax.scale(-0.1)))[0] for m in (ro.ema(0.9), optax.ema(0.9)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_with_nesterov_it_is_the_first_moment_of_nadam():
    """For gradients of plus and minus one, whose second moment is one."""
    ours, adam = ro.ema(0.9, nesterov=True), optax.scale_by_adam(0.9, 0.0, 0.0, nesterov=True)
    state, adam_state = ours.init(jnp.zeros(4)), adam.init(jnp.zeros(4))
    for step in range(20):
        signs = jnp.asarray(np.random.default_rng(step).choice([-1.0, 1.0], 4))
        mean, state = ours.update(signs, state)
        expected, adam_state = adam.update(signs, adam_state)
        np.testing.assert_allclose(mean, expected, rtol=1e-10, atol=1e-12)


def test_schedule_free_is_that_of_optax_with_equal_weights():
    ours = ro.schedule_free(optax.sgd(0.05), b1=0.9, power=0.0)
    theirs = optax.contrib.schedule_free(optax.sgd(0.05), 0.05, b1=0.9, weight_lr_power=0.0)
    (found, params, state), (expected, other, other_state) = path(ours), path(theirs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)  # the shares are float32
    average = optax.contrib.schedule_free_eval_params(other_state, other)
    np.testing.assert_allclose(ro.eval_params(state, params)["w"], average["w"], rtol=1e-5, atol=1e-7)


def test_averages_of_a_flax_model_are_those_of_its_arrays():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    bare = {name: getattr(model, name)[...] for name in ("kernel", "bias")}
    tx = ro.riemannian_schedule_free(0.1)
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(bare)
    for step in range(5):
        gradients = jax.tree.map(lambda w, step=step: w - step, bare)
        optimizer.update(model, jax.tree.map(lambda w, step=step: w - step, nnx.state(model, nnx.Param)))
        updates, state = tx.update(gradients, state, bare)
        bare = optax.apply_updates(bare, updates)
    expected = ro.eval_params(state, bare)
    assert float(jnp.abs(expected["kernel"] - bare["kernel"]).max()) > 1e-4
    own = nnx.state(model, nnx.Param)
    for found in (ro.eval_params(optimizer, model), ro.eval_params(optimizer.opt_state, own)):
        assert jax.tree.structure(found) == jax.tree.structure(own)
    mixed = ro.eval_params(optimizer.opt_state, {name: own[name][...] for name in bare})
    np.testing.assert_allclose(mixed["kernel"], expected["kernel"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"with Flax NNX, eval_params\(optimizer, model\)"):
        ro.eval_params(optimizer.opt_state, model)
    nnx.update(model, ro.eval_params(optimizer, model))
    for name, average in expected.items():
        np.testing.assert_allclose(getattr(model, name)[...], average, rtol=1e-6)


def test_frozen_weights_are_their_own_average():
    free = ro.riemannian_schedule_free(0.1)
    labels = {"frozen": "off", "head": "on"}
    tx = optax.partition({"on": free, "off": optax.set_to_zero()}, labels)
    params = {"frozen": jnp.ones(3), "head": jnp.arange(3.0)}
    alone = {"head": params["head"]}
    state, own_state = tx.init(params), free.init(alone)
    for step in range(5):
        updates, state = tx.update(jax.tree.map(lambda w, step=step: w - step, params), state, params)
        params = optax.apply_updates(params, updates)
        updates, own_state = free.update(jax.tree.map(lambda w, step=step: w - step, alone), own_state, alone)
        alone = optax.apply_updates(alone, updates)
    found = ro.eval_params(state, params)
    np.testing.assert_array_equal(found["frozen"], params["frozen"])
    np.testing.assert_allclose(found["head"], ro.eval_params(own_state, alone)["head"], rtol=1e-6)


def test_other_states_are_refused():
    params = {"w": jnp.zeros(3)}
    with pytest.raises(ValueError, match="holds no schedule-free average"):
        ro.eval_params(optax.adam(0.1).init(params), params)
    theirs = optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
    with pytest.raises(ValueError, match=r"evaluate optax\.contrib\.schedule_free_eval_params"):
        ro.eval_params(theirs.init(params), params)
    with pytest.raises(ValueError, match=r"one vector of all weights: leave out optax\.flatten"):
        ro.eval_params(optax.flatten(ro.riemannian_schedule_free(0.1)).init(params), params)
    turned = ro.in_eigenbasis(ro.riemannian_schedule_free(0.1))
    with pytest.raises(ValueError, match="averages turned weights"):
        ro.eval_params(turned.init({"w": jnp.zeros([3, 2])}), {"w": jnp.zeros([3, 2])})


def test_the_drop_in_without_momentum_at_a_large_alpha_is_adamw():
    ours = ro.riemannian_adamw(0.1, b1=0.0, phi=ro.phi.activity(decay=0.9), alpha=1e12, weight_decay=0.01)
    theirs = optax.adamw(0.1, b1=0.0, b2=0.9, weight_decay=0.01)
    np.testing.assert_allclose(path(ours)[0], path(theirs)[0], rtol=1e-6)


@pytest.mark.parametrize("changed", [0.5, 0.98])
def test_the_average_outlives_a_change_of_b1(changed):
    """``x`` stays the mean of the iterates and ``y`` lies between both, whatever b1 was before."""
    with jax.enable_x64(True):
        tx = optax.inject_hyperparams(ro.riemannian_schedule_free)(0.1, b1=0.9, warmup_steps=0)
        params = np.array([4.0, -3.0])
        state, update = tx.init(params), jax.jit(tx.update)
        rng, total, x = np.random.default_rng(0), 0.0, params
        for step in range(12):
            b1 = 0.9 if step < 6 else changed
            state.hyperparams["b1"] = jnp.asarray(b1)
            updates, state = update(params + rng.standard_normal(2), state, params)
            params = params + updates
            z, weight = np.asarray(state.inner_state.iterate), (step + 1) ** 2
            total += weight
            x = x + (z - x) * weight / total
            np.testing.assert_allclose(ro.eval_params(state, params), x, rtol=1e-5)  # b1 is kept in float32
            np.testing.assert_allclose(params, (1 - b1) * z + b1 * x, rtol=1e-5)


def test_eval_params_of_a_population_is_mapped_over_it_or_refused():
    """Each member has its own b1; the shapes would broadcast, to wrong averages."""

    def member(b1):
        tx = ro.riemannian_schedule_free(0.1, b1=b1, warmup_steps=0)
        params = {"w": jnp.zeros([4, 2])}
        state = tx.init(params)
        for _ in range(5):
            updates, state = tx.update(jax.tree.map(lambda x: x - 1.0, params), state, params)
            params = optax.apply_updates(params, updates)
        return state, params

    momenta = jnp.array([0.5, 0.95])
    population = jax.vmap(member)(momenta)
    expected = [ro.eval_params(*member(b1))["w"] for b1 in momenta]
    np.testing.assert_allclose(jax.vmap(ro.eval_params)(*population)["w"], jnp.stack(expected), rtol=1e-5)
    with pytest.raises(ValueError, match=r"that of 2 runs at once, .*: map over them, jax\.vmap"):
        ro.eval_params(*population)


def test_averaging_around_a_jump_is_refused():
    restarting = ro.restart_at_boundary(optax.sgd(0.1), ro.anchor.initial_weights())
    with pytest.raises(ValueError, match=r"schedule_free: restart_at_boundary puts weights in a place"):
        ro.schedule_free(restarting).init(jnp.ones(2))
    around = ro.restart_at_boundary(ro.schedule_free(optax.sgd(0.1)), ro.anchor.initial_weights())
    start = jnp.array([1.0, 2.0])
    _, state = around.update(jnp.ones(2), around.init(start), start, task_boundary=False)
    updates, _ = around.update(jnp.ones(2), state, start + 3, task_boundary=True)
    np.testing.assert_allclose(start + 3 + updates, start)


@pytest.mark.parametrize("jitted", [False, True])
def test_injected_numbers_may_be_donated_with_the_state(jitted):
    tx = optax.inject_hyperparams(ro.riemannian_schedule_free)(learning_rate=0.1)
    params = jnp.ones(3)
    state = tx.init(params)
    if jitted:
        state = jax.jit(tx.update)(params, state, params)[1]
    updates, _ = jax.jit(tx.update, donate_argnums=1)(params, state, params)
    assert np.isfinite(updates).all()


def test_consolidation_may_donate_a_state_with_an_injected_memory():
    def build(rate, memory):
        return ro.riemannian_sgd(rate, phi=ro.phi.online_ewc(memory=memory), conformal=None)

    tx = optax.inject_hyperparams(build)(rate=0.1, memory=0.9)
    params = jnp.ones(3)
    _, state = tx.update(params, tx.init(params), params)
    expected = jax.tree.map(np.asarray, ro.consolidate(state, params))
    consolidated = jax.jit(ro.consolidate, donate_argnums=0)(state, params)
    for found, value in zip(jax.tree.leaves(consolidated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6)


def test_the_weight_of_a_step_is_float32_whatever_the_power_is():
    with jax.enable_x64(True):
        params = jnp.ones(2, jnp.float64)
        tx = ro.schedule_free(optax.sgd(0.1), power=np.float64(2))
        state = tx.init(params)
        new = tx.update(params, state, params)[1]
        assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [
            leaf.dtype for leaf in jax.tree.leaves(state)
        ]


def average_after(tx, steps):
    """Train a layer of bfloat16 weights and return the loss of the weights, and that of their average."""
    inputs = jax.random.normal(jax.random.key(0), (64, 8))
    wanted = inputs @ jax.random.normal(jax.random.key(1), (8, 4))

    def loss(params):
        return jnp.mean((inputs @ params["kernel"].astype(jnp.float32) - wanted) ** 2)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"kernel": jnp.zeros((8, 4), jnp.bfloat16)}
    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return loss(params), loss(ro.eval_params(state, params))


def test_an_average_of_narrow_weights_drifts_and_says_so_unless_the_optimiser_keeps_them_wide():
    """The average is a difference of weights and iterate: what rounding takes from one, the other gathers."""
    narrow = ro.riemannian_schedule_free(0.003, weight_decay=0.0)
    with pytest.warns(UserWarning, match=r"schedule_free: leaf \['kernel'\] is bfloat16.*ro\.master_weights"):
        trained, averaged = average_after(narrow, 5000)
    assert averaged > 10 * trained
    with warnings.catch_warnings(action="error"):
        trained, averaged = average_after(ro.master_weights(narrow), 5000)
    assert averaged < 1.5 * trained + 1e-4


BEHIND = {
    "plateau": lambda: optax.contrib.reduce_on_plateau(patience=5, factor=0.1),
    "schedule": lambda: optax.scale_by_schedule(optax.constant_schedule(1.0)),
    "trace": lambda: optax.trace(0.9),
    "ema": lambda: optax.ema(0.9),
    "apply_every": lambda: optax.apply_every(2),
    "nonnegative": lambda: optax.keep_params_nonnegative(),
    "masked": lambda: optax.masked(optax.scale(2.0), {"w": True}),
}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize(
    "chain",
    [optax.chain, lambda *parts: optax.named_chain(*zip("ab", parts, strict=True))],
    ids=["chain", "named_chain"],
)
def test_what_is_known_to_scale_steps_behind_the_average_is_warned_of(chain, behind):
    params = {"w": jnp.ones(2)}
    averaged = ro.riemannian_schedule_free(0.1)
    state = chain(averaged, BEHIND[behind]()).init(params)
    with pytest.warns(UserWarning, match=r"^eval_params: .* stands behind the averaging"):
        ro.eval_params(state, params)
    inside = ro.schedule_free(optax.chain(optax.sgd(0.1), BEHIND[behind]()))
    quiet = [averaged, inside, chain(BEHIND[behind](), averaged), chain(averaged, ro.track_energy())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tx in quiet:
            ro.eval_params(tx.init(params), params)


def test_a_plateau_inside_of_the_averaging_leaves_the_average_where_the_weights_are():
    """Behind it the average of the same run drifts away: what it averages runs on at the full rate."""

    def distance(make):
        tx = make(ro.schedule_free, optax.sgd(0.05), optax.contrib.reduce_on_plateau(patience=5, factor=0.1))
        params = jnp.zeros(4)
        state = tx.init(params)
        update = jax.jit(tx.update)
        for step in range(400):
            noise = 0.1 * jax.random.normal(jax.random.key(step), (4,))
            updates, state = update(2 * (params - 3) + noise, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(jnp.abs(ro.eval_params(state, params) - params).max())

    inside = distance(lambda average, base, plateau: average(optax.chain(base, plateau)))
    behind = distance(lambda average, base, plateau: optax.chain(average(base), plateau))
    assert inside < 0.1
    assert behind > 10 * inside


def test_what_scales_steps_refuses_an_average_inside():
    params = {"w": jnp.ones(2)}
    tx = ro.norm_matched_base(ro.riemannian_schedule_free(0.1), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"^norm_matched_base: schedule_free puts weights .* put it around"):
        tx.init(params)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: ro.ema(0.999, accumulator_dtype="bfloat16"), "decay"),
        (lambda: ro.riemannian_adamw(0.1, b1=0.999, mu_dtype="bfloat16"), "b1"),
        (lambda: ro.riemannian_eigenbasis(0.1, b1=0.999), "b1"),
        (lambda: ro.riemannian_eigenbasis(0.1, b2=0.999), "b2"),
        (lambda: ro.riemannian_eigenbasis(0.1, basis_decay=0.999), "basis_decay"),
        (lambda: ro.in_eigenbasis(optax.sgd(0.1), decay=0.999, state_dtype=jnp.bfloat16), "decay"),
    ],
)
def test_a_mean_that_would_stall_is_refused(make, argument):
    """What a step of 0.001 of the way adds to 1 is less than half of bfloat16's last place."""
    assert jnp.bfloat16(0.999) + jnp.bfloat16(0.001) * 2 == jnp.bfloat16(0.999)
    with pytest.raises(ValueError, match=rf"^{argument}=0\.999: a running mean in bfloat16 stalls"):
        make()


@pytest.mark.parametrize("count", [10_000, 30_000, 200_000])
def test_the_average_goes_on_where_the_sum_of_weights_has_overflowed(count):
    """Of the ninth power 1e38 is reached after some 24,000 updates."""
    power, b1 = 8.0, 0.9
    weights = np.arange(1, count + 2, dtype=np.float64) ** power
    tx = ro.schedule_free(optax.sgd(0.1), b1=b1, power=power)
    y, z = jnp.array([1.0]), jnp.array([3.0])
    with np.errstate(over="ignore"):
        before = np.float32(weights[:-1].sum())
    state = tx.init(y)._replace(count=jnp.int32(count), weight_sum=jnp.asarray(before), iterate=z)
    update, _ = tx.update(jnp.zeros(1), state, y)
    share = weights[-1] / weights.sum()  # in float64
    np.testing.assert_allclose(update, share * (z - y), rtol=1e-4)

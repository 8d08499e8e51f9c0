"""State in few bytes that does not stall."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import riemann_optax as ro

STORAGES = ["bfloat16", "int8"]
# From here on a value is never further from the one stored than the distance of its two neighbours.
STEP = {"bfloat16": 2.0**-7, "int8": 8.2 / 127}


def keeper():
    """A transformation whose state is the last array it was given, and whose result is the one before."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (state, updates),
    )


def stored(arrays, storage, draws=1, **options):
    """What is read back after each of several storings of one array or tree."""
    tx = ro.low_precision_state(keeper(), storage, **options)

    def store(state, _):
        return tx.update(arrays, tx.update(arrays, state)[1])[::-1]

    kept = jax.jit(lambda s: jax.lax.scan(store, s, None, length=draws))(tx.init(arrays))[1]
    return jax.tree.map(np.asarray, kept)


def mean_of_a_constant(phi, target, steps, elements=512):
    gradients = jnp.broadcast_to(jnp.sqrt(target), (elements, *target.shape))

    def step(state, _):
        return phi.update(gradients, state)[1], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, None, length=steps))(phi.init(gradients))
    return np.asarray(phi.update(gradients, state)[0] / target, np.float64)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_running_mean_of_a_constant_reaches_it(storage):
    """Decay 0.999, over 8 time constants, for constants of all sizes within a block."""
    target = jnp.exp(jnp.linspace(-4.0, 0.0, 32))
    ratio = mean_of_a_constant(
        ro.low_precision_state(ro.phi.activity(decay=0.999, power=1.0), storage), target, 8000
    )
    np.testing.assert_allclose(ratio.mean(axis=0), 1, atol=0.01)
    np.testing.assert_allclose(ratio.mean(), 1, atol=0.002)


def test_rounding_to_nearest_stalls():
    """The reason for all this: see the docstring of ``low_precision_state``."""

    def step(mean, _):
        return (0.999 * mean.astype(jnp.float32) + 0.001).astype(jnp.bfloat16), None

    assert jax.lax.scan(step, jnp.bfloat16(0), length=8000)[0] < 0.6
    with pytest.raises(ValueError, match=r"^decay=0\.999: a running mean in bfloat16 stalls"):
        ro.phi.activity(decay=0.999, state_dtype=jnp.bfloat16)


@pytest.mark.parametrize("storage", STORAGES)
def test_rounding_is_one_of_two_neighbours_and_right_on_average(storage):
    x = jnp.asarray(
        np.random.default_rng(0).normal(size=(4, 64)) * [[1e-3], [1.0], [30.0], [1e20]], jnp.float32
    )
    draws = 4000
    values = stored(x, storage, draws).astype(np.float64)
    low, high = values.min(0), values.max(0)
    assert np.all((values == low) | (values == high))
    exact = np.asarray(x, np.float64)
    error = 5 * (high - low) / 2 / np.sqrt(draws)
    np.testing.assert_array_less(np.abs(values.mean(0) - exact), error + 1e-6 * np.abs(exact))
    large = np.abs(exact) > 0.9 * np.abs(exact).max(axis=1, keepdims=True)
    assert np.all((high - low)[large] <= STEP[storage] * np.abs(exact)[large] * 1.1)


@pytest.mark.parametrize("storage", STORAGES)
def test_roundings_of_neighbours_and_of_steps_are_independent(storage):
    up = stored(jnp.full([64, 64], 0.7, jnp.float32).at[:, ::32].set(1.0), storage, 20)
    up = (up > 0.7).astype(np.float64)[:, :, 1:32]
    deviations = up - up.mean()
    for one, other in (
        (deviations[1:], deviations[:-1]),
        (deviations[:, 1:], deviations[:, :-1]),
        (deviations[:, :, 1:], deviations[:, :, :-1]),
    ):
        assert abs(np.mean(one * other)) / deviations.var() < 5 / np.sqrt(one.size)


@pytest.mark.parametrize("storage", STORAGES)
def test_roundings_of_two_arrays_are_independent(storage):
    """They share a key; their bits differ by their values. So do those of one array and its negative."""
    one = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.0, [64, 64]), jnp.float32).at[:, ::32].set(1.0)
    trees = {"one": one, "near": one * 1.02, "far": 1e-4 * one, "negative": -one}
    kept = stored(trees, storage, 20)
    up = {name: (np.abs(x) > np.abs(x).mean(0))[:, :, 1:32] for name, x in kept.items()}
    deviations = {name: chosen - chosen.mean(0) for name, chosen in up.items()}
    for name in ("near", "far", "negative"):
        product = deviations["one"] * deviations[name]
        spread = np.sqrt(np.mean(deviations["one"] ** 2) * np.mean(deviations[name] ** 2))
        assert abs(product.mean()) / spread < 5 / np.sqrt(product.size)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.0, np.inf, -np.inf, np.nan, np.float32(3.4028235e38)])
def test_special_values(storage, value):
    """Zero, powers of two, infinities and NaN are stored exactly; the largest number does not overflow."""
    read = stored(jnp.full([2, 32], value, jnp.float32), storage)
    if value == np.float32(3.4028235e38):
        assert np.all(np.isfinite(read))
        np.testing.assert_allclose(read, value, rtol=0.01)
    else:
        np.testing.assert_array_equal(read, np.full_like(read, value))


def test_a_nan_is_not_hidden_by_its_block():
    read = stored(jnp.ones([1, 32]).at[0, 3].set(jnp.nan), "int8")
    assert np.isnan(read[0, 0, 3])


@pytest.mark.parametrize(("storage", "expected"), [("bfloat16", 2.0), ("int8", 1.125)])
def test_bytes_per_weight(storage, expected):
    params = jnp.zeros([64, 128])
    state = ro.low_precision_state(ro.phi.activity(), storage).init(params)
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.nbytes for leaf in arrays) / params.size == expected


def test_what_is_not_float32_is_kept():
    tx = ro.low_precision_state(keeper())
    kept = {"narrow": jnp.ones(2, jnp.float16), "complex": jnp.ones(2, jnp.complex64), "scalar": jnp.ones([])}
    state = tx.update(kept, tx.init(kept))[1]
    assert jax.tree.map(lambda x: x.dtype, state.inner_state) == jax.tree.map(lambda x: x.dtype, kept)


def test_vectors_are_kept_by_int8_and_rounded_by_bfloat16():
    vector = jnp.ones(64)
    dtypes = {
        storage: jax.tree.leaves(ro.low_precision_state(keeper(), storage).init(vector))[1].dtype
        for storage in STORAGES
    }
    assert dtypes == {"bfloat16": jnp.bfloat16, "int8": jnp.float32}


def test_seeds_differ_and_repeat():
    x = jnp.linspace(0, 1, 64)
    one, again, two, four = (stored(x, "bfloat16", key=key) for key in (1, np.int64(1), 2, 4))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != two)
    assert np.any(two != four)
    drawn = [
        stored(x, "bfloat16", key=key)
        for key in (jax.random.key(1), jax.random.PRNGKey(1), jax.random.key(2))
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


@pytest.mark.parametrize("storage", STORAGES)
def test_on_eight_devices_the_same_bits_and_no_collective(storage):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))
    tx = ro.low_precision_state(ro.phi.activity(), storage, block_size=8)
    params = jnp.asarray(np.random.default_rng(0).normal(size=(16, 32)), jnp.float32)
    alone = tx.update(params, tx.init(params))[1]
    sharded = jax.device_put(params, NamedSharding(mesh, jax.P("x", "y")))
    with jax.set_mesh(mesh):
        update = jax.jit(tx.update).lower(sharded, ro.sharding.init(tx, sharded)).compile()
        spread = update(sharded, ro.sharding.init(tx, sharded))[1]
    assert not re.search("all-|permute|reduce-scatter", update.as_text())
    jax.tree.map(np.testing.assert_array_equal, spread, alone)


def test_a_block_on_several_devices_is_refused():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.zeros([4, 64]), NamedSharding(mesh, jax.P(None, "x")))
        tx = ro.low_precision_state(ro.phi.activity(), "int8")
        with pytest.raises(ValueError, match=r"block_size 32 makes 2 block.* on 8 devices: .* divides 8"):
            tx.init(params)


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_adam_in_8_bits_takes_no_step_that_is_much_too_large(spread):
    """Gradients of one block differ by up to 1e13; a second moment read as 0 would be a step of m / eps."""
    scale = jnp.exp(spread * jax.random.normal(jax.random.key(0), (64, 64)))
    plain, narrow = optax.scale_by_adam(), ro.low_precision_state(optax.scale_by_adam(), "int8")

    def step(states, key):
        gradients = scale * jax.random.normal(key, scale.shape)
        (exact, plain_state), (found, state) = (
            tx.update(gradients, state) for tx, state in zip((plain, narrow), states, strict=True)
        )
        return (plain_state, state), (exact, found)

    starts = plain.init(scale), narrow.init(scale)
    _, (exact, found) = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 30)))(
        starts
    )
    assert np.max(np.abs(found)) < 10 * np.max(np.abs(exact))
    if spread == 1.0:
        error = np.asarray(found - exact, np.float64)
        assert np.sqrt(np.mean(error**2) / np.mean(np.square(exact, dtype=np.float64))) < 0.1


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.contrib.dog(1.0),
        lambda: optax.contrib.dowg(1.0),
        lambda: optax.contrib.cocob(),
        lambda: optax.contrib.schedule_free_sgd(1e-4),
        lambda: optax.contrib.mechanize(optax.sgd(1e-3)),
        lambda: optax.scale_by_lbfgs(memory_size=3),
    ],
    ids=["dog", "dowg", "cocob", "schedule-free", "mechanic", "lbfgs"],
)
def test_how_far_the_weights_have_gone_is_not_rounded_in_states_of_optax(make, storage):
    """Of one step of 1e-4 from weights of 1 a rounded copy would keep nothing but its rounding."""
    start = jax.random.normal(jax.random.key(0), (32, 64))
    lengths = []
    for tx in (make(), ro.low_precision_state(make(), storage)):
        params, state, length = start, tx.init(start), []
        for step in range(4):
            updates, state = jax.jit(tx.update)(params - start - 0.05 - 0.01 * step, state, params)
            params = optax.apply_updates(params, updates)
            length.append(jnp.linalg.norm(updates))
        lengths.append(length)
    np.testing.assert_allclose(*lengths, rtol=0.05)


def test_second_moments_are_stored_without_a_sign_and_nothing_else_is():
    state = ro.low_precision_state(optax.scale_by_adam(), "int8").init(jnp.zeros([2, 32]))
    assert (state.inner_state.mu.dtype, state.inner_state.nu.dtype) == (jnp.int8, jnp.uint8)
    curvature = ro.low_precision_state(ro.phi.secant_curvature(), "int8").init(jnp.zeros([2, 32]))
    assert curvature.inner_state.covariation.dtype == jnp.int8  # of which some may be negative


@pytest.mark.parametrize("storage", STORAGES)
def test_first_state_is_the_nearest_and_what_is_zero_stays_zero(storage):
    """Weights that ``init`` copies are not rounded up or down by chance."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), jnp.float32).at[0].set(0.0)
    copier = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (state, state)
    )
    tx = ro.low_precision_state(copier, storage)
    read = np.asarray(tx.update(weights, tx.init(weights))[0])
    np.testing.assert_array_equal(read[0], 0.0)
    sizes = np.abs(weights[1:])  # steps of codes grow as the eighth root of what a value lacks of the largest
    half_a_step = sizes * STEP[storage] / 2 * (sizes.max() / sizes) ** 0.125
    assert np.all(np.abs(read - weights)[1:] <= 1.05 * half_a_step)


def test_types_of_the_state_are_those_of_init():
    """Optax's momentum takes the dtype of the gradient: narrow weights with wide gradients change it."""
    params, gradients = jnp.ones([4, 8], jnp.bfloat16), jnp.ones([4, 8], jnp.float32)
    for storage in STORAGES:
        tx = ro.low_precision_state(optax.trace(0.9), storage)
        state = tx.init(params)
        _, new = tx.update(gradients, state, params)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


def anchored(wrap=lambda tx: tx):
    """A consolidating phi and an anchor inside of a wrapper."""
    pull = ro.add_anchored_weights(0.1, ro.anchor.task_boundary_weights(), precision="phi")
    chain = optax.chain(ro.compute_metric(ro.phi.online_ewc(), 2.0), pull, ro.scale_by_inverse_metric())
    return wrap(optax.chain(chain, optax.scale(-0.1)))


@pytest.mark.parametrize("storage", STORAGES)
def test_consolidation_reaches_what_is_stored(storage):
    """Values that are stored exactly, so that both runs are the same: one magnitude in each block."""
    params, gradients = jnp.full([2, 32], 0.5), jnp.full([2, 32], 2.0)
    results = []
    for tx in (anchored(), anchored(lambda tx: ro.low_precision_state(tx, storage))):
        state = tx.init(params)
        _, state = tx.update(gradients, state, params)
        types = jax.tree.map(jax.typeof, state)
        state = ro.consolidate(state, params)
        assert jax.tree.map(jax.typeof, state) == types
        results.append(tx.update(gradients, state, params + 1.0)[0])
    np.testing.assert_allclose(results[1], results[0], rtol=0.01)
    assert np.max(np.abs(results[0])) < 0.1  # 0.2 if nothing had been consolidated


def test_consolidation_of_a_state_in_which_nothing_consolidates():
    """A wrapper alone is no consolidating state; around one of two it is left alone."""
    tx = ro.low_precision_state(optax.trace(0.9))
    params = jnp.ones([2, 4])
    with pytest.raises(ValueError, match="holds no state that a task boundary changes"):
        ro.consolidate(tx.init(params), params)
    both = optax.chain(tx, anchored())
    state = both.init(params)
    jax.tree.map(np.testing.assert_array_equal, ro.consolidate(state, params)[0], state[0])


def test_in_an_eigenbasis_rounded_momentum_turns_and_codes_are_refused():
    """A momentum is the same in any basis, up to its rounding; codes cannot be turned."""
    params = jnp.zeros([6, 6])
    inside = ro.in_eigenbasis(ro.low_precision_state(optax.trace(0.9)), update_every=1)
    plain = optax.trace(0.9)
    state, plain_state = inside.init(params), plain.init(params)
    for step in range(4):
        gradients = jax.random.normal(jax.random.key(step), [6, 6])
        found, state = inside.update(gradients, state, params)
        expected, plain_state = plain.update(gradients, plain_state, params)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    refused = ro.in_eigenbasis(ro.low_precision_state(optax.trace(0.9), "int8"))
    with pytest.raises(ValueError, match=r"TraceState.trace is codes of int8, .* around in_eigenbasis"):
        refused.init(params)
    around = ro.low_precision_state(ro.in_eigenbasis(optax.trace(0.9)), "int8")
    around.update(params, around.init(params), params)


@pytest.mark.parametrize("storage", STORAGES)
def test_parameters_without_leaves(storage):
    tx = ro.low_precision_state(optax.adam(0.1), storage)
    state = tx.init({})
    assert jax.tree.structure(tx.update({}, state, {})[1]) == jax.tree.structure(state)


def test_map_params_reaches_the_momentum_and_not_its_scales():
    params = {"w": jnp.ones([4, 64])}
    tx = ro.low_precision_state(optax.adam(0.1), "int8")
    seen = []
    optax.tree.map_params(tx, lambda leaf, p: seen.append((leaf.shape, p.shape)), tx.init(params), params)
    assert seen == [((4, 64), (4, 64))] * 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="storage must be one of 'bfloat16', 'int8'"):
        ro.low_precision_state(ro.phi.activity(), "int4")
    with pytest.raises(ValueError, match="block_size must be"):
        ro.low_precision_state(ro.phi.activity(), "int8", block_size=0)
    with pytest.raises(TypeError, match="key must be a random key"):
        ro.low_precision_state(ro.phi.activity(), key=0.5)
    with pytest.raises(TypeError, match="tx must be"):
        ro.low_precision_state(ro.phi.activity)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_random_key_in_the_state_is_kept(compiled):
    tx = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.trace(0.9))
    narrow = ro.low_precision_state(tx)
    gradients = jnp.ones([4, 4])
    update = jax.jit(narrow.update) if compiled else narrow.update
    _, state = update(gradients, narrow.init(gradients), gradients)
    _, expected = tx.update(gradients, tx.init(gradients), gradients)
    np.testing.assert_array_equal(
        jax.random.key_data(state.wide()[0].rng_key), jax.random.key_data(expected[0].rng_key)
    )


def test_a_block_on_several_devices_is_refused_by_the_name_of_its_array():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Explicit,))
    params = {"kernel": jax.device_put(jnp.ones([4, 8]), NamedSharding(mesh, jax.P(None, "model")))}
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match=r"last axis of state\.trace\['kernel'\], 8, which"),
    ):
        ro.low_precision_state(optax.trace(0.9), "int8").init(params)

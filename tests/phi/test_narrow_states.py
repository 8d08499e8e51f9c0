"""States in narrow dtypes: means that would stall are refused, and what overflows does not stay for good."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro

WITH_DECAY = {
    "activity": ro.phi.activity,
    "surprise": ro.phi.surprise,
    "momentum_activity": ro.phi.momentum_activity,
    "factored_activity": ro.phi.factored_activity,
    "per_neuron": ro.phi.per_neuron,
    "sliding_threshold": ro.phi.sliding_threshold,
    "secant_curvature": ro.phi.secant_curvature,
    "hutchinson_curvature": ro.phi.hutchinson_curvature,
    "gauss_newton_curvature": ro.phi.gauss_newton_curvature,
    "utility_gate": ro.phi.utility_gate,
    "bayesian_synapse": ro.phi.bayesian_synapse,
    "modification_energy": ro.phi.modification_energy,
    "slow_weights": ro.anchor.slow_weights,
}


@pytest.mark.parametrize("name", WITH_DECAY)
def test_a_mean_that_would_stall_is_refused(name):
    """In bfloat16 a mean of ones of decay 0.999 stops where a step is half of a unit: far from 1."""
    make = WITH_DECAY[name]
    with pytest.raises(ValueError, match=r"^decay=0\.999: a running mean in bfloat16 stalls.*state_dtype="):
        make(decay=0.999, state_dtype="bfloat16")
    make(decay=0.99, state_dtype="bfloat16")
    make(decay=0.999)


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_a_mean_that_is_not_refused_arrives(decay):
    """Within some units of the dtype, where the update is rounded to less than half of one."""
    phi = ro.phi.activity(decay=decay, power=1.0, state_dtype="bfloat16")
    gradient = jnp.ones(3)
    state = phi.init(gradient)
    last, _ = jax.lax.scan(lambda state, _: (phi.update(gradient, state)[1], None), state, length=3000)
    half_unit = 2.0**-9
    assert abs(float(last.second_moment[0]) - 1) <= half_unit / (1 - decay) + half_unit


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ro.phi.activity, {"decay": 0.5}),
        (ro.phi.factored_activity, {"decay": 0.5}),
        (ro.phi.accumulated_activity, {"memory": 0.5}),
        (ro.phi.momentum_activity, {"decay": 0.5}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_large_gradient_does_not_freeze_a_weight_for_good(make, options):
    """Its square is above 65504, the largest number of float16."""
    with pytest.warns(UserWarning, match="float16 has no numbers below 6e-08"):
        phi = make(**options, state_dtype="float16")
    shape = jnp.ones([2, 2])
    state = phi.init(shape)
    for size in (3000.0, 3000.0, *[1.0] * 40):
        values, state = phi.update(size * shape, state)
    np.testing.assert_allclose(values, np.full([2, 2], values[0, 0]))
    assert 0.5 < float(values[0, 0]) < 2.0


def test_a_dtype_without_small_numbers_is_warned_of():
    """The square of 1e-4 is 1e-8, and the smallest number of float16 is 6e-8: phi is not 1e-4."""
    dtype = "float16"
    with pytest.warns(UserWarning, match=f"^nu_dtype={dtype} has no numbers below"):
        ro.riemannian_eigenbasis(1e-3, nu_dtype=dtype, b2=0.5)
    with pytest.warns(UserWarning, match=f"^basis_dtype={dtype} has no numbers below"):
        ro.riemannian_schedule_free(1e-3, sides="smaller", basis_dtype=dtype)
    with pytest.warns(UserWarning, match=f"^state_dtype={dtype} has no numbers below"):
        ro.soap(1e-3, state_dtype=dtype, b2=0.5)
    with pytest.warns(UserWarning, match="Give bfloat16"):
        phi = ro.phi.activity(decay=0.9, state_dtype=dtype)
    state = phi.init(jnp.zeros(1))
    for _ in range(100):
        values, state = phi.update(jnp.full(1, 1e-4), state)
    assert float(values[0]) < 0.5e-4
    wide = ro.phi.activity(decay=0.9, state_dtype="bfloat16")
    state = wide.init(jnp.zeros(1))
    for _ in range(100):
        values, state = wide.update(jnp.full(1, 1e-4), state)
    np.testing.assert_allclose(values, 1e-4, rtol=3e-2)


@pytest.mark.parametrize("name", ["online_ewc", "laplace", "memory_aware_synapses"])
def test_importances_in_few_bits_are_finite_and_follow_their_mean(name):
    """A mean over a task moves by 1/n, which bfloat16 rounds off from n = 256 on: refused."""
    make = getattr(ro.phi, name)
    with pytest.raises(ValueError, match=r"^decay=1: a running mean in bfloat16 stalls"):
        make(decay=1.0, state_dtype="bfloat16")
    make(decay=1.0, running=False, state_dtype="bfloat16")
    with pytest.warns(UserWarning, match="float16"):
        phi = make(decay=0.5, state_dtype="float16")
    state = phi.init(jnp.zeros(1))
    examples = {
        argument: jnp.full([2, 1], 300.0) for argument in ("per_example_gradients", "output_norm_gradients")
    }
    for boundary in (False, False, True, False):
        values, state = phi.update(jnp.full(1, 300.0), state, task_boundary=boundary, **examples)
        assert np.isfinite(values).all()
    assert 300.0 <= float(values[0]) <= 65504.0


def test_sums_with_a_memory_and_chains_of_copies_that_would_stall_are_refused():
    with pytest.raises(ValueError, match=r"^memory=0\.999: a running mean in bfloat16 stalls"):
        ro.phi.accumulated_activity(memory=0.999, state_dtype="bfloat16")
    ro.phi.accumulated_activity(memory=1.0, state_dtype="bfloat16")
    with pytest.raises(ValueError, match="the last of 3 copies stalls"):
        ro.anchor.benna_fusi_chain(copies=3, coupling=0.1, state_dtype="bfloat16")
    chain = ro.anchor.benna_fusi_chain(copies=2, coupling=0.5, leak=False, state_dtype="bfloat16")
    state = chain.init(jnp.zeros(1))
    one = jnp.ones(1)
    _, state = chain.update(one, state, jnp.zeros(1))
    last, _ = jax.lax.scan(lambda state, _: (chain.update(one, state, one)[1], None), state, length=3000)
    np.testing.assert_allclose([float(copy[0]) for copy in last.copies], 1.0, atol=0.2)


def test_a_secant_of_narrow_weights_has_the_difference_of_wide_gradients():
    """Of a quadratic it is the curvature: gradients rounded to bfloat16 would differ by their rounding."""
    phi, curvature = ro.phi.secant_curvature(decay=0.0), 3.3
    weights = [jnp.array([1.0 + step / 128], jnp.bfloat16) for step in range(4)]
    state = phi.init(weights[0])
    for weight in weights:
        values, state = phi.update(curvature * weight.astype(jnp.float32), state, weight)
    np.testing.assert_allclose(values, curvature, rtol=1e-4)


def test_a_decay_that_float32_rounds_to_1_is_refused():
    with pytest.raises(ValueError, match="which float32 rounds to 1"):
        ro.phi.momentum_activity(decay=1 - 1e-8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_probability_of_release_stays_below_its_maximum(dtype):
    """There E would be infinite, and the synapse frozen."""
    phi = ro.phi.presynaptic_release(frozen_from=0.999, up=0.5, state_dtype=dtype)
    state = phi.init(jnp.zeros(2))
    for _ in range(40):
        values, state = phi.update(jnp.ones(2), state)
    assert np.isfinite(values).all()
    below = np.nextafter(
        np.asarray(1, state.release_probability.dtype), np.asarray(0, state.release_probability.dtype)
    )
    assert float(state.release_probability[0]) <= float(below)


def test_the_weight_of_the_newest_term_has_its_derivative_at_a_decay_of_zero():
    """``(1 - d) / (1 - d**n)``: 0 for one term, -1 for more."""
    from riemann_optax.phi._state import newest_weight

    for count, slope in ((1, 0.0), (2, -1.0), (3, -1.0)):
        at_zero = jax.grad(lambda decay, count=count: newest_weight(decay, jnp.int32(count)))(0.0)
        assert float(at_zero) == slope


@pytest.mark.parametrize(
    "options", [{"frozen_from": 0.999}, {"form": "constant", "frozen_from": 0.93, "up": 0.069}]
)
@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_a_probability_that_is_stored_rounded_is_finite_too(options, storage):
    phi = ro.low_precision_state(ro.phi.presynaptic_release(**options), storage)
    ones = jnp.ones(256)
    state = phi.init(ones)
    _, values = jax.lax.scan(lambda state, _: phi.update(ones, state)[::-1], state, length=400)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", ["synaptic_intelligence", "rwalk"])
def test_importances_of_a_path_in_few_bits_stay_finite(name):
    """A gain of 3000 * 0.001 over 1e-6 is far above 65504, and an infinite importance stays for good."""
    make = getattr(ro.phi, name)
    if name == "rwalk":
        with pytest.warns(UserWarning, match="float16"):
            phi = make(damping=1e-6, state_dtype="float16")
    else:
        phi = make(damping=1e-6, state_dtype="float16")
    weight, state = jnp.ones(1), phi.init(jnp.ones(1))
    for number in range(8):
        values, state = phi.update(jnp.full(1, 3000.0), state, weight, task_boundary=number == 5)
        weight = weight - 0.001
        assert np.isfinite(values).all()
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


def test_a_phi_takes_its_updates_by_name():
    phi, weights = ro.phi.online_ewc(), jnp.ones(1)
    examples = jnp.full([2, 1], 3.0)
    _, state = phi.update(
        updates=jnp.ones(1), state=phi.init(weights), params=weights, per_example_gradients=examples
    )
    np.testing.assert_allclose(state.task_mean, 9.0)

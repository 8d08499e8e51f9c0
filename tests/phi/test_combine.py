"""Sums, products, powers and means of phis, against the same arithmetic on their values."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0], [0.5, 6.0]]), "bias": jnp.array([2.0, 8.0])}
GRADIENTS = {"kernel": jnp.array([[3.0, 1.0], [2.0, -5.0], [4.0, 3.0]]), "bias": jnp.array([-1.0, 3.0])}


def evaluate(phi, gradients=GRADIENTS, params=PARAMS):
    values, _ = phi.update(gradients, phi.init(params), params)
    return values


def test_weighted_sum_is_the_papers_plasticity_plus_energy():
    phi = ro.phi.weighted_sum(ro.phi.activity(decay=0.0), ro.phi.maintenance_energy(), weights=[2.0, 0.25])
    values = evaluate(phi)
    for name in PARAMS:
        expected = 2.0 * np.abs(GRADIENTS[name]) + 0.25 * np.abs(PARAMS[name])
        np.testing.assert_allclose(values[name], expected, rtol=1e-6)


def test_weighted_sum_keeps_the_states_of_its_parts_apart():
    """Two activities of different decay, stepped together, equal the two stepped alone."""
    parts = [ro.phi.activity(decay=0.5), ro.phi.activity(decay=0.9)]
    together = ro.phi.weighted_sum(*parts)
    state, states = together.init(PARAMS), [part.init(PARAMS) for part in parts]
    for scale in (1.0, 3.0, 0.1):
        gradients = jax.tree.map(lambda g, s=scale: s * g, GRADIENTS)
        values, state = together.update(gradients, state)
        alone = []
        for k, part in enumerate(parts):
            value, states[k] = part.update(gradients, states[k])
            alone.append(value["kernel"])
        np.testing.assert_allclose(values["kernel"], alone[0] + alone[1], rtol=1e-6)
    np.testing.assert_array_equal(state.states[1].second_moment["kernel"], states[1].second_moment["kernel"])


def test_product_and_power():
    activity, energy = ro.phi.activity(decay=0.0), ro.phi.maintenance_energy()
    values = evaluate(ro.phi.product(activity, energy, energy))
    expected = np.abs(GRADIENTS["kernel"]) * np.abs(PARAMS["kernel"]) ** 2
    np.testing.assert_allclose(values["kernel"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        evaluate(ro.phi.power(energy, -1.5))["bias"], np.array([2.0, 8.0]) ** -1.5, rtol=1e-6
    )
    zero = {"kernel": PARAMS["kernel"], "bias": jnp.zeros(2)}
    np.testing.assert_array_equal(evaluate(ro.phi.power(energy, 0.5), params=zero)["bias"], [0.0, 0.0])
    assert np.isinf(evaluate(ro.phi.power(energy, -1.0), params=zero)["bias"]).all()


@pytest.mark.parametrize("over", ["leaf", "neuron", "tree"])
def test_unit_mean(over):
    values = evaluate(ro.phi.unit_mean(ro.phi.activity(decay=0.0), over=over))
    kernel, bias = np.abs(GRADIENTS["kernel"]), np.abs(GRADIENTS["bias"])
    if over == "tree":
        mean = (kernel.sum() + bias.sum()) / 8
        expected = kernel / mean, bias / mean
    elif over == "leaf":
        expected = kernel / kernel.mean(), bias / bias.mean()
    else:  # the fan-in of each output; a bias has none, and is one group
        expected = kernel / kernel.mean(0, keepdims=True), bias / bias.mean()
    np.testing.assert_allclose(values["kernel"], expected[0], rtol=1e-6)
    np.testing.assert_allclose(values["bias"], expected[1], rtol=1e-6)


@pytest.mark.parametrize("over", ["leaf", "neuron", "tree"])
def test_limited_mean(over):
    """Groups whose mean is above the limit are scaled to it, and the others stay as they are."""
    values = evaluate(ro.phi.limited_mean(ro.phi.activity(decay=0.0), limit=1.5, over=over))
    kernel, bias = np.abs(GRADIENTS["kernel"]), np.abs(GRADIENTS["bias"])
    whole = (kernel.sum() + bias.sum()) / 8
    means = {
        "tree": (whole, whole),
        "leaf": (kernel.mean(), bias.mean()),
        "neuron": (kernel.mean(0, keepdims=True), bias.mean()),
    }[over]
    for name, array, mean in zip(("kernel", "bias"), (kernel, bias), means, strict=True):
        np.testing.assert_allclose(values[name], array * np.minimum(1, 1.5 / mean), rtol=1e-6)


def test_limited_mean_leaves_what_is_below_to_the_bit():
    values = evaluate(ro.phi.limited_mean(ro.phi.activity(decay=0.0), limit=1e6))
    np.testing.assert_array_equal(values["kernel"], np.abs(GRADIENTS["kernel"]))
    zero = jax.tree.map(jnp.zeros_like, GRADIENTS)
    assert not evaluate(ro.phi.limited_mean(ro.phi.activity(), limit=1.0), gradients=zero)["kernel"].any()


@pytest.mark.parametrize("limited", [True, False])
def test_an_infinite_value_stays_infinite_and_makes_nothing_else_of_the_others(limited):
    """The mean is that of the finite ones, over all: 3 and 6 of three weights have a mean of 3."""
    inner = ro.phi.from_weights(lambda w: 6 / jnp.abs(w))
    phi = ro.phi.limited_mean(inner, limit=1.0) if limited else ro.phi.unit_mean(inner)
    weights = jnp.array([1.0, 0.0, 2.0])
    values, _ = phi.update(weights, phi.init(weights), weights)
    np.testing.assert_allclose(values, [2.0, np.inf, 1.0], rtol=1e-6)


def test_a_limit_that_the_dtype_does_not_have_is_none():
    weights = jnp.array([1.0, 2.0], jnp.float16)
    phi = ro.phi.limited_mean(ro.phi.from_weights(lambda w: w), limit=1e5)
    np.testing.assert_array_equal(phi.update(weights, phi.init(weights), weights)[0], weights)


def test_unit_mean_of_nothing_is_nothing():
    values = evaluate(ro.phi.unit_mean(ro.phi.activity()), gradients=jax.tree.map(jnp.zeros_like, GRADIENTS))
    np.testing.assert_array_equal(values["kernel"], np.zeros((3, 2)))


def test_phis_compose_with_optax_chain():
    values = evaluate(optax.chain(ro.phi.activity(decay=0.0), optax.clip(2.5), optax.scale(2.0)))
    np.testing.assert_allclose(values["bias"], [2.0, 5.0], rtol=1e-6)


def test_extra_arguments_reach_every_part():
    phi = ro.phi.unit_mean(ro.phi.power(ro.phi.weighted_sum(ro.phi.hutchinson_curvature()), 1.0), over="leaf")
    loss = lambda p: 0.5 * jnp.sum(p["kernel"] ** 2) + 1.5 * jnp.sum(p["bias"] ** 2 * jnp.array([1.0, 3.0]))  # noqa: E731
    values, _ = phi.update(GRADIENTS, phi.init(PARAMS), PARAMS, obj_fn=loss)
    np.testing.assert_allclose(values["bias"], [0.5, 1.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ro.phi.weighted_sum(), ValueError, "at least one phi"),
        (lambda: ro.phi.weighted_sum(ro.phi.activity(), weights=[1.0, 2.0]), ValueError, "got 2 for 1"),
        (
            lambda: ro.phi.weighted_sum([ro.phi.activity()]),
            TypeError,
            "phi number 0 is a list: .* one by one",
        ),
        (lambda: ro.phi.product(ro.phi.activity), TypeError, "phi number 0"),
        (lambda: ro.phi.power(ro.phi.activity(), 0), ValueError, "must not be 0"),
        (lambda: ro.phi.unit_mean(ro.phi.activity(), over="layer"), ValueError, "'leaf', 'neuron', 'tree'"),
        (lambda: ro.phi.limited_mean(ro.phi.activity(), limit=0.0), ValueError, "limit"),
        (lambda: ro.phi.activity(decay=1.0), ValueError, r"decay must be a finite number in \[0, 1\)"),
        (lambda: ro.phi.activity(power=0.0), ValueError, "power must be"),
        (lambda: ro.phi.activity(state_dtype="int32"), ValueError, "state_dtype"),
        (lambda: ro.phi.presynaptic_release(minimum=1.0), ValueError, r"maximum must be .* in \(1, inf\)"),
        (lambda: ro.phi.presynaptic_release(frozen_from=1.0), ValueError, "frozen_from"),
        (lambda: ro.phi.secant_curvature(initial_phi=-1.0), ValueError, "initial_phi"),
        (lambda: ro.phi.bayesian_synapse(learning_rate=0.0), ValueError, "learning_rate must be"),
        (lambda: ro.phi.from_weights(ro.phi.activity()), TypeError, "function must map"),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_an_exponent_may_be_traced():
    """Only a number that can be read without waiting is looked at: a traced one passes."""

    def squared(exponent):
        phi = ro.phi.power(ro.phi.from_weights(abs), exponent)
        return phi.update(jnp.ones(2), phi.init(jnp.ones(2)), jnp.array([2.0, 3.0]))[0]

    np.testing.assert_allclose(jax.jit(squared)(2.0), [4.0, 9.0], rtol=1e-6)


@pytest.mark.parametrize("module", [ro.phi, ro.anchor], ids=["phi", "anchor"])
def test_arguments_after_what_is_wrapped_are_given_by_name(module):
    wrapped = {"phi", "phis", "function", "exponent"}
    for name in module.__all__:
        maker = getattr(module, name)
        if inspect.isfunction(maker) and name != "draw_perturbations":
            for parameter in inspect.signature(maker).parameters.values():
                assert (parameter.kind != parameter.KEYWORD_ONLY) == (parameter.name in wrapped), (
                    name,
                    parameter,
                )

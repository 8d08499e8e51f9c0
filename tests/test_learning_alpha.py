"""alpha may be traced: learned by gradient through several updates, and mapped over."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from .adam_in_the_frame import adam_in_the_frame

# NumPy's float64: it takes whatever precision the parameters have.
TARGET = {
    "bias": np.array([0.3, -0.2, 0.0]),
    "kernel": np.array([[1.0, -2.0], [0.5, 3.0]]),
    "idle": np.zeros([2, 3]),
}


def loss(params):
    def term(p, t):
        distance = p - jnp.asarray(t, p.dtype)
        return jnp.sum(distance**2 + 0.1 * distance**4)

    return optax.tree.sum(jax.tree.map(term, params, TARGET))


RULES = {
    "activity": lambda alpha: riemannian_sgd(0.02, alpha=alpha),
    "factored_activity": lambda alpha: riemannian_sgd(0.02, phi=ro.phi.factored_activity(), alpha=alpha),
    "norm_matched_base": lambda alpha: ro.norm_matched_base(
        optax.sgd(1.0), riemannian_sgd(0.02, alpha=alpha), over="leaf"
    ),
    "inverse_metric": lambda alpha: riemannian_sgd(1e-3, alpha=alpha, role="inverse_metric"),
    "accumulated_activity": lambda alpha: riemannian_sgd(
        0.02, phi=ro.phi.accumulated_activity(), alpha=alpha
    ),
    "secant_curvature": lambda alpha: riemannian_sgd(
        0.02, phi=ro.phi.secant_curvature(initial_phi=10.0), alpha=alpha
    ),
    "maintenance_energy": lambda alpha: riemannian_sgd(
        0.02, phi=ro.phi.maintenance_energy(power=0.5), alpha=alpha
    ),
    "conformal": lambda alpha: riemannian_sgd(0.02, momentum=0.5, alpha=alpha, conformal="tree"),
    "conformal leaf": lambda alpha: riemannian_sgd(0.02, alpha=alpha, conformal="leaf"),
    "adam in the frame": lambda alpha: adam_in_the_frame(0.02, alpha=alpha, eps_root=1e-8),
    "riemannian_adamw": lambda alpha: ro.riemannian_adamw(0.02, alpha=alpha),
    "normalised": lambda alpha: optax.chain(
        ro.compute_metric(ro.phi.unit_mean(ro.phi.activity()), alpha),
        ro.normalize_metric("neuron"),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(0.02),
    ),
    "injected": lambda alpha: optax.inject_hyperparams(ro.riemannian_sgd)(learning_rate=0.02, alpha=alpha),
}


def loss_after_training(rule, alpha, steps=4):
    """Train from zero weights; the gradients of all weights with target 0 are 0 all the time."""
    tx = rule(alpha)
    params = jax.tree.map(lambda t: jnp.zeros(t.shape, float), TARGET)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return loss(params)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("name", RULES)
def test_derivative_by_alpha_is_that_of_finite_differences(name, alpha):
    """In float64; at 0 too, where the metric switches phi off but not its derivative."""
    with jax.enable_x64(True):
        final = jax.jit(jax.value_and_grad(lambda alpha: loss_after_training(RULES[name], alpha)))
        value = jnp.asarray(alpha, jnp.float64)
        _, derivative = final(value)
        step = 1e-4 * max(1.0, alpha)
        difference = (final(value + step)[0] - final(value - step)[0]) / (2 * step)
        assert derivative.dtype == difference.dtype == jnp.float64
        assert np.isfinite(derivative)
        assert abs(derivative) > 1e-7
        np.testing.assert_allclose(derivative, difference, rtol=1e-5)


def test_alpha_is_learned():
    """Descent on alpha lowers the loss after training."""
    final = jax.jit(jax.value_and_grad(lambda log: loss_after_training(RULES["activity"], jnp.exp(log))))
    outer = optax.adam(0.3)
    log_alpha = jnp.array(1.0)
    state = outer.init(log_alpha)
    losses = []
    for _ in range(15):
        value, derivative = final(log_alpha)
        losses.append(float(value))
        updates, state = outer.update(derivative, state)
        log_alpha = optax.apply_updates(log_alpha, updates)
    assert losses[-1] < 0.95 * losses[0]


def test_vmap_over_alpha_equals_numbers():
    alphas = [0.0, 1.0, 3.0]
    together = jax.vmap(lambda alpha: loss_after_training(RULES["activity"], alpha))(jnp.array(alphas))
    alone = [loss_after_training(RULES["activity"], alpha) for alpha in alphas]
    chex.assert_trees_all_close(together, jnp.stack(alone), rtol=1e-6)
    assert len(set(np.asarray(together).tolist())) == 3


MEMORIES = ("activity", "momentum_activity", "factored_activity", "per_neuron")
GRADIENTS = {
    "an idle weight": {"w": [0.0, 2.0]},
    "all move": {"w": [1.0, 2.0]},
    "an idle matrix": {"w": [[0.0, 0.0], [0.0, 0.0]], "v": [[1.0, 2.0], [-0.5, 3.0]]},
    "an idle row": {"w": [[0.0, 0.0], [1.0, -2.0]]},
    "an idle column": {"w": [[0.0, 3.0], [0.0, -2.0]]},
    "a stack with an idle matrix": {"w": [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [-0.5, 3.0]]]},
}


def slopes(function, at, dtype):
    """The derivative at a number in both modes."""
    with jax.enable_x64(dtype == "float64"):
        value = jnp.asarray(at, dtype)
        return float(jax.jvp(function, (value,), (jnp.ones_like(value),))[1]), float(
            jax.grad(function)(value)
        )


def difference(function, at, step=1e-6):
    with jax.enable_x64(True):
        high, low = (function(jnp.asarray(at + shift, "float64")) for shift in (step, -step))
        return float(high - low) / (2 * step)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", GRADIENTS)
@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("conformal", [None, "leaf", "tree"])
def test_a_memory_is_learned_where_a_weight_has_no_gradient(name, conformal, case, dtype):
    """The slope of a root is infinite at 0; differences say what the derivative is."""

    def moved(decay):
        gradients = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, decay.dtype),
            GRADIENTS[case],
            is_leaf=lambda node: isinstance(node, list),
        )
        tx = ro.scale_by_metric(getattr(ro.phi, name)(decay=decay), 1.0, conformal=conformal)
        state = tx.init(gradients)
        for size in (1.0, 2.0, 0.5):  # a gradient that stays the same has a mean without a memory
            updates, state = tx.update(jax.tree.map(lambda g, size=size: size * g, gradients), state)
        return sum(jnp.sum(update**2) for update in jax.tree.leaves(updates))

    expected = difference(moved, 0.9)
    assert case == "an idle weight" or abs(expected) > 1e-4
    tolerance = 1e-3 if dtype == "float32" else 1e-6
    for found in slopes(moved, 0.9, dtype):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_rate_is_learned_beside_an_idle_matrix(name, dtype):
    def final(rate):
        target = {"kernel": TARGET["kernel"], "idle": np.zeros([2, 2])}
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, rate.dtype), target)
        tx = riemannian_sgd(rate, phi=getattr(ro.phi, name)(decay=0.5))
        state = tx.init(params)
        for _ in range(3):
            gradients = jax.tree.map(lambda p, t: 2 * (p - jnp.asarray(t, p.dtype)), params, target)
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return sum(
            jnp.sum((p - jnp.asarray(t, p.dtype)) ** 2)
            for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
        )

    expected = difference(final, 0.02)
    assert abs(expected) > 0.1
    for found in slopes(final, 0.02, dtype):
        np.testing.assert_allclose(found, expected, rtol=1e-3 if dtype == "float32" else 1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e-12])
def test_a_memory_of_small_gradients_is_learned_in_float32(size):
    """The square of a mean square of 1e-24 is 0 in float32."""

    def moved(decay):
        phi = ro.phi.factored_activity(decay=decay)
        gradients = jnp.asarray(np.array([[1.0, 0.0], [0.5, 0.0]]) * size, decay.dtype)
        state = phi.init(gradients)
        for factor in (1.0, 2.0, 0.5):
            values, state = phi.update(factor * gradients, state)
        return jnp.sum(values) / size

    expected = difference(moved, 0.9)
    for found in slopes(moved, 0.9, "float32"):
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "pull",
    [
        ro.add_isometry_pull,
        ro.add_spectral_pull,
        lambda strength: ro.add_anchored_weights(strength, ro.anchor.nearest_isometry()),
    ],
    ids=["isometry", "spectral", "nearest isometry"],
)
def test_the_strength_of_a_pull_is_learned_with_matrices_of_zeros(pull, dtype):
    """What is initialised with zeros, such as the last layer, and what is dead."""

    def final(strength):
        params = {
            "zeros": jnp.zeros([3, 3], strength.dtype),
            "a column of zeros": jnp.array([[1.0, 0.0], [0.5, 0.0], [2.0, 0.0]], strength.dtype),
            "full": jnp.array([[1.0, 2.0], [-0.5, 3.0]], strength.dtype),
        }
        params = jax.tree.map(lambda leaf: leaf * (1 + strength), params)
        tx = pull(strength)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
            params = jax.tree.map(lambda p, u: p - 0.05 * u, params, updates)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    expected = difference(final, 0.1)
    assert abs(expected) > 0.1
    for found in slopes(final, 0.1, dtype):  # in float32 the search for a largest value begins elsewhere
        np.testing.assert_allclose(found, expected, rtol=1e-2 if dtype == "float32" else 1e-6)


FULL = {"mu_dtype": None, "nu_dtype": None, "basis_dtype": None}
IN_EIGENBASES = {
    "riemannian_eigenbasis": lambda rate: ro.riemannian_eigenbasis(rate, **FULL),
    "both sides": lambda rate: ro.riemannian_eigenbasis(rate, sides="both", **FULL),
    "in_eigenbasis": lambda rate: ro.in_eigenbasis(riemannian_sgd(rate), update_every=2),
    "soap": lambda rate: ro.soap(rate),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", IN_EIGENBASES)
def test_through_eigenbases_there_is_forward_mode(name, dtype):
    """docs/limits.md says so, and that reverse mode is refused, by JAX."""
    inputs, outputs = (
        np.random.default_rng(seed).normal(size=shape) for seed, shape in ((1, [5, 4]), (2, [5, 3]))
    )

    def final(rate):
        tx = IN_EIGENBASES[name](rate)
        params = {"kernel": jnp.zeros([4, 3], rate.dtype), "bias": jnp.zeros(3, rate.dtype)}
        if name != "soap":  # as under optax.adam, the root of 0 has an infinite slope
            params["idle"] = jnp.zeros([3, 2], rate.dtype)

        def loss(params):
            given = jnp.tanh(jnp.asarray(inputs, rate.dtype) @ params["kernel"] + params["bias"])
            error = jnp.sum((given - jnp.asarray(outputs, rate.dtype)) ** 2)
            return error + jnp.sum(params.get("idle", jnp.zeros([])) ** 2)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=4)
        return loss(params)

    expected = difference(jax.jit(final), 0.03)
    assert abs(expected) > 1
    with jax.enable_x64(dtype == "float64"):
        rate = jnp.asarray(0.03, dtype)
        found = float(jax.jit(jax.jacfwd(final))(rate))
        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work for"):
            jax.grad(final)(rate)
    # The first steps of SOAP, of one length each, show the rounding of a basis.
    np.testing.assert_allclose(found, expected, rtol=2e-2 if dtype == "float32" else 1e-6)

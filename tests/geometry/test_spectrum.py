"""preconditioned_spectrum: what it predicts of a quadratic is what the optimiser then does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

CURVATURES = np.array([1.0, 4.0, 50.0, 9.0])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def turned_hessian():
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    return rotation @ np.diag(CURVATURES) @ rotation.T


def quadratic(hessian):
    """A loss of a tree of two leaves with its minimum at 1."""

    def loss(params):
        error = jnp.concatenate([params["a"], params["b"]]) - 1
        return error @ hessian @ error / 2

    return loss


def at_minimum():
    return {"a": jnp.ones(3), "b": jnp.ones(1)}


def away(size=1e-3):
    return {"a": 1 + size * jnp.array([1.0, -0.5, 0.7]), "b": 1 + size * jnp.array([-1.2])}


FIELD = ro.fields.Absolute(3.0)


def chain(rate):
    return optax.chain(
        ro.attach_field(FIELD), ro.scale_by_inverse_metric(), optax.scale_by_learning_rate(rate)
    )


def errors(tx, loss, start, steps):
    """The distance from the minimum after each step."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), optax.tree.norm(optax.tree.sub(params, at_minimum()))

    return np.asarray(jax.lax.scan(step, (start, tx.init(start)), length=steps)[1])


def test_eigenvalues_are_those_of_the_matrix():
    hessian = turned_hessian()
    metric = {"a": jnp.array([1.0, 2.0, 9.0]), "b": jnp.array([4.0])}
    spectrum = ro.preconditioned_spectrum(quadratic(hessian), at_minimum(), metric)
    scale = 1 / np.sqrt([1.0, 2.0, 9.0, 4.0])
    np.testing.assert_allclose(spectrum.euclidean_eigenvalues, np.sort(CURVATURES), rtol=1e-9)
    expected = np.linalg.eigvalsh(hessian * np.outer(scale, scale))
    np.testing.assert_allclose(spectrum.eigenvalues, expected, rtol=1e-9)
    np.testing.assert_allclose(spectrum.condition_number, expected[-1] / expected[0], rtol=1e-9)
    np.testing.assert_allclose(spectrum.euclidean_condition_number, 50.0, rtol=1e-9)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.97])
def test_predicted_contraction_is_the_measured_one(fraction):
    loss = quadratic(turned_hessian())
    spectrum = ro.preconditioned_spectrum(loss, at_minimum(), FIELD)
    rate = fraction * spectrum.largest_stable_rate
    # So near to the minimum the metric is that at the minimum to five digits.
    path = errors(chain(rate), loss, away(1e-6), 400)
    np.testing.assert_allclose(path[-1] / path[-2], spectrum.contraction(rate), rtol=5e-4)


def test_just_above_the_largest_stable_rate_it_diverges_and_just_below_it_does_not():
    loss = quadratic(turned_hessian())
    stable = ro.preconditioned_spectrum(loss, at_minimum(), FIELD).largest_stable_rate
    below = errors(chain(0.999 * stable), loss, away(1e-6), 6000)
    above = errors(chain(1.001 * stable), loss, away(1e-6), 6000)
    assert below[-1] < 0.05 * below[0]
    assert above[-1] > 20 * above[0]


def test_the_best_rate_contracts_fastest():
    loss = quadratic(turned_hessian())
    spectrum = ro.preconditioned_spectrum(loss, at_minimum(), FIELD)
    best = spectrum.contraction(spectrum.best_rate)
    condition = spectrum.condition_number
    np.testing.assert_allclose(best, (condition - 1) / (condition + 1), rtol=1e-9)
    for factor in (0.9, 1.1):
        assert spectrum.contraction(factor * spectrum.best_rate) > best


def test_any_chain_at_its_current_state():
    """A metric that is learned: the curvature of a diagonal quadratic is found, and all modes become one."""
    loss = quadratic(np.diag(CURVATURES))
    tx = riemannian_sgd(0.5, phi=ro.phi.hutchinson_curvature(decay=0.5), alpha=1e6)
    params = away(0.1)
    state = tx.init(params)
    _, state = tx.update(jax.grad(loss)(params), state, params, obj_fn=loss)
    metric = ro.metric_at(tx, jax.grad(loss)(params), state, params, obj_fn=loss)
    spectrum = ro.preconditioned_spectrum(loss, at_minimum(), metric)
    np.testing.assert_allclose(spectrum.euclidean_condition_number, 50.0, rtol=1e-9)
    np.testing.assert_allclose(spectrum.condition_number, 1.0, rtol=1e-5)


def test_no_metric_is_the_euclidean_one():
    spectrum = ro.preconditioned_spectrum(quadratic(turned_hessian()), at_minimum(), None)
    np.testing.assert_array_equal(spectrum.eigenvalues, spectrum.euclidean_eigenvalues)


def wide_loss(params):
    """Curvatures from 0.5 to 100 and a coupling of all weights."""
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    curvatures = jnp.geomspace(0.5, 100, flat.size).astype(flat.dtype)
    return jnp.sum(curvatures * jnp.square(flat)) / 2 + jnp.square(jnp.sum(flat)) / 300


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 2e-3), (jnp.float64, 1e-5)])
def test_lanczos_finds_the_ends_of_a_large_spectrum(dtype, rtol):
    params = {"kernel": jnp.zeros([10, 10], dtype), "bias": jnp.zeros([20], dtype)}
    metric = jax.tree.map(
        lambda leaf: 1 + jnp.abs(jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape))), params
    )
    dense = ro.preconditioned_spectrum(wide_loss, params, metric, method="dense")
    lanczos = ro.preconditioned_spectrum(wide_loss, params, metric, method="lanczos", number=2)
    for ours, all_of_them in zip(lanczos, dense, strict=True):
        np.testing.assert_allclose(ours, all_of_them[[0, 1, -2, -1]], rtol=rtol)
    np.testing.assert_allclose(lanczos.largest_stable_rate, dense.largest_stable_rate, rtol=1e-4)


def test_a_saddle_has_no_condition_number_and_no_contraction():
    spectrum = ro.preconditioned_spectrum(quadratic(np.diag([1.0, -1.0, 2.0, 4.0])), at_minimum(), None)
    assert spectrum.condition_number == np.inf
    assert spectrum.best_rate == spectrum.largest_stable_rate == pytest.approx(0.5)
    assert spectrum.contraction(0.1) > 1


def test_small_eigenvalues_have_a_best_rate_and_a_flat_direction_has_the_largest_stable_one():
    spectrum = ro.preconditioned_spectrum(quadratic(np.diag([0.5, 1.0, 2.0, 4.0])), at_minimum(), None)
    assert spectrum.best_rate == pytest.approx(2 / 4.5)
    flat = ro.preconditioned_spectrum(quadratic(np.diag([0.0, 1.0, 2.0, 4.0])), at_minimum(), None)
    assert flat.condition_number == np.inf
    assert flat.best_rate == flat.largest_stable_rate == pytest.approx(0.5)


def test_errors_name_the_argument_and_the_remedy():
    loss, params = quadratic(np.eye(4)), at_minimum()
    with pytest.raises(ValueError, match="method must be one of"):
        ro.preconditioned_spectrum(loss, params, None, method="exact")
    with pytest.raises(ValueError, match=r"metric lacks leaf \['b'\] of params"):
        ro.preconditioned_spectrum(loss, params, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"metric: leaf \['b'\] is not positive.*clip_metric"):
        ro.preconditioned_spectrum(loss, params, {"a": jnp.ones(3), "b": jnp.zeros(1)})
    with pytest.raises(ValueError, match="raise max_iterations"):
        ro.preconditioned_spectrum(wide_loss, {"w": jnp.zeros(400)}, None, method="lanczos", max_iterations=1)
    with pytest.raises(ValueError, match="at least 3 weights"):
        ro.preconditioned_spectrum(jnp.sum, jnp.ones(2), None, method="lanczos")
    with pytest.raises(ValueError, match="at least one weight"):
        ro.preconditioned_spectrum(jnp.sum, jnp.ones(0), None)


def test_at_a_saddle_the_best_rate_is_the_largest_stable_one():
    spectrum = ro.preconditioned_spectrum(lambda w: (w[0] ** 2 - w[1] ** 2) / 2, jnp.zeros(2), None)
    np.testing.assert_allclose(spectrum.eigenvalues, [-1, 1])
    assert spectrum.best_rate == spectrum.largest_stable_rate == 2


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_second_derivatives_that_are_not_finite_are_named(method):
    with pytest.raises(ValueError, match="loss has second derivatives at params that are not finite"):
        ro.preconditioned_spectrum(lambda w: jnp.sum(jnp.sqrt(w)), jnp.zeros(4), None, method=method)


def test_a_loss_without_curvature_has_only_zeros():
    for method in ("dense", "lanczos"):
        spectrum = ro.preconditioned_spectrum(jnp.sum, jnp.ones(8), None, method=method)
        assert not spectrum.eigenvalues.any()
        assert spectrum.best_rate == np.inf


def test_a_complex_metric_is_refused():
    with pytest.raises(TypeError, match=r"metric: leaf \['a'\] has dtype complex128, and E is real"):
        ro.preconditioned_spectrum(
            lambda w: jnp.sum(w["a"] ** 2), {"a": jnp.ones(3)}, {"a": 1j * jnp.ones(3)}
        )


def test_lanczos_asks_no_more_of_narrow_leaves_beside_wide_ones():
    """It asked for float64's digits of products that are float32's."""
    matrix = np.random.default_rng(0).normal(size=(300, 300))
    matrix = matrix @ matrix.T / 300

    def loss(params):
        return (
            params["a"] @ (jnp.asarray(matrix, jnp.float32) @ params["a"]) / 2 + jnp.sum(params["b"] ** 2) / 2
        )

    params = {"a": jnp.zeros(300, jnp.float32), "b": jnp.zeros(3)}
    found = ro.preconditioned_spectrum(loss, params, None, method="lanczos", max_iterations=300)
    assert found.eigenvalues[-1] == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-4)

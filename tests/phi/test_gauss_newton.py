"""Gauss-Newton curvature against a NumPy replay and matrices written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import riemann_optax as ro

from .replay import RTOL, STEPS, plain, walk


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


START = np.array([0.5, -1.0, 1.5])
SLOPES = np.array([0.5, 2.0, 5.0])


def outputs(w):
    """A nonlinear model with one output per weight, so that G is diagonal."""
    return jnp.sinh(jnp.asarray(SLOPES) * w / 2)


def outputs_loss(z):
    return jnp.sum(jnp.cosh(z - 1.0))


def test_replays_a_model_whose_matrix_is_diagonal():
    """By hand: z = sinh(s w / 2), l = cosh(z - 1), G = l''(z) z'(w)**2, without the l'(z) z''(w) of H."""
    decay, alpha, rate = 0.9, 0.7, 0.05
    w, mean = START.copy(), np.zeros(3)
    path, hessians = [w.copy()], []
    for step in range(STEPS):
        z, dz = np.sinh(SLOPES * w / 2), SLOPES / 2 * np.cosh(SLOPES * w / 2)
        first, second = np.sinh(z - 1.0), np.cosh(z - 1.0)
        mean = decay * mean + (1 - decay) * second * dz**2
        hessians.append(first * (SLOPES / 2) ** 2 * z)
        noise = 0.3 * np.random.default_rng(step).normal(size=3)
        w = w - rate * (first * dz + noise) / (1 + alpha * mean / (1 - decay ** (step + 1)))
        path.append(w.copy())
    assert np.abs(hessians).max() > 1.0  # the Hessian would differ

    def gradient(weights, step):
        z, dz = np.sinh(SLOPES * weights / 2), SLOPES / 2 * np.cosh(SLOPES * weights / 2)
        return np.sinh(z - 1.0) * dz + 0.3 * np.random.default_rng(step).normal(size=3)

    tx = plain(ro.phi.gauss_newton_curvature(decay=decay), alpha, rate)

    def update(updates, state, params=None):
        return tx.update(updates, state, params, outputs_fn=outputs, outputs_loss_fn=outputs_loss)

    actual = walk(tx._replace(update=update), START, gradient)
    np.testing.assert_allclose(actual, path, rtol=RTOL)


X = np.random.default_rng(0).normal(size=(6, 2))
LABELS = np.array([0, 1, 2, 2, 0, 1])


def logits(w):
    return jnp.asarray(X) @ w


def cross_entropy(z):
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(6), LABELS])


def softmax_matrix(w):
    """G of softmax regression written out: sum over examples of x x^T (diag(p) - p p^T) / n."""
    z = X @ w
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    total = np.zeros((6, 6))
    for x, q in zip(X, p, strict=True):
        total += np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q)) / 6
    return total


def test_probes_are_unbiased_where_the_matrix_is_full():
    w = np.random.default_rng(1).normal(size=(2, 3))
    matrix = softmax_matrix(w)
    phi = ro.phi.gauss_newton_curvature(decay=0.9999, key=3)
    params, probes = jnp.asarray(w), 20_000

    def step(state, _):
        values, state = phi.update(params, state, params, outputs_fn=logits, outputs_loss_fn=cross_entropy)
        return state, values

    _, values = jax.lax.scan(step, phi.init(params), length=probes)
    deviation = np.sqrt(np.sum(matrix**2, axis=1) - np.diag(matrix) ** 2).reshape(2, 3)
    error = np.abs(values[-1] - np.diag(matrix).reshape(2, 3))
    assert np.all(error < 5 * deviation / np.sqrt(probes / 1.5))
    assert np.all(deviation > 0.03)  # one probe says little


def test_it_is_the_hessian_where_the_model_is_linear():
    """Same key, same probes: both phis then see the same matrix."""
    w = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)))
    gauss_newton = ro.phi.gauss_newton_curvature(key=5)
    hutchinson = ro.phi.hutchinson_curvature(key=5)
    one, _ = gauss_newton.update(w, gauss_newton.init(w), w, outputs_fn=logits, outputs_loss_fn=cross_entropy)
    other, _ = hutchinson.update(w, hutchinson.init(w), w, obj_fn=lambda p: cross_entropy(logits(p)))
    assert np.all((one == 0) | np.isclose(one, other, rtol=1e-9))  # hutchinson takes the absolute value
    assert np.sum(one > 0) >= 3


def test_a_negative_estimate_counts_as_zero():
    """Two weights behind one output: the off-diagonal noise of a probe may exceed the diagonal."""
    mixing = jnp.array([[1.0, 3.0]])
    params = jnp.array([0.1, 0.2])
    seen = []
    for key in range(20):
        phi = ro.phi.gauss_newton_curvature(key=key)
        values, _ = phi.update(
            params,
            phi.init(params),
            params,
            outputs_fn=lambda w: mixing @ w,
            outputs_loss_fn=lambda z: 0.5 * jnp.sum(z**2),
        )
        seen.append(tuple(np.asarray(values).round(9)))
    assert set(seen) == {(4.0, 12.0), (0.0, 6.0)}  # 1 +- 3, 9 +- 3


def test_a_flax_loop_supplies_model_and_loss():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(model, nnx.Param)
    tx = ro.riemannian_sgd(0.5, phi=ro.phi.gauss_newton_curvature())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jnp.asarray(X)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: cross_entropy(m(x)))(model)
        optimizer.update(
            model, gradients, outputs_fn=lambda p: nnx.merge(graph, p)(x), outputs_loss_fn=cross_entropy
        )
        return loss

    losses = [float(step(model, optimizer)) for _ in range(50)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("missing", ["params", "outputs_fn", "outputs_loss_fn"])
def test_what_is_missing_is_named(missing):
    arguments = {"params": jnp.ones(3), "outputs_fn": outputs, "outputs_loss_fn": outputs_loss}
    del arguments[missing]
    phi = ro.phi.gauss_newton_curvature()
    with pytest.raises(ValueError, match=f"gauss_newton_curvature.*{missing}"):
        phi.update(jnp.ones(3), phi.init(jnp.ones(3)), **arguments)


@pytest.mark.parametrize("name", ["hutchinson_curvature", "gauss_newton_curvature"])
def test_a_loss_with_a_derivative_in_reverse_mode_alone_is_named(name):
    @jax.custom_vjp
    def model(w):
        return w**2

    model.defvjp(lambda w: (model(w), w), lambda w, cotangent: (2 * w * cotangent,))
    loss = jnp.sum
    given = {"obj_fn": lambda w: loss(model(w)), "outputs_fn": model, "outputs_loss_fn": loss}
    phi, w = getattr(ro.phi, name)(), jnp.ones(3)
    with pytest.raises(TypeError, match=rf"^{name} differentiates forward.*diffrax\.DirectAdjoint"):
        phi.update(2 * w, phi.init(w), w, **given)

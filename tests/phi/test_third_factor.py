"""from_value: descent at a rate in proportion to the loss, against the same written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

TARGET = np.array([1.0, -2.0, 0.5])


def loss(weights):
    return jnp.mean((weights - TARGET) ** 2)


def test_as_plasticity_the_rate_is_in_proportion_to_the_loss():
    """``w - rate * (1 + alpha * loss) * gradient`` in NumPy, in float64."""
    with jax.enable_x64(True):
        tx = optax.chain(
            ro.compute_metric(ro.phi.from_value(lambda value: value), 3.0, "inverse_metric"),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(0.05),
        )
        params = jnp.zeros(3)
        state, update = tx.init(params), jax.jit(tx.update)
        expected = np.zeros(3)
        for _ in range(20):
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = update(gradients, state, params, value=value)
            params = params + updates
            size = np.mean((expected - TARGET) ** 2)
            expected = expected - 0.05 * (1 + 3.0 * size) * 2 * (expected - TARGET) / 3
            np.testing.assert_allclose(params, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_all_weights_share_it_in_the_working_dtype(dtype):
    phi = ro.phi.from_value(jnp.sqrt)
    gradients = {"w": jnp.ones([2, 2], dtype), "b": jnp.ones([3], dtype)}
    values, _ = phi.update(gradients, phi.init(gradients), gradients, value=jnp.asarray(4.0, jnp.bfloat16))
    for name, leaf in values.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, np.full(gradients[name].shape, 2.0, np.float32))


def test_errors_name_the_remedy():
    phi = ro.phi.from_value(lambda value: value)
    weights = jnp.ones(2)
    with pytest.raises(ValueError, match=r"from_value.*value"):
        phi.update(weights, phi.init(weights), weights)
    with pytest.raises(ValueError, match=r"value must be the loss of the batch.*take its mean"):
        phi.update(weights, phi.init(weights), weights, value=jnp.ones(4))
    bad = ro.phi.from_value(lambda value: jnp.ones(2) * value)
    state = bad.init(weights)
    with pytest.raises(ValueError, match="function must return a number"):
        bad.update(weights, state, weights, value=1.0)
    with pytest.raises(TypeError, match="function must map the loss to a number"):
        ro.phi.from_value(ro.phi.activity())


def test_in_an_eigenbasis_it_is_the_same_rate():
    """One number for all weights is the same in any coordinates."""
    inner = optax.chain(
        ro.compute_metric(ro.phi.from_value(lambda value: value), 1.0), ro.scale_by_inverse_metric()
    )
    params = {"w": jax.random.normal(jax.random.key(0), (6, 4))}
    gradients = {"w": jax.random.normal(jax.random.key(1), (6, 4))}
    found = []
    for tx in (inner, ro.in_eigenbasis(inner)):
        updates, _ = tx.update(gradients, tx.init(params), params, value=3.0)
        found.append(updates["w"])
    np.testing.assert_allclose(found[0], gradients["w"] / 4, rtol=1e-6)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)

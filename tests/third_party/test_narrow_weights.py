"""Weights of 16 bits: bfloat16 with wide gradients under NNX, and float16 with zeros among its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro

from . import training
from .test_annotated_nnx import Network, pure

RULES = {
    **training.RULES,
    "bfloat16": lambda learning_rate: ro.low_precision_state(training.factored_sgd(learning_rate)),
    "soap": lambda learning_rate: ro.in_eigenbasis(
        optax.adam(learning_rate), sides="smaller", update_every=2
    ),
}
each_rule = pytest.mark.parametrize("rule", RULES)


def types(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_model_with_float32_gradients(rule):
    """The optimiser state is what it was made, at every step; the weights are float32's rounded at each."""
    model = Network(lambda initializer, names: initializer)
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, RULES[rule](training.RATE), wrt=nnx.Param)
    structure, before = jax.tree.structure(nnx.state(optimizer)), types(nnx.state(optimizer))

    @nnx.jit
    def step(model, optimizer):
        graph, params = nnx.split(model)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        gradients = jax.grad(lambda p: training.mean_square(nnx.merge(graph, p)(training.INPUTS)))(wide)
        optimizer.update(model, gradients)

    for _ in range(training.STEPS):
        step(model, optimizer)
        assert jax.tree.structure(nnx.state(optimizer)) == structure
        assert types(nnx.state(optimizer)) == before
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(pure(model)))
    found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), pure(model))
    # Where the two programs round a weight differently it is by 1/256 of it, a tenth of how far it has moved.
    training.assert_moved_alike(found, trained_with_rounded_weights(RULES[rule](training.RATE)), rtol=0.1)


def trained_with_rounded_weights(tx):
    """Return the weights after the same steps in float32, rounded to bfloat16 after each."""

    def rounded(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), tree)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(training.loss)(params), state, params)
        return rounded(optax.apply_updates(params, updates)), state

    params = rounded(training.weights())
    state = jax.jit(tx.init)(params)
    for _ in range(training.STEPS):
        params, state = step(params, state)
    return params


def half_weights():
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), training.weights())


@each_rule
def test_float16(rule):
    """Three digits of float32, state included."""
    params, state = training.train_plainly(RULES[rule](training.RATE), half_weights())
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))
    expected, _ = training.train_plainly(RULES[rule](training.RATE))
    found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    training.assert_moved_alike(found, expected, rtol=0.03)


@each_rule
def test_float16_gradients_of_zero_move_nothing(rule):
    """Floors such as 1e-8 are 0 in float16: a division of 0 by it would be NaN."""
    tx = RULES[rule](training.RATE)
    tx = tx if rule != "riemannian_adamw" else ro.riemannian_adamw(training.RATE, weight_decay=0.0)
    params = half_weights()
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(zeros, state, params)
        assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(updates))


@each_rule
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-7], ids=str)
def test_float16_gradients_with_some_zeros_are_finite(size, rule):
    """Dead units and gradients of the smallest numbers that float16 has."""
    tx = RULES[rule](training.RATE)
    params = half_weights()
    gradients = jax.tree.map(
        lambda leaf: (size * jnp.sign(leaf)).astype(jnp.float16).at[..., 0].set(0), params
    )
    state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for leaf in jax.tree.leaves((params, state)):
            assert np.isfinite(np.asarray(leaf, np.float32)).all()


EIGHT_BITS = [jnp.float8_e4m3fn, jnp.float8_e5m2]  # the first has no infinity: what is too large is NaN


def first_step(tx, dtype):
    values = np.array([[0.5, -1.0, 0.25], [1.5, 0.5, -0.125]])
    params = {"w": jnp.ones([2, 3], dtype)}
    updates, _ = tx.update({"w": jnp.asarray(values, dtype)}, tx.init(params), params)
    assert updates["w"].dtype == dtype
    return np.float32(updates["w"])


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("make", [ro.riemannian_adamw, ro.riemannian_schedule_free])
def test_the_first_step_of_weights_of_eight_bits_is_that_of_wide_ones(make, dtype):
    tx = make(4.0, **({"warmup_steps": 0} if make is ro.riemannian_schedule_free else {}))
    # The parts of a chain pass the step on in the dtype of the gradient: each of three rounds once.
    rounding = 3 * 2.0 ** -(jnp.finfo(dtype).nmant + 1)
    np.testing.assert_allclose(first_step(tx, dtype), first_step(tx, jnp.float32), rtol=rounding)


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=lambda dtype: dtype.__name__)
def test_an_eigenbasis_of_weights_of_eight_bits_steps_downhill(dtype):
    """Of a gradient rounded to 3 bits it takes smaller eigenvectors for noise, as of any other."""
    step = first_step(ro.riemannian_eigenbasis(4.0), dtype)
    assert np.isfinite(step).all()
    assert np.vdot(step, first_step(optax.sgd(1.0), dtype)) > 0

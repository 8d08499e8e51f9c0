"""With alpha = 0 the metric is 1 and the update is the base optimiser's, bit for bit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from . import as_users
from .adam_in_the_frame import adam_in_the_frame
from .contract import problem
from .contract.registry import ENTRIES

STEPS = 8
LEARNING_RATE = 0.037  # no power of two, so that rounding happens

SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "narrow momentum": {"momentum": 0.9, "accumulator_dtype": jnp.bfloat16},
}
ADAMW = {
    "plain": {},
    "no decay": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.1},
    "nesterov": {"nesterov": True, "b1": 0.8, "b2": 0.99, "eps": 1e-3},
    "mask": {"weight_decay": 0.1, "mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params)},
    "narrow momentum": {"mu_dtype": jnp.bfloat16},
}
ZEROS = {
    "number": 0.0,
    "integer": 0,
    "array": np.float32(0.0),
    "schedule": optax.constant_schedule(0.0),
}


def weights():
    rng = np.random.default_rng(1)
    return {
        "matrix": jnp.asarray(rng.standard_normal([5, 7]), jnp.float32),
        "vector": jnp.asarray(rng.standard_normal(11), jnp.float32),
        "narrow": jnp.asarray(rng.standard_normal([3, 3]), jnp.bfloat16),
    }


def trajectory(tx, jit, extra_args=None):
    """Weights and updates of a few steps on fixed noisy gradients, some of them zero, some huge."""
    rng = np.random.default_rng(2)
    params = weights()
    state = tx.init(params)

    def update(gradients, state, params):
        return optax.with_extra_args_support(tx).update(gradients, state, params, **(extra_args or {}))

    update = as_users.jit(update) if jit else update
    history = []
    for step in range(STEPS):
        gradients = jax.tree.map(
            lambda p, s=step: jnp.asarray(rng.standard_normal(p.shape) * 10.0 ** (s - 4) * (s != 3), p.dtype),
            params,
        )
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        history.append((updates, params))
    return history


def with_state_dtype(options):
    """Translate Optax's name for the dtype of momentum into ours."""
    names = {"accumulator_dtype": "state_dtype"}
    return {names.get(name, name): value for name, value in options.items()}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_riemannian_sgd_is_sgd(options, jit):
    ours = riemannian_sgd(LEARNING_RATE, alpha=0.0, **with_state_dtype(options))
    chex.assert_trees_all_equal(trajectory(ours, jit), trajectory(optax.sgd(LEARNING_RATE, **options), jit))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
def test_riemannian_sgd_with_decay_is_sgd_with_decay(jit):
    mask = {"matrix": True, "vector": False, "narrow": True}
    ours = riemannian_sgd(LEARNING_RATE, momentum=0.9, alpha=0.0, weight_decay=0.1, mask=mask)
    base = optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(0.1, mask), optax.scale_by_learning_rate(LEARNING_RATE)
    )
    chex.assert_trees_all_equal(trajectory(ours, jit), trajectory(base, jit))


def adamw_in_float32(learning_rate, weight_decay=1e-4, mask=None, **options):
    """Return ``optax.adamw`` with Adam in float32: in bfloat16 its means would stall, in float16 be NaN."""
    adam = optax.scale_by_adam(**options)

    def wide(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    def update(updates, state, params=None):
        steps, state = adam.update(wide(updates), state, wide(params))
        return jax.tree.map(lambda step, old: step.astype(old.dtype), steps, updates), state

    return optax.chain(
        optax.GradientTransformation(lambda params: adam.init(wide(params)), update),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def without_narrow(history):
    return [tuple({n: x for n, x in tree.items() if n != "narrow"} for tree in pair) for pair in history]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("options", ADAMW.values(), ids=ADAMW)
def test_adam_in_the_frame_is_adamw(options, jit):
    """Of narrow weights it is adamw with its means in float32."""
    ours = trajectory(adam_in_the_frame(LEARNING_RATE, alpha=0.0, **options), jit)
    optaxs = trajectory(optax.adamw(LEARNING_RATE, **options), jit)
    chex.assert_trees_all_equal(without_narrow(ours), without_narrow(optaxs))
    chex.assert_trees_all_equal(ours, trajectory(adamw_in_float32(LEARNING_RATE, **options), jit))


@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
@pytest.mark.parametrize("alpha", ZEROS.values(), ids=ZEROS)
def test_every_kind_of_zero(alpha, role):
    ours = riemannian_sgd(LEARNING_RATE, momentum=0.9, alpha=alpha, role=role, record=True)
    base = optax.sgd(LEARNING_RATE, momentum=0.9)
    chex.assert_trees_all_equal(trajectory(ours, True), trajectory(base, True))


FLOAT32 = {"hyperparam_dtype": jnp.float32}  # by default the rate is rounded to the narrowest leaf


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
def test_an_injected_zero(jit):
    """Traced: the compiler cannot know that alpha is 0."""
    ours = optax.inject_hyperparams(ro.riemannian_sgd, **FLOAT32)(LEARNING_RATE, momentum=0.9, alpha=0.0)
    base = optax.inject_hyperparams(optax.sgd, **FLOAT32)(LEARNING_RATE, momentum=0.9)
    # An injected momentum is float32, and Optax's trace of a narrow weight takes its dtype; ours does not.
    ours, base = (without_narrow(trajectory(tx, jit)) for tx in (ours, base))
    chex.assert_trees_all_equal(ours, base)


def test_an_injected_zero_in_adam_in_the_frame():
    ours = optax.inject_hyperparams(adam_in_the_frame, **FLOAT32)(LEARNING_RATE, alpha=0.0)
    base = optax.inject_hyperparams(optax.adamw, **FLOAT32)(LEARNING_RATE)
    theirs = trajectory(base, False)
    chex.assert_trees_all_equal(without_narrow(trajectory(ours, False)), without_narrow(theirs))


@pytest.mark.parametrize("value", [np.inf, np.nan, -np.inf], ids=str)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
def test_a_phi_that_is_not_finite(value, jit):
    phi = ro.phi.from_weights(lambda w: jnp.full_like(w, value))
    ours = riemannian_sgd(LEARNING_RATE, phi=phi, alpha=0.0)
    chex.assert_trees_all_equal(trajectory(ours, jit), trajectory(optax.sgd(LEARNING_RATE), jit))


# With a conformal factor, alpha = 0 is not E = 1 but E = the mean of phi.
PHIS = [n for n in ENTRIES if n.startswith(("phi.", "compute_metric")) and ":conformal" not in n]


@pytest.mark.parametrize("name", PHIS)
def test_every_phi(name):
    entry = ENTRIES[name]
    extra_args = entry.extra_args(problem.loss)
    ours = trajectory(entry.make(LEARNING_RATE, alpha=0.0), True, extra_args)
    chex.assert_trees_all_equal(ours, trajectory(optax.sgd(LEARNING_RATE), True))


def test_not_zero_is_something_else():
    ours = trajectory(riemannian_sgd(LEARNING_RATE, alpha=1e-3), True)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(ours, trajectory(optax.sgd(LEARNING_RATE), True))

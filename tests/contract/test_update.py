"""What every caller of ``update`` may rely on, whoever the caller is."""

import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from . import problem


@pytest.fixture
def extra_args(entry):
    return entry.extra_args(problem.loss)


@pytest.mark.parametrize("turn", [1.0, 1 + 0.5j], ids=["real", "complex"])
def test_the_gradients_given_are_those_of_the_loss(turn):
    params = jax.tree.map(lambda leaf: turn * leaf, problem.params())
    derived = jax.tree.map(jnp.conj, jax.grad(problem.real_loss)(params))
    chex.assert_trees_all_close(problem.gradients(params), derived, rtol=1e-6)


def test_moves_every_weight_downhill_and_keeps_structure_and_dtype(entry, extra_args):
    tx = entry.build()
    params = problem.params()
    gradients = problem.gradients(params)
    updates, _ = tx.update(gradients, tx.init(params), params, **extra_args)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
    chex.assert_tree_all_finite(updates)
    for update, gradient in zip(jax.tree.leaves(updates), jax.tree.leaves(gradients), strict=True):
        if entry.mixes_weights:
            assert np.vdot(update, gradient) < 0
        else:
            assert np.all(np.sign(update) == -np.sign(gradient))


def test_accepts_extra_arguments_it_does_not_know(entry, extra_args):
    tx = entry.build()
    params = problem.params()
    arguments = (problem.gradients(params), tx.init(params), params)
    plain = tx.update(*arguments, **extra_args)
    with_more = tx.update(*arguments, **extra_args, value=jnp.ones([]), an_argument_nobody_expects=1)
    chex.assert_trees_all_equal(with_more, plain)


def test_jitted_equals_eager_and_compiles_once(entry, extra_args, caplog):
    tx = entry.build()
    update = problem.jitted(tx, extra_args)
    params = problem.params()
    state, eager_state = tx.init(params), tx.init(params)
    for step in range(3):
        gradients = problem.gradients(params, step)
        caplog.clear()
        with jax.log_compiles(True):
            updates, state = update(gradients, state, params)
        compiled = [r for r in caplog.records if r.getMessage().startswith("Compiling")]
        assert bool(compiled) == (step == 0)
        if step == 0 or not entry.loops:
            eager, eager_state = tx.update(gradients, eager_state, params, **extra_args)
            chex.assert_trees_all_close(updates, eager, rtol=1e-5, atol=1e-7)
            chex.assert_trees_all_close(
                problem.readable(state), problem.readable(eager_state), rtol=1e-5, atol=1e-7
            )
        params = jax.tree.map(jnp.add, params, updates)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64], ids=lambda dtype: dtype.__name__)
def test_no_dtype_is_promoted_implicitly(entry, dtype):
    """What Optax promotes inside of an entry is not ours to forbid; it is allowed where the entry says so."""
    with jax.enable_x64(dtype == jnp.float64):
        params = problem.params(dtype)
        trace = problem.tracer(entry.build(), entry.extra_args(problem.loss), params)
        promotion = "standard" if entry.optax_promotes else "strict"
        with jax.numpy_dtype_promotion(promotion), jax.numpy_rank_promotion("raise"):
            updates, _ = trace()
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_state_from_jitted_init_equals_eager(entry):
    tx = entry.build()
    chex.assert_trees_all_equal(jax.jit(tx.init)(problem.params()), tx.init(problem.params()))


@pytest.fixture
def quick_collections():
    """Leave older objects out of the collections of the search for leaks: late in a run a second each."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_leaks_no_tracer(entry, extra_args, quick_collections):
    params = problem.params()
    trace = problem.tracer(entry.build(), extra_args, params)
    with jax.checking_leaks():
        updates, _ = trace()
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


def test_remembers_nothing_outside_of_its_state(entry, extra_args):
    tx = entry.build()
    params = problem.params()
    state = tx.init(params)
    first = tx.update(problem.gradients(params), state, params, **extra_args)
    tx.update(problem.gradients(params, step=5), state, params, **extra_args)
    again = tx.update(problem.gradients(params), state, params, **extra_args)
    chex.assert_trees_all_equal(again, first)


def test_vmap_over_learning_rates_equals_a_loop(entry, extra_args):
    rates = jnp.array([0.5, 1.0, 2.0]) * entry.learning_rate
    params = problem.params()
    gradients = problem.gradients(params)

    def first_update(rate):
        tx = entry.make(rate)
        return tx.update(gradients, tx.init(params), params, **extra_args)[0]

    if entry.loops:
        first_update = jax.jit(first_update)
    together = jax.vmap(first_update)(rates)
    for index, rate in enumerate(rates):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        chex.assert_trees_all_close(one, first_update(rate), rtol=1e-5)


def test_follows_a_schedule_of_the_learning_rate(entry):
    """On a fixed sequence of gradients each update is that of the rate of its step."""
    schedule = optax.piecewise_constant_schedule(entry.learning_rate, {1: 3.0})
    params = problem.params()

    def updates_of(tx):
        state, history = tx.init(params), []
        update = problem.updater(entry, tx)
        for step in range(3):
            updates, state = update(problem.gradients(params, step), state, params)
            history.append(updates)
        return history

    slow, fast = updates_of(entry.build()), updates_of(entry.make(3 * entry.learning_rate))
    found = updates_of(entry.make(schedule))
    if entry.averages_weights:  # the average remembers the slower step
        chex.assert_trees_all_close(found[0], slow[0], rtol=1e-5)
        for leaf, one, other in zip(*(jax.tree.leaves(h[2]) for h in (found, slow, fast)), strict=True):
            assert np.all((np.abs(leaf) > np.abs(one)) & (np.abs(leaf) < np.abs(other)))
        return
    chex.assert_trees_all_close(found, [slow[0], *fast[1:]], rtol=1e-5)


def test_follows_a_schedule_of_alpha(entry):
    """A schedule that inject_hyperparams evaluates and one that the transformation evaluates agree."""
    schedule = optax.linear_schedule(0.0, 2.0, 2)
    own, _ = problem.run(entry, entry.make(entry.learning_rate, alpha=schedule))
    injected = optax.inject_hyperparams(entry.make)(learning_rate=entry.learning_rate, alpha=schedule)
    chex.assert_trees_all_close(own, problem.run(entry, injected)[0], rtol=1e-5)
    constant, _ = problem.run(entry, entry.make(entry.learning_rate, alpha=0.0))
    chex.assert_trees_all_close(own[0], constant[0], rtol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(own[2], constant[2], rtol=1e-5)


def test_injected_hyperparameters_change_nothing(entry):
    tx = entry.make(entry.learning_rate, alpha=1.0)
    injected = optax.inject_hyperparams(entry.make)(learning_rate=entry.learning_rate, alpha=1.0)
    history, state = problem.run(entry, tx)
    injected_history, injected_state = problem.run(entry, injected, jit=jax.jit)
    chex.assert_trees_all_close(injected_history, history, rtol=1e-5)
    chex.assert_trees_all_close(injected_state.inner_state, state, rtol=1e-5, atol=1e-5)
    assert set(injected_state.hyperparams) == {"learning_rate", "alpha"}


def test_multi_steps_equals_the_mean_gradient(entry, extra_args):
    tx = entry.build()
    accumulated = optax.MultiSteps(tx, every_k_schedule=2)
    accumulate, update = problem.jitted(accumulated, extra_args), problem.updater(entry, tx)
    params = problem.params()
    state, plain_state = accumulated.init(params), tx.init(params)
    for step in range(2):
        first, second = problem.gradients(params, step), problem.gradients(params, step + 1)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
        expected, plain_state = update(mean, plain_state, params)
        nothing, state = accumulate(first, state, params)
        updates, state = accumulate(second, state, params)
        chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, params))
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)
        params = jax.tree.map(jnp.add, params, updates)


def test_init_accepts_abstract_parameters(entry):
    tx = entry.build()
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), problem.params())
    chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tx.init(abstract)),
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tx.init(problem.params())),
    )


def test_map_params_finds_the_state_that_mirrors_parameters(entry):
    tx = entry.build()
    state = tx.init(problem.params())
    chex.assert_trees_all_equal(optax.tree.map_params(tx, lambda leaf: leaf, state), state)
    shapes = {leaf.shape for leaf in jax.tree.leaves(problem.params())}
    found = []
    optax.tree.map_params(tx, lambda leaf: found.append(leaf.shape), state)
    mirrors = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape in shapes]
    if entry.reduces_state:  # what belongs to a leaf need not have its shape
        assert set(mirrors) <= set(found)
    else:
        assert sorted(found) == sorted(mirrors)


def test_donated_buffers(entry, extra_args):
    """Two donated calls, and a donated call after an eager one, equal those without donation."""
    tx = entry.build()
    expected, _ = problem.run(entry, tx, steps=2)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params, **extra_args)
        return jax.tree.map(jnp.add, params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    for first_step in (donating, jax.jit(step) if entry.loops else step):
        params = problem.params()
        state = tx.init(params)
        for index, take in enumerate((first_step, donating)):
            before, copied = params, jax.tree.map(jnp.copy, params)
            params, state = take(params, state, problem.gradients(params, index))
            assert all(leaf.is_deleted() == (take is donating) for leaf in jax.tree.leaves(before))
            moved = jax.tree.map(lambda a, b: a - b, params, copied)
            chex.assert_trees_all_close(moved, expected[index], rtol=1e-3, atol=1e-6)


def test_state_after_an_eager_update_shares_no_buffer_with_its_arguments(entry, extra_args):
    """A buffer that stands in the state and in the parameters or gradients could not be donated with both."""
    tx = entry.build()
    params = problem.params()
    gradients = problem.gradients(params)
    initial = tx.init(params)
    _, state = tx.update(gradients, initial, params, **extra_args)
    donated = jax.tree.leaves(problem.readable((params, gradients, state)))
    jax.jit(lambda leaves: [leaf + leaf for leaf in leaves], donate_argnums=0)(donated)
    assert all(leaf.is_deleted() for leaf in donated)

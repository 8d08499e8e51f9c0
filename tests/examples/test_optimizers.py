import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax.examples import data, datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.schedule import warmup_constant, warmup_cosine
from riemann_optax.examples.train import loop
from riemann_optax.examples.train.optimizers import (
    OPTIMIZERS,
    MetricOptions,
    build_baseline,
    build_metric,
    energy_spent,
    explain,
    recorded_metric,
    schedule_for,
    state_bytes,
)
from riemann_optax.examples.train.phis import PHIS
from riemann_optax.optimizers.eigenbasis import GRADIENT_SHARE


@pytest.fixture(scope="module")
def problem():
    dataset = datasets.load("digits")
    small = models.MLP(64, 10, width=8, depth=1, rngs=nnx.Rngs(0))
    return loop.Problem(models.functional(small), dataset)


def take_steps(problem, transformation, steps, batch_size=64):
    indices = np.stack([data.batch_indices(1200, batch_size, 0, step) for step in range(steps)])
    training = loop.start(problem, transformation).training
    step = jax.jit(lambda *arguments: loop.train_steps(problem, transformation, *arguments))
    return step(training, problem.parts["train"], indices)


def is_schedule_free(node):
    return type(node).__name__ == "ScheduleFreeState"


def test_the_schedule_warms_up_for_a_twentieth_and_ends_near_zero():
    rates = np.asarray([warmup_cosine(2.0, 200)(count) for count in range(200)])
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[10:], 1 + np.cos(np.pi * np.arange(190) / 190), rtol=1e-6, atol=1e-6)
    assert np.all(np.diff(rates[9:]) <= 0)


def test_the_schedule_takes_a_traced_rate():
    traced = jax.jit(lambda peak: warmup_cosine(peak, 50)(7))(0.3)
    assert traced == pytest.approx(float(warmup_cosine(0.3, 50)(7)))


def test_the_schedule_of_a_schedule_free_optimiser_is_a_warm_up_alone():
    for name in ("riemannian_schedule_free", "schedule_free_adamw"):
        rates = np.asarray([schedule_for(name, 2.0, 400)(count) for count in range(400)])
        np.testing.assert_allclose(rates, 2.0 * np.minimum(1, np.arange(1, 401) / 100), rtol=1e-6)
    assert schedule_for("riemannian_adamw", 2.0, 400)(399) < 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_options_it_is_the_alias_as_it_is(problem, optimizer):
    rate = 0.02
    built = build_metric(MetricOptions(optimizer), schedule_for(optimizer, rate, 5))
    # With the recorders of the trainer: of another program XLA rounds otherwise, and bfloat16 shows it.
    alias = functools.partial(getattr(ro, optimizer), record=True)
    by_hand = alias(rate) if optimizer == "riemannian_schedule_free" else alias(warmup_cosine(rate, 5))
    by_hand = optax.chain(by_hand, ro.track_energy())
    ours, theirs = (take_steps(problem, transformation, 5)[0] for transformation in (built, by_hand))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8),
        ours.parameters,
        theirs.parameters,
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_explanation_names_the_phi_and_the_numbers_that_are_run(problem, optimizer):
    parameters = problem.model.parameters
    said = explain(MetricOptions(optimizer))
    (measured,) = {leaf.phi for leaf in ro.describe(getattr(ro, optimizer)(0.1), parameters).leaves}
    summary = PHIS[measured].summary
    if optimizer == "riemannian_eigenbasis":  # whose phi sees a mixture
        share = GRADIENT_SHARE
        summary = f"root of the running mean of {share:g} gradient**2 + {1 - share:g} momentum**2"
    assert said.endswith(f"phi: {summary[0].lower()}{summary[1:]}")
    scale = "1 + 1 phi" if optimizer == "riemannian_sgd" else "(m + 10000 phi) / 10001"
    assert f"divided by E = {scale}" in said
    assert ("eigenvector" in said) is (optimizer == "riemannian_eigenbasis")
    assert "multiplied by 1/E = 1 + 3 phi" in explain(
        MetricOptions(alpha=3.0, role="inverse_metric", conformal="none")
    )


@pytest.mark.parametrize("optimizer", ["riemannian_sgd", "riemannian_adamw"])
@pytest.mark.parametrize("role", ["metric", "inverse_metric"])
def test_both_optimisers_learn_under_both_roles(problem, optimizer, role):
    options = MetricOptions(optimizer, "activity", 1.0, role, "none", momentum=0.9)
    # The one sums its steps and the other averages them.
    rate = {"riemannian_sgd": 0.01, "riemannian_adamw": 0.1}[optimizer]
    _, (losses, _) = take_steps(problem, build_metric(options, rate), 100)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_the_role_turns_the_metric_around(problem):
    rates = {}
    for role in ("metric", "inverse_metric"):
        options = MetricOptions("riemannian_sgd", alpha=1.0, role=role)
        training, _ = take_steps(problem, build_metric(options, 1e-9), 1)
        rates[role] = recorded_metric(training.optimizer_state)
    np.testing.assert_allclose(rates["metric"].metric_max, rates["inverse_metric"].rate_max, rtol=1e-5)
    np.testing.assert_allclose(rates["metric"].rate_mean, rates["inverse_metric"].metric_mean, rtol=1e-5)


def test_alpha_zero_is_sgd(problem):
    options = MetricOptions("riemannian_sgd", alpha=0.0, momentum=0.9)
    ours, _ = take_steps(problem, build_metric(options, 0.03), 5)
    theirs, _ = take_steps(problem, build_baseline("sgd", 0.03, {"momentum": 0.9, "nesterov": True}), 5)
    jax.tree.map(np.testing.assert_array_equal, ours.parameters, theirs.parameters)


def test_in_an_eigenbasis_it_learns_and_shows_its_metric(problem):
    options = MetricOptions(eigenbasis=2, alpha=30.0)
    training, (losses, _) = take_steps(problem, build_metric(options, 3e-2), 20)
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    assert recorded_metric(training.optimizer_state).metric_max.max() > 0
    (state,) = optax.tree.get_all_with_path(training.optimizer_state, "right_bases")
    assert jax.tree.leaves(state[1])


def test_weight_decay_shrinks_a_weight_without_gradient_as_adamw_does():
    weights = {"w": jnp.array([1.0, -2.0])}
    gradients = jax.tree.map(jnp.zeros_like, weights)

    def change(transformation):
        updates, _ = transformation.update(gradients, transformation.init(weights), weights, obj_fn=None)
        return updates["w"]

    ours = change(build_metric(MetricOptions(weight_decay=0.5), 0.1))
    np.testing.assert_allclose(ours, change(build_baseline("adamw", 0.1, {"weight_decay": 0.5})), rtol=1e-6)
    np.testing.assert_allclose(ours, -0.05 * weights["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("lbfgs", {}),
        ("polyak_sgd", {}),
        ("muon", {}),
        ("sophia", {}),
        ("schedule_free_adamw", {}),
    ],
)
def test_baselines_of_every_sort_train(problem, name, options):
    training, (losses, _) = take_steps(problem, build_baseline(name, 0.01, options), 6)
    assert losses[-1] < losses[0]
    assert energy_spent(training.optimizer_state) > 0
    assert recorded_metric(training.optimizer_state) is None


def test_a_schedule_free_optimiser_is_scored_at_its_average(problem):
    theirs, ours = build_baseline("schedule_free_adamw", 0.01, {}), MetricOptions("riemannian_schedule_free")
    for transformation in (theirs, build_metric(ours, warmup_constant(0.1, 1))):
        training, _ = take_steps(problem, transformation, 4)
        averaged = loop.evaluation_parameters(training)
        assert not np.allclose(averaged["head"]["kernel"], training.parameters["head"]["kernel"])
        (state,) = (
            node
            for node in jax.tree.leaves(training.optimizer_state, is_leaf=is_schedule_free)
            if is_schedule_free(node)
        )
        stands = state.z if hasattr(state, "z") else state.iterate
        # The gradient was taken nine tenths of the way from where the base stands to the average.
        between = jax.tree.map(lambda z, x: 0.1 * z + 0.9 * x, stands, averaged)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
            between,
            training.parameters,
        )
    training, _ = take_steps(problem, build_baseline("adamw", 0.01, {}), 4)
    assert loop.evaluation_parameters(training) is training.parameters


@pytest.mark.parametrize("name", ["no_such_thing", "chain", "Params", "clip", "tree", "__name__"])
def test_names_that_are_no_optimiser_are_refused(name):
    with pytest.raises(InputError, match=f"^--baseline {name} is not an Optax optimiser"):
        build_baseline(name, 0.1, {})


def test_options_that_the_baseline_does_not_take_are_refused():
    with pytest.raises(
        InputError, match=r"^--baseline-option beta is not an argument of sgd: it takes learning_rate"
    ):
        build_baseline("sgd", 0.1, {"beta": 0.9})


def test_energy_is_the_sum_of_what_was_applied():
    weights = {"w": jnp.array([1.0, -2.0])}
    transformation = build_baseline("sgd", 0.5, {})
    _, state = transformation.update({"w": jnp.array([2.0, -4.0])}, transformation.init(weights), weights)
    assert energy_spent(state) == 3.0


def test_state_bytes_counts_every_array():
    weights = {"w": jnp.zeros(100)}
    moments = state_bytes(optax.adam(0.1).init(weights))
    assert moments == 2 * 400 + 4

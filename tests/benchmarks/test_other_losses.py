"""Other losses: a run is a plain loop, and each problem is what its name says, seen from elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import wasserstein_distance

import riemann_optax as ro
from benchmarks.other_losses import __main__ as command
from benchmarks.other_losses import problems, runs
from benchmarks.shared.records import Records
from riemann_optax.examples.schedule import warmup_cosine

STEPS = 4


def by_hand(problem, name, rate, seed):
    """Train one step after the other."""
    first, last, learning = jax.random.split(jax.random.key(seed), 3)
    params, rest = problem.init(first)
    averaged = name == "ro.riemannian_schedule_free"
    if averaged:
        tx = ro.riemannian_schedule_free(optax.linear_schedule(0.0, rate, 1), warmup_steps=0)
    else:
        tx = optax.adamw(warmup_cosine(rate, STEPS))
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, rest, state, key):
        gradients, rest = problem.gradients(params, rest, key)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), rest, state

    for key in jax.random.split(learning, STEPS):
        params, rest, state = step(params, rest, state, key)
    return problem.measures(ro.eval_params(state, params) if averaged else params, rest, last)


@pytest.mark.parametrize("name", ["optax.adamw", "ro.riemannian_schedule_free"])
@pytest.mark.parametrize("problem", problems.PROBLEMS)
def test_a_run_is_a_plain_loop(problem, name):
    problem = problems.PROBLEMS[problem]
    found = runs.run(problem, runs.METHODS[name], STEPS, [0.001, 0.01], [3, 4])
    for measure, value in by_hand(problem, name, 0.01, 3).items():
        np.testing.assert_allclose(found[measure][1, 0], value, rtol=2e-3, err_msg=measure)


def test_the_gradients_of_generator_and_critic_are_of_different_losses():
    """The critic goes down its loss; the generator does not go up that one: it has the other logarithm."""
    key = jax.random.key(0)
    params, _ = problems.PROBLEMS["gan"].init(key)
    gradients, _ = problems.PROBLEMS["gan"].gradients(params, (), key)
    data_key, code_key = jax.random.split(key)
    real, codes = problems.ring(data_key, problems.DRAWN), jax.random.normal(code_key, (problems.DRAWN, 4))

    def likelihood(params):
        sure = jax.nn.sigmoid(problems.outputs(params["critic"], real))
        made = problems.outputs(params["critic"], problems.outputs(params["generator"], codes))
        return -jnp.log(sure).mean() - jnp.log(1 - jax.nn.sigmoid(made)).mean()

    def fooling(generator):
        made = problems.outputs(params["critic"], problems.outputs(generator, codes))
        return -jnp.log(jax.nn.sigmoid(made)).mean()

    wanted = jax.grad(likelihood)(params)["critic"], jax.grad(fooling)(params["generator"])
    for ours, theirs in zip((gradients["critic"], gradients["generator"]), wanted, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, theirs)


def test_the_distance_is_scipys_seen_from_each_side():
    first, second = np.random.default_rng(0).normal(size=(2, 50, 2))
    angles = np.arange(32) * np.pi / 32
    sides = np.stack([np.cos(angles), np.sin(angles)])
    wanted = np.mean([wasserstein_distance(first @ side, second @ side) for side in sides.T])
    np.testing.assert_allclose(problems.sliced_distance(first, second), wanted, rtol=1e-5)


@pytest.mark.parametrize("push", [-1.0, 1.0])
def test_the_cart_obeys_the_equations_of_lagrange(push):
    """Cart of 1 kg, pole of 0.1 kg and half a length of 0.5 m, as published."""
    state = jnp.array([0.3, -0.7, 0.1, 0.9])
    place, speed, angle, turning = np.asarray(problems.cart(state, push) - state, float) / 0.02
    np.testing.assert_allclose([place, angle], state[jnp.array([1, 3])], rtol=1e-4)
    sine, cosine = np.sin(0.1), np.cos(0.1)
    force = 1.1 * speed + 0.05 * (turning * cosine - 0.9**2 * sine)
    np.testing.assert_allclose(force, 10 * push, rtol=1e-3)
    np.testing.assert_allclose(0.5 * 4 / 3 * turning + speed * cosine, 9.8 * sine, rtol=1e-3)


def test_the_policy_learns_from_what_comes_after_an_action():
    """REINFORCE with the mean of the other episodes as a baseline, summed by hand."""
    params, _ = problems.PROBLEMS["policy"].init(jax.random.key(1))
    key = jax.random.key(2)
    keys = jax.random.split(key, problems.EPISODES)
    standing = np.asarray(jax.vmap(problems.episode, (None, 0))(params, keys)[1])
    gain = np.array([[row[time:].sum() for time in range(problems.HORIZON)] for row in standing])
    gain = gain - gain.mean(0)
    gain /= gain.std()

    def weighed(params):
        return -jnp.mean(jax.vmap(problems.episode, (None, 0))(params, keys)[0] * gain)

    found, _ = jax.jit(problems.PROBLEMS["policy"].gradients)(params, (), key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        found,
        jax.jit(jax.grad(weighed))(params),
    )


def test_statistics_made_anew_are_those_of_all_that_was_learned():
    """By NumPy, in both layers; those of the training are another."""
    problem = problems.PROBLEMS["normalised"]
    params, running = problem.init(jax.random.key(0))
    learned, (pixels, labels) = problems.digits()["train"][0], problems.digits()["heldout"]
    seen, shown = learned, pixels
    for layer, norm in (("Dense_0", "BatchNorm_0"), ("Dense_1", "BatchNorm_1")):
        seen, shown = (x @ np.asarray(params[layer]["kernel"], float) for x in (seen, shown))
        mean, deviation = seen.mean(0), np.sqrt(seen.var(0) + 1e-5)
        scale, bias = params[norm]["scale"], params[norm]["bias"]
        seen, shown = (np.maximum(scale * (x - mean) / deviation + bias, 0) for x in (seen, shown))
    logits = shown @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    found = problem.measures(params, running, jax.random.key(1))
    np.testing.assert_allclose(found["statistics made anew"], wanted, rtol=1e-4)
    assert abs(found["statistics of the training"] - wanted) > 0.01


def test_the_rate_is_chosen_on_seeds_that_are_not_reported(tmp_path):
    """What is best on the fresh seeds alone has no say."""
    records = Records(tmp_path / "other_losses.jsonl")
    size = runs.FULL._replace(tuning_seeds=range(1), seeds=range(10, 12))
    losses = np.full((len(runs.EXPONENTS), 3), 5.0)
    losses[2] = 1.0, 4.0, 2.0  # best in tuning
    losses[7] = 3.0, 0.0, 0.0
    losses[8, 0] = np.nan
    key = {
        "problem": "gan",
        "method": "optax.adamw",
        "steps": 3000,
        "exponents": list(runs.EXPONENTS),
        "seeds": [0, 10, 11],
    }
    records.put(key, {"distance": losses})
    found = runs.row(records, "gan", "optax.adamw", size)
    assert found == (2.0 ** runs.EXPONENTS[2], {"distance": 3.0}, {"distance": 1.0})


def test_the_command_runs(tmp_path, capsys):
    arguments = ["--quick", "--problems", "factorisation", "--out", str(tmp_path)]
    command.main(arguments)
    first = capsys.readouterr().out
    assert "ro.riemannian_schedule_free" in first
    command.main(arguments)  # from the records
    assert capsys.readouterr().out == first

"""The time-to-target suite: equal budgets, honest counting, and a quick run of all of it."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.shared import statistics
from benchmarks.shared.records import Records
from benchmarks.time_to_target import __main__ as command
from benchmarks.time_to_target import freeze, summary
from benchmarks.time_to_target.defaults import choose, left_out
from benchmarks.time_to_target.methods import METHODS, MOMENTUM, OURS, TUNED_ADAMW, Method
from benchmarks.time_to_target.runs import Run, Trainer
from benchmarks.time_to_target.search import FULL, Search, Trial, Tuning
from benchmarks.time_to_target.targets import TARGETS, Targets
from benchmarks.time_to_target.task import Task
from benchmarks.time_to_target.tasks import TASKS

SMALL = Tuning((-6, -4, -2, 0), fine_trials=32, fine_octaves=2.0, widenings=2)


def bowl(steps=40):
    """A quadratic bowl that gradient descent at rate 1/2 halves at every step, on every seed."""

    def value(params):
        return jnp.sum(params**2) / 2

    return Task(
        steps=steps,
        init=lambda seed: jnp.full(3, 2.0),
        sample=lambda key: None,
        loss=lambda params, batch: value(params),
        followed=value,
        tuning_seeds=range(2),
        evaluations=steps,
    )


def test_a_run_is_the_loop_written_by_hand():
    """Gradient descent at a constant rate: loss and energy in closed form."""
    method = Method(lambda schedule: optax.sgd(0.5), ({},))
    run = Trainer(bowl(), method)(1.0, {}, seed=0)
    left = 2.0 * 0.5 ** np.arange(1, 41)
    np.testing.assert_allclose(run.loss, 1.5 * left**2, rtol=1e-5)
    np.testing.assert_allclose(run.energy, 3 * (2.0 - left), rtol=1e-5)
    np.testing.assert_array_equal(run.steps, np.arange(1, 41))


def test_the_rate_warms_up_and_cools_down():
    """Gradient descent moves by rate times gradient: here by the schedule's own values."""
    slope = Task(
        steps=40,
        init=lambda seed: jnp.zeros([]),
        sample=lambda key: None,
        loss=lambda params, batch: -params,
        followed=lambda params: params,
        evaluations=40,
    )
    moved = np.diff(Trainer(slope, METHODS["SGD"])(2.0, {}, seed=0).loss, prepend=0.0)
    np.testing.assert_allclose(moved[:2], [1.0, 2.0], rtol=1e-6)  # two steps of warm-up
    progress = np.arange(38) / 38
    np.testing.assert_allclose(moved[2:], 1 + np.cos(np.pi * progress), rtol=1e-3, atol=1e-5)


def test_what_diverged_once_does_not_count_as_recovered():
    run = Run(np.arange(1, 5), np.array([3.0, 1.0, np.inf, np.inf]), np.ones(4), np.nan, 0.0)
    assert run.steps_to(1.0) == 2
    assert run.steps_to(0.5) == np.inf
    blown = Method(lambda schedule: optax.sgd(-1e4), ({},))
    losses = Trainer(bowl(), blown)(1.0, {}, seed=0).loss
    assert np.isinf(losses[-1])


def test_a_step_holds_weights_state_and_a_batch():
    """Momentum keeps one number per weight and AdamW two; what is donated counts once."""
    weights, batch = 1000, 300

    task = bowl()._replace(
        init=lambda seed: jnp.zeros(weights),
        sample=lambda key: jax.random.normal(key, [batch]),
        loss=lambda params, noise: jnp.sum(params**2) / 2 + jnp.vdot(noise, params[:batch]),
    )
    held = {name: Trainer(task, METHODS[name]).step_bytes() for name in ("SGD", MOMENTUM, TUNED_ADAMW)}
    for kept, (name, count) in enumerate(held.items()):
        least = 4 * (weights * (1 + kept) + batch)  # bytes of a float32
        assert least <= count <= least + 4 * weights + 256, name  # a gradient too, and some scalars


def test_memory_is_recorded_without_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "__call__", None)
    monkeypatch.setattr(Trainer, "step_bytes", lambda trainer: 1000)
    arguments = ["--memory", "--tasks", "saddle", "--optimizers", "SGD", TUNED_ADAMW, "--out", str(tmp_path)]
    command.main(arguments)
    records = Records(tmp_path / "saddle.jsonl", [])
    assert summary.step_bytes(records) == {"SGD": 1000, TUNED_ADAMW: 1000}
    monkeypatch.setattr(Trainer, "step_bytes", None)
    command.main(arguments)  # recorded


def test_every_method_has_as_many_trials():
    for name, method in METHODS.items():
        assert FULL.fine_trials % len(method.points) == 0, name
        assert FULL.fine_trials // len(method.points) >= 4, name
        assert len({json.dumps(point) for point in method.points}) == len(method.points), name


def test_trials_are_read_again_when_there_are_more(tmp_path):
    records = Records(tmp_path / "bowl.jsonl", [])
    for count, phase in enumerate(("tuning, coarse", "tuning, fine"), start=1):
        key = {"contestant": "SGD", "phase": phase, "point": {}, "rate_exponents": [0.0]}
        records.put(key, {"steps": {"far": [[3.0]]}, "final": [[0.1]], "late": [[0.1]]})
        assert [len(summary.trials(records)["SGD"]) for _ in range(2)] == [count, count]


@pytest.mark.parametrize("name", [MOMENTUM, TUNED_ADAMW, "SGD"])
def test_trials_made_are_those_declared(name, tmp_path):
    """Counted in the records; only what continues a best rate on the edge may come on top."""
    records = Records(tmp_path / "bowl.jsonl", [])
    trials = Search(name, "bowl", bowl(), Targets(0.1, 1e-6), records, SMALL).tune()
    coarse, fine = len(SMALL.coarse), SMALL.fine_trials
    assert coarse + fine <= len(trials) <= coarse + fine + 2 * SMALL.widenings
    assert len(summary.trials(records)[name]) == len(trials)
    assert {json.dumps(t.point) for t in trials} == {json.dumps(p) for p in METHODS[name].points}


def test_tuning_finds_newtons_step(tmp_path):
    """On the bowl a step at rate 1 is all it takes; the warm-up's first step is at half of the rate tuned."""
    search = Search("SGD", "bowl", bowl(), Targets(1e-4, 1e-10), Records(tmp_path / "b.jsonl", []), SMALL)
    assert search.best(search.tune()).exponent == pytest.approx(1.0, abs=0.2)


def test_a_miss_is_worse_than_any_hit_and_then_the_final_loss_decides():
    def trial(steps, final):
        return Trial({}, 0.0, np.array(final), np.array(final), {"far": np.array(steps)})

    hit, half, miss, worse = (
        trial([90.0, 100.0], [1.0, 1.0]),
        trial([10.0, np.inf], [1.0, 1.0]),
        trial([np.inf, np.inf], [2.0, 2.0]),
        trial([np.inf, np.inf], [3.0, 3.0]),
    )
    scores = [t.score("far", 100) for t in (hit, half, miss, worse)]
    assert scores == sorted(scores)


def test_expected_best_of_k_is_the_mean_over_all_choices():
    scores = np.random.default_rng(0).normal(size=7)
    for k in (1, 3, 7):
        by_hand = np.mean([min(choice) for choice in itertools.combinations(scores, k)])
        assert statistics.expected_best(scores, k) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in TASKS if name in TARGETS])
def test_a_task_can_be_learned_and_its_seeds_are_apart(name):
    task, targets = TASKS[name](), TARGETS[name]
    params = task.init(3)
    assert targets.far <= targets.near < float(task.followed(params))
    gradients = jax.jit(jax.grad(task.loss))(params, task.sample(jax.random.key(0)))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients))
    assert not set(task.tuning_seeds) & set(task.fresh_seeds)
    assert len(task.fresh_seeds) >= 10


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """The command itself, twenty steps of three methods on two tasks."""
    out = tmp_path_factory.mktemp("records")
    command.main(["--quick", "--out", str(out)])
    return out


def test_the_quick_run_is_resumed_without_running_anything(quick_run, capsys, monkeypatch):
    files = {path.name: path.read_bytes() for path in quick_run.iterdir()}

    def never(*arguments):
        raise AssertionError("run again")

    monkeypatch.setattr(Search, "_run", never)
    command.main(["--quick", "--out", str(quick_run)])
    assert {path.name: path.read_bytes() for path in quick_run.iterdir()} == files
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*command.QUICK_TASKS, *command.QUICK_METHODS))


def test_a_rerun_of_one_cell_agrees(quick_run, tmp_path):
    command.main(["--quick", "--tasks", "regression", "--optimizers", OURS, "--out", str(tmp_path)])
    first, again = (
        summary.chosen(Records(folder / "regression.quick.jsonl", []))[OURS]
        for folder in (quick_run, tmp_path)
    )
    np.testing.assert_array_equal(first.steps, again.steps)
    np.testing.assert_array_equal(first.final, again.final)


def test_defaults_are_not_chosen_on_the_task_they_are_judged_on(quick_run):
    """Made worthless on one task, a point is dropped by the others but not by that task itself."""
    records = {task: Records(quick_run / f"{task}.quick.jsonl", []) for task in ("regression", "digits_mlp")}
    for task, other in (("regression", "digits_mlp"), ("digits_mlp", "regression")):
        alone = choose({other: records[other]}, (OURS,))
        assert left_out(records, task, (OURS,)).point == METHODS[OURS].points[alone[1]]


def test_rounding_up():
    assert freeze.round_up(1.2301) == 1.24
    assert freeze.round_up(0.0123) == 0.0123


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--tasks", "none"], "invalid choice"), (["--optimizers", "none"], "invalid choice")],
)
def test_a_bad_argument_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.parse(arguments)
    assert message in capsys.readouterr().err

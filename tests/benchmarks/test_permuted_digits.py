"""Permuted digits: the Fisher information by definition, the two methods by hand, and a small run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from benchmarks.permuted_digits import __main__ as command
from benchmarks.permuted_digits import problem, runs


def test_permutations_and_split_are_the_seed_own():
    first, again, other = (problem.make_data(seed, 3) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.permutations, again.permutations)
    assert np.any(np.asarray(first.permutations) != np.asarray(other.permutations))
    assert np.all(np.sort(first.permutations) == np.arange(64))
    assert len(first.train_labels) + len(first.test_labels) == 1797
    assert first.train_inputs.max() == 1


def test_fisher_information_is_the_expected_squared_score():
    params = problem.draw_network(jax.random.key(0))
    inputs = problem.make_data(0, 1).train_inputs[:3]
    expected = jax.tree.map(np.zeros_like, params)
    for x in inputs:
        probabilities = jax.nn.softmax(problem.logits(params, x))
        for label in range(10):
            score = jax.grad(problem.loss)(params, x[None], jnp.array([label]))
            expected = jax.tree.map(lambda e, s, p=probabilities[label]: e + p * s**2 / 3, expected, score)
    actual = problem.mean_fisher(params, inputs)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-9), actual, expected)


@pytest.mark.parametrize("name", runs.METHODS)
def test_one_step_after_a_boundary_by_hand(name):
    """F = 6, lambda = 8, rate 0.5 of a schedule at 0.25: E = 1 + 0.5 * 8 * 6 for the metric, 1 without."""
    tx = runs.METHODS[name](8.0, lambda count: 0.25)
    params = jnp.array([1.0])
    _, state = tx.update(jnp.zeros(1), tx.init(params), params)
    state = ro.consolidate(state, params, jnp.array([6.0]))
    moved = jnp.array([1.5])
    update, _ = tx.update(jnp.array([2.0]), state, moved)
    metric = 1 + 0.5 * 8.0 * 6.0 if name == "metric" else 1.0
    np.testing.assert_allclose(
        optax.apply_updates(moved, update), 1.5 - 0.25 * (2 + 8 * 6 * 0.5) / metric, rtol=1e-6
    )


def test_without_a_penalty_both_methods_are_gradient_descent():
    size = runs.Size(tasks=2, epochs=1, seeds=range(2), strengths=())
    tables = [runs.run(make, np.zeros(1), size) for make in runs.METHODS.values()]
    assert tables[0].shape == (1, 2, 2, 2)
    np.testing.assert_allclose(*tables, atol=0.01)
    learned = tables[0][0, :, np.arange(2), np.arange(2)]
    assert learned.min() > 0.3  # one epoch, where guessing gives 0.1


def test_claim_wants_every_strength_above_both_floors():
    good = np.full((3, 2, 2), 0.95)
    rows = {"metric": dict.fromkeys(command.CLAIMED, good), "penalty": {}}
    assert command.claim_holds(rows)
    assert not command.claim_holds({"metric": {5.0: good}, "penalty": {}})
    for task, value in ((0, 0.2), (1, 0.87)):
        bad = good.copy()
        bad[:, -1, task] = value
        assert not command.claim_holds({"metric": {**rows["metric"], 8.0: bad}, "penalty": {}})


def test_command_writes_its_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK", runs.Size(tasks=2, epochs=1, seeds=range(1), strengths=(8.0,)))
    command.main(["--quick", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "permuted_digits.json").read_text())
    assert [(row["method"], row["lambda"]) for row in written["rows"]] == [
        (name, strength) for name in runs.METHODS for strength in (0.0, 8.0)
    ]
    assert written["claim"]["holds"] is False  # one strength of three
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command.main(["--quick", "--out", str(tmp_path / "file")])
    assert "--out must be a folder" in capsys.readouterr().err

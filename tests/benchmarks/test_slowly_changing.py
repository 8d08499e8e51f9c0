"""The slowly-changing regression: its parts by hand, and a small run that goes on where it stopped."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.slowly_changing import __main__ as command
from benchmarks.slowly_changing import report, runs
from benchmarks.slowly_changing.methods import FULL, METHODS, PARTS
from benchmarks.slowly_changing.problem import (
    BITS,
    HIDDEN,
    SLOW,
    draw_learner,
    draw_target,
    draw_task,
    learn_task,
    loss,
    predict,
)


def test_target_is_the_published_net():
    target = draw_target(jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 2, BITS).astype(np.float32)
    expected = float(target.output_bias)
    for unit in range(100):
        w, b = np.asarray(target.weights[:, unit]), float(target.bias[unit])
        assert set(np.unique(w)) == {-1.0, 1.0}
        threshold = 0.7 * (BITS + 1) - (BITS - w.sum() + b) / 2
        expected += float(target.output[unit]) * (w @ x + b > threshold)
    assert float(target(jnp.asarray(x))) == expected


def test_slow_bits_stay_through_a_task_and_the_others_are_fair():
    inputs = np.asarray(draw_task(jax.random.key(1), 4000))
    assert set(np.unique(inputs)) == {0.0, 1.0}
    assert np.all(inputs[:, :SLOW] == inputs[0, :SLOW])
    assert np.all(np.abs(inputs[:, SLOW:].mean(0) - 0.5) < 4 * 0.5 / np.sqrt(4000))
    others = np.asarray(draw_task(jax.random.key(2), 1))
    assert np.any(others[0, :SLOW] != inputs[0, :SLOW])


def test_learner_is_20_5_1_and_its_steps_are_online():
    params = draw_learner(jax.random.key(0))
    assert params.shape == (BITS * HIDDEN + HIDDEN + HIDDEN + 1,)
    hidden, bias = params[: BITS * HIDDEN].reshape(BITS, HIDDEN), params[BITS * HIDDEN : (BITS + 1) * HIDDEN]
    output, output_bias = params[-HIDDEN - 1 : -1], params[-1]
    assert 0 < np.abs(hidden).max() <= np.sqrt(6 / BITS)
    assert not np.any(bias)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, BITS), jnp.float32)
    by_hand = np.maximum(x @ hidden + bias, 0) @ output + output_bias
    np.testing.assert_allclose(predict(params, x), by_hand, rtol=1e-5)

    tx = METHODS["SGD"].make(0.01, jax.random.key(0))
    inputs, targets = jnp.stack([x, x]), jnp.array([1.0, 2.0])
    end, _, errors = learn_task(tx, params, tx.init(params), inputs, targets)
    np.testing.assert_allclose(errors[0], (by_hand - 1.0) ** 2, rtol=1e-5)
    middle = params - 0.01 * jax.grad(loss)(params, x, 1.0)
    np.testing.assert_allclose(end, middle - 0.01 * jax.grad(loss)(middle, x, 2.0), rtol=1e-5, atol=1e-7)


def test_every_subset_of_the_three_parts_is_there_once():
    assert FULL.name == "metric + anchor + noise"
    assert set(PARTS) == {"metric", "anchor", "noise"}
    assert len(METHODS) == 2**3 + 2


def test_full_chain_is_the_recipe():
    """The first step by hand: -100 g / E with noise of 0.07 / sqrt(E), where E = 1 + 12500 |g|."""
    rate, gradient = 100.0, jnp.array([0.0, 0.3])

    @jax.jit
    @jax.vmap
    def first_step(seed):
        tx = FULL.make(rate, jax.random.key(seed))
        params = jnp.ones(2)
        return tx.update(gradient, tx.init(params), params)[0]

    means = np.asarray(first_step(jnp.arange(200)))
    metric = 1 + 12_500 * np.asarray(gradient)
    size = 0.07 / np.sqrt(metric)
    np.testing.assert_array_less(
        np.abs(means.mean(0) + rate * np.asarray(gradient) / metric), 4 * size / np.sqrt(200)
    )
    np.testing.assert_allclose(means.std(0), size, rtol=4 / np.sqrt(2 * 200))


SMALL = runs.Size(tasks=2, steps=50, tuning_seeds=range(2), seeds=range(2, 4))


def test_runs_are_kept_and_lanes_do_not_depend_on_each_other(tmp_path, monkeypatch):
    path = tmp_path / "runs.json"
    both = runs.Records(path, SMALL).get(FULL.name, (50.0, 100.0), SMALL.seeds)
    assert np.shape([run.whole for run in both]) == (2, 2)
    alone = runs.run(FULL.name, [100.0], range(3, 4), SMALL)[0]
    np.testing.assert_allclose(both[1].whole[1], alone.whole[0], rtol=1e-4)
    monkeypatch.setattr(runs, "run", None)  # whatever is in the file is not run again
    assert runs.Records(path, SMALL).get(FULL.name, (50.0, 100.0), SMALL.seeds) == both


def test_a_grid_is_widened_while_its_best_rate_is_on_the_edge():
    class Bowl:
        """Records of a method whose error is smallest at a rate of 1/8 of its grid's first."""

        def get(self, name, rates, seeds):
            return [runs.Run([np.log(8 * rate / first) ** 2], [0.0]) for rate in rates]

    method = METHODS["SGD"]
    first = method.rates[0]
    row = report.make_row(method, Bowl(), SMALL)
    assert (row.rate, row.edge) == (first / 8, True)  # three times further, and still on the edge
    assert list(row.tuning) == [first / 8, first / 4, first / 2, *method.rates]


def test_command_writes_its_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "ALL", [FULL, METHODS["SGD"]])
    monkeypatch.setattr(command, "QUICK", SMALL)
    command.main(["--quick", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "slowly_changing.json").read_text())
    assert [row["method"] for row in written["rows"]] == [FULL.name, "SGD"]
    assert not (tmp_path / "slowly_changing.runs.json").exists()
    assert len(written["rows"][1]["error_per_seed"]) == 2
    printed = capsys.readouterr().out
    assert "+- " in printed
    assert f"{report.CLAIM}: {'holds' if written['claim']['holds'] else 'DOES NOT HOLD'}" in printed


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command.main(["--quick", "--out", str(tmp_path / "file")])
    assert "--out must be a folder" in capsys.readouterr().err

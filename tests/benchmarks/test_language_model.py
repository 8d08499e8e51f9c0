"""The language-model benchmark: a real run, tuning on a widening grid, going on after a stop, the report."""

import json

import numpy as np
import pytest

from benchmarks import eigenbasis_cost
from benchmarks.language_model import report, runs
from benchmarks.language_model.contestants import CONTESTANTS, MUON, OURS, OURS_SELDOM


def test_a_run_trains():
    size = runs.QUICK._replace(steps=40)
    run = runs.trainer(CONTESTANTS[0], size)(0.01, 0)
    assert np.log(256) > run.curve[0] > run.curve[-1]
    assert 0 < run.validation < np.log(256)


@pytest.fixture
def faked(monkeypatch):
    """Training whose loss is lowest at the rate 0.01 * 2**3; the calls that were made."""
    calls = []

    def trainer(contestant, size):
        def run(rate, seed):
            calls.append((contestant.name, rate, seed))
            loss = 1.4 + abs(np.log2(rate / 0.01) - 3) + 0.01 * seed + 0.03 * (contestant.name != OURS)
            return runs.Run(loss, loss + 0.1, [3.0, loss], 1.0)

        return run

    monkeypatch.setattr(runs, "trainer", trainer)
    return calls


def test_the_grid_widens_for_all_and_a_stopped_benchmark_goes_on(faked, tmp_path):
    size = runs.Size(tuning_seeds=(0, 1), rates=(0, 1))
    records = runs.Records(tmp_path / "runs.jsonl", size)
    best, tuning = runs.tune(CONTESTANTS, records, size)
    tuned = {contestant.name for contestant in CONTESTANTS if contestant.rate_of is None}
    assert best == dict.fromkeys(tuned, 3)
    assert all(sorted(by_rate) == [0, 1, 2, 3, 4] for by_rate in tuning.values())
    assert len(faked) == len(set(faked)) == len(tuned) * 5 * 2
    again = runs.Records(tmp_path / "runs.jsonl", size)
    assert runs.tune(CONTESTANTS, again, size) == (best, tuning)
    assert len(faked) == len(tuned) * 5 * 2


def test_the_report_says_what_holds(faked, tmp_path):
    size = runs.Size(seeds=(0, 1))
    records = runs.Records(tmp_path / "runs.jsonl", size)
    rows = [
        report.Row(c.name, 3, c.rate_of is None, {3: 1.4, 4: 2.4}, [records.get(c, 3, s) for s in size.seeds])
        for c in CONTESTANTS
    ]
    assert list(report.claims(rows).values()) == [True, True, True]
    worse = [row._replace(runs=[r._replace(loss=2.0) for r in row.runs]) for row in rows]
    at_fault = {OURS: [False, False, True], OURS_SELDOM: [True, True, False], MUON: [True, True, True]}
    for name, expected in at_fault.items():
        mixed = [w if w.name == name else row for w, row in zip(worse, rows, strict=True)]
        assert list(report.claims(mixed).values()) == expected
    report.write_record(tmp_path / "record.json", ["command"], size, rows)
    assert json.loads((tmp_path / "record.json").read_text())["rows"][0]["loss"]["mean"] == pytest.approx(
        1.435
    )


def test_state_is_as_small_as_claimed():
    for make, limit in eigenbasis_cost.OPTIMISERS.values():
        if limit is not None:
            assert eigenbasis_cost.state_bytes(make()) <= limit


def test_operations_are_those_counted_by_hand():
    """A square matrix n x n: turning 12 n^3 an update; a refresh of a side 2 + 8/3 + 2 + 2 * 2 n^3."""
    import jax
    import jax.numpy as jnp

    n = 8
    params = jax.ShapeDtypeStruct((n, n), jnp.float32)
    tx = eigenbasis_cost.metric()
    traced = jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params)).jaxpr
    costs = list(eigenbasis_cost.operations(traced))
    assert sum(cost for _, cost, branch in costs if not branch) == 12 * n**3
    refreshing = sum(cost for _, cost, branch in costs if branch)
    assert refreshing == pytest.approx(2 * (2 + 8 / 3 + 2 + 2 * 2) * n**3)

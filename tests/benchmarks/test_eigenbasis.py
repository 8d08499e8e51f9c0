"""The eigenbasis benchmark: a real run, tuning on a widening grid, going on after a stop, report and cost."""

import inspect
import json

import jax
import numpy as np
import pytest

from benchmarks.eigenbasis import __main__ as command
from benchmarks.eigenbasis import cost, forms, problems, report, runs, sizes, timing
from benchmarks.eigenbasis.methods import METHODS, MUON, OURS, OURS_SELDOM
from benchmarks.eigenbasis.sizes import SCALES
from benchmarks.shared.experiment import Size
from benchmarks.shared.records import Records, write_record

LENGTH = dict(runs.QUICK.length)
SMALL = Size(LENGTH, tuning_seeds=(0, 1), seeds=(0, 1))


def test_a_run_trains():
    run = runs.trainer(METHODS["Adam"], **LENGTH | {"steps": 40})(0.01, 0)
    assert np.log(256) > run.curve[0] > run.curve[-1]
    assert 0 < run.validation < np.log(256)


@pytest.fixture
def faked(monkeypatch):
    """Training whose loss is lowest at the rate 0.01 * 2**3; the calls that were made."""
    calls = []
    names = {id(method): name for name, method in METHODS.items()}

    def trainer(method, **length):
        name = names[id(method)]

        def run(rate, seed):
            calls.append((name, rate, seed))
            loss = 1.4 + abs(np.log2(rate / 0.01) - 3) + 0.01 * seed + 0.03 * (name != OURS)
            return runs.Run(loss, loss + 0.1, [3.0, loss], 1.0)

        return run

    monkeypatch.setattr(runs, "trainer", trainer)
    return calls


def test_the_grid_widens_for_all_and_a_stopped_benchmark_goes_on(faked, tmp_path):
    grid = runs.Grid((0, 1), widenings=4)
    best, tuning = runs.Laboratory(Records(tmp_path / "runs.jsonl"), SMALL).tune(grid)
    tuned = {name for name, method in METHODS.items() if method.point_of is None}
    assert best == dict.fromkeys(tuned, 3)
    assert all(sorted(by_rate) == [0, 1, 2, 3, 4] for by_rate in tuning.values())
    assert len(faked) == len(set(faked)) == len(tuned) * 5 * 2
    again = runs.Laboratory(Records(tmp_path / "runs.jsonl"), SMALL)
    assert again.tune(grid) == (best, tuning)
    assert len(faked) == len(tuned) * 5 * 2


def test_a_run_that_diverged_is_infinite_when_it_is_read_again(tmp_path, monkeypatch):
    def diverged(method, **length):
        return lambda rate, seed: runs.Run(np.inf, np.inf, [], 1.0)

    monkeypatch.setattr(runs, "trainer", diverged)
    for _ in range(2):
        run = runs.Laboratory(Records(tmp_path / "runs.jsonl"), SMALL).run(OURS, 0, 0)
        assert run == runs.Run(np.inf, np.inf, [], 1.0)


def test_the_report_says_what_holds(faked, tmp_path):
    laboratory = runs.Laboratory(Records(tmp_path / "runs.jsonl"), SMALL)
    rows = [
        report.Row(
            name,
            3,
            method.point_of is None,
            {3: 1.4, 4: 2.4},
            [laboratory.run(name, 3, seed) for seed in SMALL.seeds],
        )
        for name, method in METHODS.items()
    ]
    assert list(report.claims(rows).values()) == [True, True, True]
    worse = [row._replace(runs=[r._replace(loss=2.0) for r in row.runs]) for row in rows]
    at_fault = {OURS: [False, False, True], OURS_SELDOM: [True, True, False], MUON: [True, True, True]}
    for name, expected in at_fault.items():
        mixed = [w if w.name == name else row for w, row in zip(worse, rows, strict=True)]
        assert list(report.claims(mixed).values()) == expected


def test_the_command_writes_both_records_and_the_picture(faked, tmp_path, capsys):
    command.main(["--quick", "--parts", "quality", "cost", "--out", str(tmp_path)])
    quality = json.loads((tmp_path / "language_model.json").read_text())
    # On seeds 10 and 11 at the rate 0.02, the best of a grid that is not widened: 1.4 + 2 + 0.105 + 0.03.
    assert quality["rows"][0]["loss"]["mean"] == pytest.approx(3.535)
    assert "jax" in quality["versions"]
    price = json.loads((tmp_path / "eigenbasis_cost.json").read_text())
    assert price["state_bytes_per_weight"]["Adam"] == 8
    assert (tmp_path / "language_model.png").stat().st_size > 10_000
    assert not (tmp_path / "language_model.runs.jsonl").exists()
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_state_is_as_small_as_claimed():
    for make, limit in cost.OPTIMISERS.values():
        if limit is not None:
            assert cost.state_bytes(make()) <= limit


def test_operations_are_those_counted_by_hand():
    """A square matrix n x n: turning 12 n^3 an update; a refresh of a side 2 + 8/3 + 2 + 2 * 2 n^3."""
    import jax
    import jax.numpy as jnp

    n = 8
    params = jax.ShapeDtypeStruct((n, n), jnp.float32)
    tx = cost.metric(refresh_together=None)
    traced = jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params)).jaxpr
    costs = list(cost.operations(traced))
    assert sum(spent for _, spent, branch in costs if not branch) == 12 * n**3
    refreshing = sum(spent for _, spent, branch in costs if branch)
    assert refreshing == pytest.approx(2 * (2 + 8 / 3 + 2 + 2 * 2) * n**3)


def test_the_forms_are_compared_and_a_stopped_comparison_goes_on(tmp_path, capsys):
    kept, names = tmp_path / "runs.jsonl", [forms.ADAMW, forms.MUON, forms.ONE_SIDED]
    arguments = ["--quick", "--out", str(tmp_path), "--runs", str(kept), "--only", *names]
    command.main(arguments)
    record = json.loads((tmp_path / "eigenbasis_forms.json").read_text())
    assert [row["form"] for row in record["rows"]] == names
    by_name = {row["form"]: row for row in record["rows"]}
    assert by_name[forms.ADAMW]["state"] == pytest.approx(2, abs=0.01)
    assert 1 < by_name[forms.ONE_SIDED]["state"] < 2
    assert by_name[forms.ADAMW]["refresh"] is None
    assert by_name[forms.ADAMW]["longest"] >= by_name[forms.ADAMW]["step"]  # of the same steps
    costs = by_name[forms.ONE_SIDED]
    whole = costs["step"] + costs["refresh"]  # the mean of those steps, unless refreshes took no time
    assert costs["refresh"] == 0 or costs["longest"] >= whole * (1 - 1e-3)
    assert np.all(np.isfinite(by_name[forms.ONE_SIDED]["validation_by_seed"]))
    lines = kept.read_text().count("\n")
    shown = capsys.readouterr().out
    assert "state" in shown
    assert f"{forms.ONE_SIDED}: state" in shown
    command.main(arguments)
    assert kept.read_text().count("\n") == lines


@pytest.mark.parametrize(
    ("adamw", "step_over_adamw"),
    [
        (((4.0, 8.0), (4.0, 4.1)), 6.0 / 4.05),  # the machine became slower: measured again
        (((4.0, 8.0), (4.0, 9.0), (4.0, 6.0), (4.0, 7.0)), 6.0 / 5.0),  # it is never steady
    ],
)
def test_a_cost_is_a_ratio_of_the_same_process(monkeypatch, adamw, step_over_adamw):
    """Between the two measurements of AdamW that differ least; steps of 5 ms, and 1 of refreshes."""
    costs = iter(
        cost
        for before, after in adamw
        for cost in (
            timing.Cost(2.0, 1.0, before, None, before),
            timing.Cost(1.5, 3.0, 5.0, 1.0, 9.0),
            timing.Cost(2.0, 1.5, after, None, after),
        )
    )
    monkeypatch.setattr(timing, "measure", lambda *arguments: next(costs))
    found = timing.measure_beside(forms.FORMS[forms.ADAMW], forms.FORMS[forms.ONE_SIDED], {})
    assert next(costs, None) is None
    assert found.over(timing.Cost(2.0, 99.0, 99.0, None, 99.0)) == pytest.approx((step_over_adamw, 3.0))
    older = found._replace(step_over_adamw=None, compiling_over_adamw=None)
    assert older.over(timing.Cost(2.0, 2.0, 3.0, None, 3.0)) == (2.0, 1.5)


def test_rows_of_other_forms_stay_in_the_record(tmp_path):
    """Written with a row by hand: a form that is run again replaces its own row and no other."""
    path, size = tmp_path / "eigenbasis_forms.json", SCALES["quick"].size
    cost_of_none = forms.Cost(2.0, 1.0, 1.0, None, 1.0)

    def row(name, loss):
        run = runs.Run(loss, loss + 0.1, [3.0, loss], 1.0)
        return forms.Row(name, 0.01, [run, run._replace(validation=np.inf)], cost_of_none)

    write_record(path, [], forms.content(size, [row(forms.MUON, 2.0), row(forms.ADAMW, 2.5)]))
    merged = forms.with_recorded([row(forms.MUON, 1.0), row(forms.ONE_SIDED, 1.5)], path, size)
    assert [(one.name, one.runs[0].loss) for one in merged] == [
        (forms.ADAMW, 2.5),
        (forms.MUON, 1.0),
        (forms.ONE_SIDED, 1.5),
    ]
    again, fresh = (forms.content(size, rows)["rows"][0] for rows in (merged, [row(forms.ADAMW, 2.5)]))
    assert again == fresh
    with pytest.raises(ValueError, match="is of another protocol"):
        forms.with_recorded(merged, path, SCALES["small"].size)


def test_steps_to_a_loss_are_read_from_the_mean_curve():
    curves = [[3.0, 2.0, 1.0], [3.0, 2.2, 1.0]]
    cost_of_none = forms.Cost(2.0, 1.0, 1.0, None, 1.0)
    row = forms.Row("form", 0.01, [runs.Run(1.0, 1.0, curve, 1.0) for curve in curves], cost_of_none)
    assert row.reached(2.1) == 2 * runs.BIN
    assert row.reached(0.5) == np.inf


@pytest.mark.parametrize("model", sizes.MODELS)
@pytest.mark.parametrize(
    ("name", "millions", "seeds"),
    [
        *(("small", 0.12, 10), ("full", 0.63, 10), ("long", 0.12, 3), ("full_long", 0.63, 3)),
        *(("20m_cpu", 20, 3), ("20m", 20, 3), ("120m", 120, 3)),
    ],
)
def test_the_sizes_are_what_they_are_called(model, name, millions, seeds):
    size = sizes.MODELS[model][name].size
    assert len(size.seeds) >= seeds
    assert size.length["steps"] % runs.BIN == 0
    assert not set(size.seeds) & set(size.tuning_seeds)
    length = size.length
    shape = {name: value for name, value in length.items() if name not in ("steps", "batch")}
    model = jax.eval_shape(lambda: problems.load(**shape).model(0).parameters)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == pytest.approx(millions * 1e6, rel=0.15)


def test_a_comparison_out_of_time_goes_on_and_a_text_may_be_ones_own(tmp_path, capsys):
    text = tmp_path / "own.txt"
    text.write_bytes(bytes(range(256)) * 40)
    arguments = ["--quick", "--out", str(tmp_path), "--text-file", str(text), "--only", forms.ADAMW]
    command.main([*arguments, "--minutes", "0"])
    assert "0 minutes are over, before AdamW: rate" in capsys.readouterr().out
    assert not (tmp_path / "eigenbasis_forms.json").exists()
    command.main(arguments)
    (row,) = json.loads((tmp_path / "eigenbasis_forms.json").read_text())["rows"]
    assert np.all(np.isfinite(row["validation_by_seed"]))


def test_two_texts_of_one_name_are_two(tmp_path):
    """Runs of one were taken for runs of the other, and both stood in one record."""
    texts = [tmp_path / folder / "corpus.txt" for folder in ("a", "b")]
    for text, content in zip(texts, (b"a", b"b"), strict=True):
        text.parent.mkdir()
        text.write_bytes(content)
    assert len({runs.digest(text) for text in texts}) == 2
    size = SCALES["quick"].size
    record = tmp_path / "record.json"
    write_record(record, [], forms.content(size, [], texts[0]))
    assert forms.with_recorded([], record, size, texts[0]) == []
    for other in (texts[1], None):
        with pytest.raises(ValueError, match="is of another protocol"):
            forms.with_recorded([], record, size, other)


def test_the_sources_of_python_are_one_text(tmp_path):
    text = sizes.python_sources(tmp_path).read_bytes()
    assert len(text) > 5e6
    assert inspect.getsource(json.loads).encode() in text

"""The report: its numbers are those of the records, also where something misses."""

from pathlib import Path

import numpy as np
import pytest

import riemann_optax as ro
from benchmarks.report import __main__ as command
from benchmarks.report import claims, compose, continual, details, memory, page, short, suite
from benchmarks.shared.markdown import number
from benchmarks.shared.records import Records
from benchmarks.time_to_target import __main__ as time_to_target
from benchmarks.time_to_target import tasks
from benchmarks.time_to_target.methods import (
    DEFAULT_BETAS,
    DROP_IN,
    EIGENBASIS,
    FACTORED,
    LEAF_MEAN,
    METHODS,
    MOMENTUM,
    MUON,
    NADAMW,
    NORM_MATCHED,
    OURS,
    PERMUTED,
    RATE_ONLY,
    TUNED_ADAMW,
    UNTUNED,
)
from benchmarks.time_to_target.runs import Run
from benchmarks.time_to_target.search import MISS, Search
from benchmarks.time_to_target.targets import TARGETS

ROOT = Path(command.__file__).parents[1]
TASKS = ("regression", "saddle", "plateau")
# Steps to lose a factor of ten at the best rate, 1/8 for all; twice as many where a rate is off by two.
SLOWNESS = {
    DROP_IN: 9.0,
    OURS: 10.0,
    FACTORED: 12.0,
    TUNED_ADAMW: 16.0,
    NADAMW: 12.0,
    DEFAULT_BETAS: 20.0,
    MOMENTUM: 40.0,
    "Nesterov": 50.0,
    EIGENBASIS: 8.0,
    MUON: 4.0,
    PERMUTED: 80.0,
    LEAF_MEAN: 20.0,
    NORM_MATCHED: 40.0,
}


def fake_run(search, exponent, point, seed):
    """A run that falls by a factor of ten in as many steps as the table above says."""
    slowness = SLOWNESS.get(search.name, 25.0) * 2.0 ** abs(exponent + 3)
    steps = np.arange(1, 401)
    return Run(steps, 10.0 ** (-steps / slowness), steps * slowness, 0.5, 2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of all methods on three tasks, and of what the defaults would be."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "_run", fake_run)
        patch.setattr(time_to_target, "sanity", fake_sanity)
        for stage in ([], ["--defaults"]):
            time_to_target.main([*stage, "--out", str(out / "time_to_target"), "--tasks", *TASKS])
    return out


@pytest.fixture(scope="module")
def found(folder):
    """What the report knows of them."""
    return suite.load(folder / "time_to_target")


def fake_sanity(search):
    key = search.key | {"phase": "untrained", "seeds": [0]}
    return search.records.get(key, lambda: {"untrained": [1.0], "zero_rate": [1.0]})


def test_ratios_are_those_of_the_runs(found):
    """Steps to a target are slowness times its digits, so that ratios are those of the slownesses."""
    values = {claim.text: claim for claim in claims.claims(found)}
    assert values[f"steps to the near target, {FACTORED} over {MOMENTUM}"].value == pytest.approx(
        0.3, abs=0.02
    )
    assert values[f"steps to the far target, {FACTORED} over {NADAMW}"].value == pytest.approx(1.0)
    assert not values[f"steps to the far target, {FACTORED} over {NADAMW}"].met
    assert values[f"steps to the far target, {EIGENBASIS} over {TUNED_ADAMW}"].met
    muon = values[f"steps to the far target, {EIGENBASIS} over {MUON}"]
    assert muon.value == pytest.approx(2.0, abs=0.1)
    assert not muon.met


def test_controls_keep_the_share_of_the_gain_they_have(found):
    for row in suite.identified(found):
        assert row.base == MOMENTUM
        assert row.shares[LEAF_MEAN] == pytest.approx(np.log(40 / 20) / np.log(40 / 10), abs=0.05)
        assert row.shares[NORM_MATCHED] == pytest.approx(0.0, abs=0.05)
        assert row.shares[PERMUTED] < 0


def test_the_page_is_made_of_the_records_alone(folder, monkeypatch):
    def never(*arguments):
        raise AssertionError("something was run")

    monkeypatch.setattr(Search, "_run", never)
    command.main(["--results", str(folder), "--out", str(folder / "REPORT.md")])
    report, tables = (folder / "REPORT.md").read_text(), (folder / "TABLES.md").read_text()
    assert all(name in tables for name in METHODS)
    assert all(name in report for name, method in METHODS.items() if method.role == "ours")
    assert all(task in tables for task in TASKS)
    assert "**missed**" in report
    assert "nan" not in report + tables
    for name in command.pictures.PICTURES:
        assert (folder / name).stat().st_size > 10_000


def test_the_report_is_a_readers_page():
    """At most 200 lines: first what to use when, then where it loses, then the tables."""
    lines = (ROOT / "REPORT.md").read_text().splitlines()
    assert len(lines) <= 200
    chapters = [line for line in lines if line.startswith("## ")]
    assert chapters[:2] == ["## What to use when", "## Where it loses"]


def test_the_committed_pages_say_what_the_records_say():
    found = suite.load(ROOT / "results" / "time_to_target")
    assert (ROOT / "REPORT.md").read_text() == compose.page(found, ROOT / "results")
    assert (ROOT / "TABLES.md").read_text() == details.page(found.complete, ROOT / "results")


def test_a_miss_is_infinite_and_is_named(found, monkeypatch):
    """Of SGD no run arrives: its median is infinite, and so is its geometric mean."""
    rows = found.rows["far"]["saddle"]
    monkeypatch.setitem(rows, "SGD", rows["SGD"]._replace(steps=np.full(20, np.inf)))
    assert found.misses("far", "SGD") == ["saddle"]
    assert np.isinf(found.ratio("far", "SGD", TUNED_ADAMW))
    assert np.isfinite(found.ratio("far", "SGD", TUNED_ADAMW, MISS))


def continual_entry(stream, method, phase, measures, **point):
    """A record as ``benchmarks.continual`` keeps it."""
    key = {"suite": "continual", "stream": stream, "method": method, "phase": phase, "data": "digits"}
    return {"key": key | {"point": point, "seeds": [0, 4]}, "result": measures}


HARDNESS = np.array([0.0, 0.01, 0.05, 0.02])  # of the seeds: the same for all methods
ERRORS = {
    "metric + pull + noise": 0.40,
    "RMSprop + shrink and perturb": 0.44,
    "RMSprop, decay 0.9 + shrink and perturb": 0.45,
    "RMSprop + L2-Init": 0.42,
    "leaf-mean phi": 0.70,
    "permuted phi": 1.20,
    "SGD": 1.00,
}
# On permuted digits, at two strengths: all tasks and the last one.
SWEPT = {"metric, bounded": ((66.0, 95.0), (61.0, 91.0)), "EWC": ((65.0, 93.0), (9.7, 9.7))}
CONTINUAL = [
    *(
        continual_entry("slowly_changing", method, "fresh", {"error": list(error + HARDNESS)})
        for method, error in ERRORS.items()
    ),
    *(
        continual_entry(
            "permuted_digits", method, "sweep", {"all tasks": [every], "last task": [last]}, strength=strength
        )
        for method, means in SWEPT.items()
        for strength, (every, last) in zip((5.0, 50.0), means, strict=True)
    ),
]


def test_claims_about_streams_are_paired_and_take_the_worst_strength():
    found = {claim.text: claim for claim in continual.claims(CONTINUAL)}
    error = found["slowly_changing: error of metric + pull + noise"]
    assert error.value == pytest.approx(0.42)
    assert error.met
    # Every seed differs by the same 0.04, so that the interval of the pairs has no width.
    rival = found["slowly_changing: error of RMSprop + shrink and perturb less ours"]
    assert rival.value == pytest.approx(0.04)
    assert rival.met
    span = "over lambda 5 to 50"
    every = found[f"permuted digits: least accuracy, all tasks, {span}"]
    assert (every.value, every.met) == (61.0, False)
    last = found[f"permuted digits: least accuracy, last task, {span}"]
    assert (last.value, last.met) == (91.0, True)


def test_controls_of_a_stream_keep_their_share_of_the_gain_over_sgd():
    shares = continual.shares(CONTINUAL)["slowly_changing"]
    assert shares == {"leaf-mean phi": pytest.approx(0.5), "permuted phi": pytest.approx(-1 / 3)}


def test_what_loses_is_said(found):
    """On the made-up runs: peers with fewer steps, and a stream on which a rival is ahead."""
    rows = [entry for entry in CONTINUAL if entry["key"]["method"] != "RMSprop + L2-Init"]
    ahead = continual_entry("slowly_changing", "RMSprop + L2-Init", "fresh", {"error": list(0.3 + HARDNESS)})
    assert "slowly changing" not in short.losses(found, found, CONTINUAL)
    text = short.losses(found, found, [*rows, ahead])
    assert 'task changes: on slowly changing ours is behind "RMSprop + L2-Init".' in text
    assert f'fewer steps than {FACTORED}: "{MUON}", "{DROP_IN}", "{EIGENBASIS}", "{OURS}"' in text


def test_a_task_that_an_alias_loses_names_what_does_best_there(found, monkeypatch):
    """Saddle: 30 steps of tuned AdamW, 31 of ours, and 7 of another."""
    rows = {name: row._replace(steps=np.full(20, 50.0)) for name, row in found.rows["far"]["saddle"].items()}
    for name, steps in {TUNED_ADAMW: 30.0, DROP_IN: 31.0, MUON: 7.0}.items():
        rows[name] = rows[name]._replace(steps=np.full(20, steps))
    monkeypatch.setitem(found.rows["far"], "saddle", rows)
    said = f"`ro.{DROP_IN}` needs more steps than tuned {TUNED_ADAMW} on saddle "
    assert said + '(31, against 30; fewest: 7, "Muon").' in short.losses(found, found, [])


def test_ours_is_measured_against_its_twin(found):
    """Slowness 25 against 12, up to the rounding to whole steps."""
    line = next(line for line in short.twins_table(found).splitlines() if line.startswith("| NAdamW in"))
    *_, near, far, ahead, _ = (cell.strip() for cell in line.split("|"))
    assert [float(near), float(far)] == pytest.approx([25 / 12] * 2, abs=0.02)
    assert ahead == "0 of 3"


def test_memory_is_compared_where_a_task_has_it(found, tmp_path):
    """4 and 9 times AdamW's: 6 in the mean. What one task lacks has no mean, a task without any no column."""
    assert memory.chapter(found) == ""
    assert np.isnan(memory.ratio(found, MUON))
    held = {"saddle": {TUNED_ADAMW: 2e6, MUON: 8e6, OURS: 1e6}, "plateau": {TUNED_ADAMW: 1e6, MUON: 9e6}}
    records = {task: Records(tmp_path / f"{task}.jsonl") for task in TASKS}
    for task, by_name in held.items():
        for name, count in by_name.items():
            key = {"task": task, "contestant": name, "steps": 500, "phase": "memory"}
            records[task].put(key, {"step_bytes": int(count)})
    known = found._replace(records=records)
    assert memory.ratio(known, MUON) == pytest.approx(6.0)
    assert np.isnan(memory.ratio(known, OURS))
    lines = [line for line in memory.chapter(known).splitlines() if line.startswith("| ")]
    assert lines == [
        "| optimiser | mean | saddle (2 MB) | plateau (1 MB) |",
        f"| {TUNED_ADAMW} | 1.00 | 1.00 | 1.00 |",
        f"| {MUON} | 6.00 | 4.00 | 9.00 |",
    ]


def test_no_records_no_report(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--results", str(tmp_path)])
    assert "has no records of python -m benchmarks.time_to_target" in capsys.readouterr().err


def test_an_alias_is_judged_with_its_rate_tuned_and_with_nothing_tuned(found):
    """Its slowness is 9 against 16; AdamW's trials, dealt out to eight points, are off by half an octave.

    With nothing tuned it is slower by 2 to the distance of ``ro.starting_rate`` from the best rate, 1/8.
    """
    values = {claim.text: claim for claim in claims.of_aliases(found)}
    tuned = values[f"steps to the far target, {DROP_IN} over {TUNED_ADAMW}"]
    assert tuned.value == pytest.approx(9 / 16 / 2**0.5, rel=0.05)
    assert tuned.met
    fixed = values[f"steps to the far target, {DROP_IN} at ro.starting_rate over {TUNED_ADAMW}"]
    rates = [ro.starting_rate(tasks.TASKS[task]().init(0)) for task in TASKS]
    octaves = np.mean([abs(np.log2(rate / 0.125)) for rate in rates])
    assert fixed.value == pytest.approx(9 / 16 / 2**0.5 * 2**octaves, rel=0.05)
    assert fixed.note == "nothing tuned"


def test_nothing_tuned_is_a_rate_from_the_weights_or_one_of_its_own(found):
    """Prodigy, of slowness 25, runs at a rate of 1, three octaves from the best one: 8 times slower still."""
    lines = [line.split(" | ") for line in page.untuned_table(found).splitlines()[2:]]
    rows = {cells[0].removeprefix("| ").strip("*"): cells[1:] for cells in lines}
    assert set(rows) == set(UNTUNED)
    fixed = next(claim for claim in claims.of_aliases(found) if f"{DROP_IN} at" in claim.text)
    assert rows[DROP_IN][1] == number(fixed.value)
    assert rows["Prodigy"][0] == "its own"
    # A slowness of 200 misses a target of more than two digits within 400 steps, which costs two budgets.
    misses = sum(np.log10(1 / TARGETS[task].far) > 2 for task in TASKS)
    assert int(rows["Prodigy"][2]) == misses > 0


def test_tasks_that_not_every_method_has_run_are_left_out_of_the_long_tables(found, monkeypatch):
    rows = dict(found.rows["far"]["saddle"])
    del rows["SGD"], rows[DROP_IN]
    monkeypatch.setitem(found.rows["far"], "saddle", rows)
    assert found.complete.tasks == ["regression", "plateau"]
    del found.rows["far"]["regression"][DROP_IN]
    assert found.complete.tasks == ["regression", "plateau"]


def test_the_recorded_results_are_complete():
    """What the committed report is made of: chosen and run on fresh seeds.

    Every method on the first nine tasks, and on the later ones those with only a rate and their peers.
    """
    recorded = suite.load(command.RESULTS / "time_to_target")
    in_part = {"gpt_million", "mnist_convnet"}  # tables of their own until all has been run on them
    later = {"recurrent", "tabular", "mnist_mlp"}
    assert set(recorded.complete.tasks) >= set(tasks.NAMES) - later - in_part
    for target in ("near", "far"):
        assert set(recorded.rows[target]) == set(tasks.NAMES) - in_part
        for task, rows in recorded.rows[target].items():
            assert set(rows) >= {*RATE_ONLY, *page.BESIDE}, task
            assert task in later or set(rows) == set(METHODS), task
        for name in UNTUNED:
            assert set(recorded.untuned(target, name)) == set(recorded.tasks), name
    assert all(isinstance(records, Records) for records in recorded.records.values())

"""The record of the trainer: figures of runs of the right seeds, and no folder of the machine."""

import json

import pytest

from benchmarks import trainer


def finished(folder, seed, **changes):
    result = dict.fromkeys(trainer.FIGURES, seed + 0.5) | {"label": "adamw", "seconds": 1.0}
    record = {
        "status": "finished",
        "arguments": {"seed": seed, "out": str(folder)},
        "device": "cpu",
        "target": 0.035,
        "results": {"metric": result, "baseline": result},
    }
    (folder / str(seed)).mkdir(parents=True)
    (folder / str(seed) / "record.json").write_text(json.dumps(record | changes))


def test_finished_runs_are_kept_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train", lambda arguments: pytest.fail("something was run"))
    for seed in trainer.SEEDS:
        finished(tmp_path / "runs", seed)
    assert trainer.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "trainer.json").read_text()
    record = json.loads(text)
    assert {seed: run["metric"]["energy"] for seed, run in record["runs"].items()} == {
        "0": 0.5,
        "1": 1.5,
        "2": 2.5,
    }
    assert set(record["runs"]["0"]["baseline"]) == set(trainer.FIGURES)
    assert str(tmp_path) not in text


def test_what_is_missing_is_run_with_its_seed(tmp_path, monkeypatch):
    asked = []

    def train(arguments):
        asked.append(arguments)
        finished(tmp_path / "runs", int(arguments[1]))

    monkeypatch.setattr(trainer, "train", train)
    trainer.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--steps", "7"])
    assert [line[:2] for line in asked] == [["--seed", str(seed)] for seed in trainer.SEEDS]
    assert all(line[-2:] == ["--steps", "7"] for line in asked)


def test_a_run_of_another_seed_or_an_unfinished_one_is_an_error(tmp_path, capsys):
    for seed in trainer.SEEDS:
        finished(tmp_path / "runs", seed)
    (tmp_path / "runs" / "1" / "record.json").write_text(
        json.dumps({"status": "running", "arguments": {"seed": 1}})
    )
    with pytest.raises(SystemExit):
        trainer.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert "1 holds no finished run of seed 1" in capsys.readouterr().err

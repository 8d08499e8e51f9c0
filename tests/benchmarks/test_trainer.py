"""The record of the trainer: figures of runs of the right seeds, and no folder of the machine."""

import json

import pytest

from benchmarks import trainer
from riemann_optax.examples.train.arguments import as_record, parse


def finished(folder, seed, *options, **changes):
    result = dict.fromkeys(trainer.FIGURES, seed + 0.5) | {"label": "adamw", "seconds": 1.0}
    record = {
        "status": "finished",
        "arguments": as_record(parse(["--seed", str(seed), "--out", str(folder), *options])),
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
        finished(tmp_path / "runs", int(arguments[1]), *arguments[-2:])

    monkeypatch.setattr(trainer, "train", train)
    trainer.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--steps", "7"])
    assert [line[:2] for line in asked] == [["--seed", str(seed)] for seed in trainer.SEEDS]
    assert all(line[-2:] == ["--steps", "7"] for line in asked)


@pytest.mark.parametrize("other", ["a running one", "a shorter one", "one of another seed"])
def test_another_run_is_an_error(tmp_path, capsys, other):
    """A run of a few steps, to try the program, must not become the record."""
    for seed in (0, 2):
        finished(tmp_path / "runs", seed)
    options = {"a shorter one": ["--steps", "7"], "one of another seed": ["--seed", "3"]}.get(other, [])
    finished(tmp_path / "runs", 1, *options, status="running" if other == "a running one" else "finished")
    with pytest.raises(SystemExit):
        trainer.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert "1 holds another run, or one that is not finished" in capsys.readouterr().err

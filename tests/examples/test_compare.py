import json

import pytest

from riemann_optax.examples import compare


class Bowl:
    """Stands in for a trainer whose validation loss is least at one rate."""

    def __init__(self, best):
        self.best, self.calls = best, []

    def __call__(self, rate, seed):
        self.calls.append((rate, seed))
        return compare.Outcome(abs(rate / self.best - 1) + 0.001 * seed, 1.0)


def test_the_best_rate_of_the_grid_is_found():
    trainers = {"a": Bowl(0.1), "b": Bowl(1.0)}
    best, losses = compare.tune(trainers, [0.01, 0.1, 1.0, 10.0], range(3), lambda line: None)
    assert best == {"a": 0.1, "b": 1.0}
    assert losses["a"][0.1] == pytest.approx(0.001)
    assert len(trainers["a"].calls) == 12


def test_a_best_rate_on_the_edge_widens_the_grid_for_all():
    trainers = {"a": Bowl(0.1), "b": Bowl(100.0)}
    best, losses = compare.tune(trainers, [0.01, 0.1, 1.0], range(2), lambda line: None)
    assert best["a"] == 0.1
    assert best["b"] == pytest.approx(100.0)
    assert list(losses["a"]) == list(losses["b"]) == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4])
    assert sorted(trainers["a"].calls) == sorted(trainers["b"].calls)


def test_tuning_and_fresh_seeds_are_apart():
    assert not set(compare.TUNING_SEEDS) & set(compare.FRESH_SEEDS)
    assert len(compare.FRESH_SEEDS) >= 10


def test_a_small_comparison_scores_the_held_out_part_on_fresh_seeds_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "GRID", (1e-5, 3e-3, 10.0))
    scored = []
    evaluate = compare.Problem.evaluate

    def spy(self, part, parameters):
        scored.append(part)
        return evaluate(self, part, parameters)

    monkeypatch.setattr(compare.Problem, "evaluate", spy)
    out = tmp_path / "figures.json"
    arguments = ["--model", "mlp", "--steps", "20", "--tuning-seeds", "1", "--seeds", "2", "--out", str(out)]
    assert compare.main([*arguments, "--optimizers", "riemannian_adamw"]) == 0
    assert scored == 3 * ["validation"] + 2 * ["validation", "heldout"]
    figures = json.loads(out.read_text())
    assert figures["rates"] == {"riemannian_adamw": 3e-3}
    assert figures["fresh_seeds"] == [100, 101]
    outcomes = figures["outcomes"]["riemannian_adamw"]
    assert len(outcomes) == 2
    assert outcomes[0] != outcomes[1]
    assert "held-out accuracy" in capsys.readouterr().out


def test_an_existing_file_is_not_replaced(tmp_path, capsys):
    out = tmp_path / "figures.json"
    out.write_text("mine")
    assert compare.main(["--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: --out {out} exists: name another file\n"
    assert out.read_text() == "mine"


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "a file").touch()
    out = tmp_path / "a file" / "figures.json"
    assert compare.main(["--out", str(out)]) == 2
    assert f"--out {out} cannot be written to" in capsys.readouterr().err


def test_the_folder_of_the_figures_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "compare", lambda arguments, console: {"title": "none"})
    assert compare.main(["--out", str(tmp_path / "new" / "figures.json")]) == 0
    assert json.loads((tmp_path / "new" / "figures.json").read_text()) == {"title": "none"}

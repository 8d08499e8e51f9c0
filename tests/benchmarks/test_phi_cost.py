"""The cost of a step under each phi, on a model so small that timings mean nothing; none is asserted."""

import json

import pytest

from benchmarks.phi_cost import __main__ as command
from benchmarks.phi_cost import measure
from benchmarks.report import site
from riemann_optax.examples.train import chooser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("phi_cost")
    small = ["--model", "mlp", "--batch-size", "8", "--rounds", "4", "--steps", "1"]
    command.main([*small, "--phis", "maintenance_energy", "idbd", "--out", str(made)])
    return made


def test_the_record_says_what_was_measured_and_with_what(folder):
    record = json.loads((folder / "phi_cost.json").read_text())
    assert record["command"].startswith("python -m benchmarks.phi_cost --model mlp --batch-size 8")
    assert (record["model"], record["batch_size"], record["rounds"], record["steps"]) == ("mlp", 8, 4, 1)
    assert list(record["phis"]) == ["maintenance_energy", "idbd"]
    for row in record["phis"].values():
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["seconds"] > 0
        assert row["optimizer"] == "riemannian_sgd"


def test_terminal_and_site_show_it(folder, monkeypatch):
    made = json.loads((folder / "phi_cost.json").read_text())
    monkeypatch.setattr(chooser, "packaged", lambda: made)
    ratio = made["phis"]["idbd"]["ratio"]
    assert f"a step takes {ratio:.2f} times AdamW's" in chooser.as_text()
    assert "on a mlp with batches of 8" in chooser.as_text()
    (row,) = [line for line in site.chooser_table().splitlines() if "`idbd`" in line]
    assert row.endswith(f"| 2 | {ratio:.2f} |  |")


def test_ratios_are_of_neighbouring_turns(monkeypatch):
    """Where the machine becomes slower and slower, and both take the same."""

    class Clock:
        now = 0.0

        def __init__(self, problem, transformation, batches):
            del problem, transformation, batches

        def run(self):
            Clock.now += 1.0
            return 2.0 ** (Clock.now // 2)  # AdamW has the first turn of each pair

    monkeypatch.setattr(measure, "Stepper", Clock)
    (cost,) = measure.measure(["maintenance_energy"], "mlp", 8, 5, 1).values()
    assert (cost.low, cost.ratio, cost.high) == (2.0, 2.0, 2.0)
    assert cost.seconds == 8.0


@pytest.mark.parametrize("arguments", [["--rounds", "3"], ["--steps", "0"], ["--batch-size", "1201"]])
def test_wrong_arguments_end_with_status_2(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([*arguments, "--out", str(tmp_path)])
    assert "--rounds must be at least 4" in capsys.readouterr().err

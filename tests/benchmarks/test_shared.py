"""What the benchmarks share: statistics beside NumPy's, records, a folder, and the examples in docstrings."""

import argparse
import doctest
import importlib
import json
import pkgutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import shared, trainer
from benchmarks.drop_in import __main__ as drop_in
from benchmarks.eigenbasis import __main__ as eigenbasis
from benchmarks.figure1 import __main__ as figure1
from benchmarks.phi_cost import __main__ as phi_cost
from benchmarks.shared.command import parse_with_folder
from benchmarks.shared.records import write_record
from benchmarks.shared.statistics import quartiles, standard_error
from benchmarks.step_cost import __main__ as step_cost

MODULES = [f"benchmarks.shared.{module.name}" for module in pkgutil.iter_modules(shared.__path__)]


@pytest.mark.parametrize("name", [*MODULES, "benchmarks.report.short", "benchmarks.time_to_target.points"])
def test_examples_in_docstrings(name):
    done = doctest.testmod(importlib.import_module(name))
    assert done.failed == 0


@pytest.mark.parametrize("count", [1, 4, 7, 20])
def test_quartiles_are_numpys_where_all_is_finite(count):
    values = np.random.default_rng(count).normal(size=count)
    np.testing.assert_allclose(quartiles(values), np.percentile(values, [25, 50, 75]), rtol=1e-12)


def test_standard_error_of_what_is_not_finite_is_no_number():
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)  # sqrt(2) over sqrt(2)
    assert np.isnan(standard_error(np.array([1.0, np.inf])))
    assert np.isnan(standard_error(np.array([1.0])))


def test_a_record_says_what_it_was_made_with_and_keeps_all_digits(tmp_path):
    content = {"third": 1 / 3, "missed": np.inf, "rows": [np.array([0.1, np.nan])]}
    write_record(tmp_path / "record.json", ["python", "-m", "this"], content)
    read = json.loads((tmp_path / "record.json").read_text())
    assert (read["third"], read["missed"], read["rows"]) == (1 / 3, None, [[0.1, None]])
    assert read["command"] == "python -m this"
    assert {"jax", "optax", "riemann-optax"} <= read["versions"].keys()


def test_a_folder_is_made_and_left_empty(tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    folder = parse_with_folder(parser, ["--out", str(tmp_path / "new" / "folder")]).out
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "arguments", "named"),
    [
        (figure1, ["--quick"], "--quick"),
        (figure1, ["--kappa", "20"], "--kappa"),
        (phi_cost, ["--rounds", "4", "--phis", "activity"], "--phis, --rounds"),
        (step_cost, ["--no-mesh"], "--no-mesh"),
        (trainer, ["--steps", "10"], "--steps"),
        (eigenbasis, ["--quick"], "--quick"),
        (drop_in, ["--quick"], "--quick"),
    ],
)
def test_a_trial_does_not_write_over_what_the_pages_show(program, arguments, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments)
    assert stopped.value.code == 2
    assert f"{named}: this is not what the pages show" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["nan", "-1", "soon"])
def test_minutes_are_a_number(minutes, capsys):
    with pytest.raises(SystemExit):
        eigenbasis.main(["--minutes", minutes])
    assert "--minutes: invalid minutes value" in capsys.readouterr().err


def test_a_text_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        eigenbasis.main(["--out", str(tmp_path), "--text-file", str(tmp_path / "none.txt")])
    assert "--text-file: there is no file" in capsys.readouterr().err

"""What the benchmarks share: statistics beside NumPy's, records, a folder, and the examples in docstrings."""

import argparse
import doctest
import importlib
import json
import pkgutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import shared
from benchmarks.shared.command import parse_with_folder
from benchmarks.shared.records import write_record
from benchmarks.shared.statistics import quartiles, standard_error

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

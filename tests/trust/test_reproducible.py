"""The same run again: its record, and one transformation tried anew."""

import json
import tomllib
from pathlib import Path

from tests.contract.registry import ENTRIES
from tests.trust import reproducible


def test_a_rerun_has_the_same_bits_and_eight_devices_the_same_digits():
    found = reproducible.compare(["riemannian_sgd"])
    assert not reproducible.broken(found)
    assert set(found["differences"]) == {"again", "eight devices"}


def test_the_record_holds_every_transformation_within_the_tolerances():
    record = json.loads(reproducible.RESULTS.read_text())
    assert not reproducible.broken(record)
    for what in reproducible.TOLERANCE:
        recorded = set(record["differences"][what])
        assert recorded == set(ENTRIES)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    oldest = dict(requirement.split(">=") for requirement in project["dependencies"])
    assert record["versions"]["oldest releases"].items() <= oldest.items()


def test_a_difference_is_noticed():
    record = json.loads(reproducible.RESULTS.read_text())
    record["differences"]["again"]["riemannian_sgd"] = 1e-9
    record["differences"]["eight devices"]["phi.idbd"] = float("nan")
    assert len(reproducible.broken(record)) == 2

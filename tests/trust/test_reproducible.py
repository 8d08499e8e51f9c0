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


# What came, and what went or changed its name, since the record was made: the next record has neither list.
NOT_YET_RUN = {
    "add_anchored_weights:importance_weighted_weights",
    "add_isometry_pull",
    "add_spectral_pull",
    "competitive_plasticity:leaf",
    "compute_metric:conformal inverse_metric",
    "compute_metric:conformal leaf",
    "compute_metric:conformal neuron",
    "compute_metric:conformal tree",
    "ema",
    "ema:nesterov",
    "momentum_from_phi",
    "momentum_from_phi:nesterov",
    "phi.momentum_activity",
    "phi.presynaptic_release:constant",
    "phi.surprise",
    "phi.utility_gate:leaf",
    "reset_units",
    "restart_at_boundary",
    "riemannian_adamw:activity",
    "riemannian_adamw:relative",
    "riemannian_eigenbasis",
    "riemannian_schedule_free",
    "riemannian_sgd:momentum",
    "scale_by_metric",
    "schedule_free",
    "soap",
    "soft_resets",
}
GONE = {
    "conformal:inverse_metric",
    "conformal:leaf",
    "conformal:neuron",
    "conformal:tree",
    "riemannian_adamw:decay_in_metric",
    "riemannian_sgd:activity",
    "riemannian_sgd:equations",
}


def test_the_record_holds_every_transformation_within_the_tolerances():
    record = json.loads(reproducible.RESULTS.read_text())
    assert not reproducible.broken(record)
    for what in reproducible.TOLERANCE:
        recorded = set(record["differences"][what])
        assert set(ENTRIES) - recorded == NOT_YET_RUN
        assert recorded - set(ENTRIES) == GONE
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    oldest = dict(requirement.split(">=") for requirement in project["dependencies"])
    assert record["versions"]["oldest releases"].items() <= oldest.items()


def test_a_difference_is_noticed():
    record = json.loads(reproducible.RESULTS.read_text())
    record["differences"]["again"]["riemannian_sgd"] = 1e-9
    record["differences"]["eight devices"]["phi.idbd"] = float("nan")
    assert len(reproducible.broken(record)) == 2

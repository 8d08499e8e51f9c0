"""Checkpoints of older releases: the manifests of every transformation's state, as they were written then.

``manifests_format_1.json`` holds what ``checkpoint.manifest`` returned for each entry of the contract suite's
registry at commit 082b5fc, the last of format 1.
"""

import json
from pathlib import Path

import pytest

import riemann_optax as ro

from ..contract.problem import params
from ..contract.registry import ENTRIES

OLDER = json.loads((Path(__file__).parent / "manifests_format_1.json").read_text())

# What cannot go on from a checkpoint of format 1, and why.
CHANGED = {
    "phi.rwalk": "both terms are scaled to [0, 1]",
    "track_energy": "maintenance is summed over the run",
    "record_metric": "a record knows its leaves",
    "riemannian_sgd:decay": "it has a record",
    "conformal:tree": "no stage of its own any more",
    "conformal:leaf": "no stage of its own any more",
    "conformal:neuron": "no stage of its own any more",
    "conformal:inverse_metric": "no stage of its own any more",
    "low_precision_state:bfloat16": "arrays stand in place",
    "low_precision_state:int8": "arrays stand in place",
    "riemannian_sgd": "the equations alone",
    "riemannian_adamw": "momentum on the tangent",
    "on_metric:ema": "it says that it is of E",
    "in_eigenbasis": "it counts the bases that were kept because none was found",
}


GONE = {
    "riemannian_adamw:decay_in_metric": "Adam in the frame is a chain of one's own",
    "riemannian_sgd:activity": "its chain had the conformal stage",
    "riemannian_sgd:equations": "the default, under the name riemannian_sgd",
}


def test_every_older_entry_is_accounted_for():
    assert set(OLDER) <= set(ENTRIES) | set(CHANGED) | set(GONE)


def test_the_equations_are_the_default_now():
    state = ENTRIES["riemannian_sgd"].build().init(params())
    ro.checkpoint.check(OLDER["riemannian_sgd:equations"], state)


@pytest.mark.parametrize("name", sorted(set(OLDER) - set(CHANGED) - set(GONE)))
def test_an_older_checkpoint_restores(name):
    ro.checkpoint.check(OLDER[name], ENTRIES[name].build().init(params()))


@pytest.mark.parametrize("name", sorted(set(CHANGED) & set(ENTRIES)))
def test_what_has_changed_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"^the checkpoint (has format 1|is of another phi, chain or model)"):
        ro.checkpoint.check(OLDER[name], ENTRIES[name].build().init(params()))

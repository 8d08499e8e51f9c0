import json
import re

from riemann_optax import phi as phis
from riemann_optax.examples.train import chooser
from riemann_optax.examples.train.phis import PHIS, Phi


def test_every_phi_answers_a_question():
    assert {name for names in chooser.questions().values() for name in names} == set(PHIS)
    assert chooser.OTHERS not in chooser.questions()


def test_every_need_has_a_cost():
    """Two that come with another are counted there."""
    needs = {need for phi in PHIS.values() for need in getattr(phi.factory(), "needs", ())}
    assert needs - set(chooser.COSTS) == {"outputs_loss_fn", "perturbations"}


def test_a_phi_of_ones_own_appears_by_itself():
    own = PHIS | {"own": Phi(phis.activity, "my own")}
    assert chooser.questions(own)[chooser.OTHERS] == ("own",)


def test_the_time_of_a_step_is_shown_where_it_was_measured(tmp_path, monkeypatch):
    record = tmp_path / "phi_cost.json"
    monkeypatch.setattr(chooser, "RECORD", record)
    assert chooser.measured() == {}
    assert "AdamW's" not in "".join(line for line in chooser.as_text().splitlines() if "reads" in line)
    record.write_text(json.dumps({"phis": {"surprise": {"ratio": 1.25}}}))
    (line,) = re.findall(r"  surprise .*\n(.*)", chooser.as_text())
    assert line.endswith("; 2 values of state per weight; a step takes 1.2 times AdamW's")
    assert {entry.time for entry in chooser.entries() if entry.name != "surprise"} == {None}

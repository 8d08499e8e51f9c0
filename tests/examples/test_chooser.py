import re
from pathlib import Path

import optax

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


def test_the_table_says_which_phis_read_the_weights():
    reading = {entry.name for entry in chooser.entries() if entry.reads.endswith("the weights")}
    assert reading == {
        *("metaplasticity", "utility_gate", "sparse_change", "plasticity_and_energy", "maintenance_energy"),
        *("modification_energy", "multiplicative_geometry", "secant_curvature", "hutchinson_curvature"),
        *("gauss_newton_curvature", "synaptic_intelligence", "rwalk"),
    }


def test_a_phi_that_reads_weights_by_name_has_them_in_the_table():
    def own():
        def update(gradients, state, params=None):
            return {"w": abs(params["w"])}, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    assert chooser.costs(Phi(own, "my own")) == "the weights"


def test_a_phi_of_ones_own_appears_by_itself():
    own = PHIS | {"own": Phi(phis.activity, "my own")}
    assert chooser.questions(own)[chooser.OTHERS] == ("own",)


def test_what_was_measured_is_shown_where_it_was(monkeypatch):
    rows = {"surprise": {"ratio": 1.254, "seen": "a thing"}}
    monkeypatch.setattr(chooser, "packaged", lambda: {"model": "mlp", "batch_size": 8, "phis": rows})
    (cost, seen) = re.findall(r"  surprise .*\n(.*)\n(.*)", chooser.as_text())[0]
    assert cost.endswith("; 2 values of state per weight; a step takes 1.25 times AdamW's")
    assert seen.strip() == "seen: a thing"
    assert {entry.time for entry in chooser.entries() if entry.name != "surprise"} == {None}
    assert "timed on a CPU, on a mlp with batches of 8" in chooser.as_text()


def test_an_installed_package_has_the_table():
    """It lies beside the module, and has a step's time for every phi of the trainer."""
    assert chooser.TABLE.parent == Path(chooser.__file__).parent
    assert set(chooser.packaged()["phis"]) == set(PHIS)
    assert all(entry.time for entry in chooser.entries())

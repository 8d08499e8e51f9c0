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

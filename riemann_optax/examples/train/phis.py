"""The phis that the trainer knows by name: how to make each, and one line for ``--phi help``.

Those that need more than the gradient, the weights and the batch's loss as a function of the weights
(``obj_fn``) get it from :mod:`riemann_optax.examples.train.extra_arguments`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import optax

import riemann_optax as ro


class Phi(NamedTuple):
    """An entry of :data:`PHIS`.

    Attributes:
      factory: makes the phi.
      summary: one line for ``--phi help``.
      alpha: the default of ``--alpha``, at which the phi is what its source describes.
    """

    factory: Callable[[], optax.GradientTransformationExtraArgs]
    summary: str
    alpha: float = 1.0


def plasticity_and_energy() -> optax.GradientTransformationExtraArgs:
    """Return the paper's own reading of phi: activity plus maintenance energy, each with mean one."""
    parts = (ro.phi.activity(decay=0.97), ro.phi.maintenance_energy())
    return ro.phi.weighted_sum(*[ro.phi.unit_mean(part) for part in parts])


def permuted_activity() -> optax.GradientTransformationExtraArgs:
    """Return the control whose metric has the values of activity, at the wrong weights."""
    return ro.phi.permuted(ro.phi.activity(decay=0.97))


def leaf_mean_activity() -> optax.GradientTransformationExtraArgs:
    """Return the control whose metric is the mean activity of each parameter array."""
    return ro.phi.leaf_mean(ro.phi.activity(decay=0.97))


# The deviation of the published runs on images. Weights drawn from mesu's default prior, of deviation 1,
# would be those of an untrained network.
_DEVIATION = 0.06

PHIS: dict[str, Phi] = {
    "activity": Phi(partial(ro.phi.activity, decay=0.97), "root of the running mean of the squared gradient"),
    "accumulated_activity": Phi(ro.phi.accumulated_activity, "root of the sum of all squared gradients"),
    "factored_activity": Phi(
        partial(ro.phi.factored_activity, decay=0.97), "activity of the row times that of the column"
    ),
    "per_neuron": Phi(partial(ro.phi.per_neuron, decay=0.97), "activity, one value per neuron"),
    "bayesian_synapse": Phi(ro.phi.bayesian_synapse, "certainty of a synapse that tracks its own error bar"),
    "bayesian_gradient_descent": Phi(
        partial(ro.phi.bayesian_gradient_descent, initial_deviation=_DEVIATION),
        "certainty learned from gradients at 10 perturbed copies of the weights; keep alpha 1",
    ),
    "mesu": Phi(
        partial(ro.phi.mesu, prior_deviation=_DEVIATION),
        "bayesian_gradient_descent with a memory window; keep alpha 1",
    ),
    "presynaptic_release": Phi(ro.phi.presynaptic_release, "release probability, grown by large gradients"),
    "sliding_threshold": Phi(
        ro.phi.sliding_threshold, "mean square activity of the neuron (BCM); needs --model mlp or convnet"
    ),
    "idbd": Phi(
        ro.phi.idbd,
        "learned rates (published with --learning-rate 1 --momentum 0, alpha 1); needs --model mlp",
    ),
    "autostep": Phi(
        ro.phi.autostep,
        "idbd that tunes itself (published with --learning-rate 1 --momentum 0, alpha 1); needs --model mlp",
    ),
    "secant_curvature": Phi(
        ro.phi.secant_curvature, "change of gradient over change of weight, both on one batch"
    ),
    "hutchinson_curvature": Phi(
        ro.phi.hutchinson_curvature, "diagonal of the Hessian by one more gradient per step"
    ),
    "gauss_newton_curvature": Phi(
        ro.phi.gauss_newton_curvature, "diagonal of the Gauss-Newton matrix, never negative"
    ),
    "online_ewc": Phi(ro.phi.online_ewc, "Fisher information of the finished tasks; an epoch is a task"),
    "laplace": Phi(
        ro.phi.laplace, "precision that the finished tasks have added, per example; an epoch is a task"
    ),
    "memory_aware_synapses": Phi(
        ro.phi.memory_aware_synapses, "sensitivity of the output's size; an epoch is a task"
    ),
    "synaptic_intelligence": Phi(
        ro.phi.synaptic_intelligence, "what the weight did for the loss of past tasks; an epoch is a task"
    ),
    "rwalk": Phi(
        ro.phi.rwalk, "Fisher information plus decrease of the loss per distance; an epoch is a task"
    ),
    "metaplasticity": Phi(ro.phi.metaplasticity, "stiff towards zero and free away from it"),
    "utility_gate": Phi(
        ro.phi.utility_gate,
        "useful weights move less; negative for harmful ones, so keep alpha below 1 (default 1/2)",
        alpha=0.5,
    ),
    "maintenance_energy": Phi(ro.phi.maintenance_energy, "size of the weight, the cost of keeping it"),
    "modification_energy": Phi(ro.phi.modification_energy, "how far the weight has moved so far"),
    "plasticity_and_energy": Phi(plasticity_and_energy, "activity plus maintenance energy, each of mean one"),
    "multiplicative_geometry": Phi(
        ro.phi.multiplicative_geometry, "one over the size of the weight: large weights move more"
    ),
    "permuted_activity": Phi(permuted_activity, "a control: activity, each weight with that of another"),
    "leaf_mean_activity": Phi(leaf_mean_activity, "a control: activity, one value per parameter array"),
}

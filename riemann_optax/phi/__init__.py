"""What the paper leaves open: phi, the plasticity and energy of each synapse.

A phi is an Optax gradient transformation that maps the gradient tree to the tree of phi values.
"""

from riemann_optax._declare import Phi
from riemann_optax._vocabulary import EXTRA_ARGUMENTS, ExtraArgument
from riemann_optax.phi.activity import (
    AccumulatedActivityState,
    ActivityState,
    SurpriseState,
    accumulated_activity,
    activity,
    surprise,
)
from riemann_optax.phi.combine import CombinedState, limited_mean, power, product, unit_mean, weighted_sum
from riemann_optax.phi.controls import PermutedState, leaf_mean, permuted
from riemann_optax.phi.curvature import (
    HutchinsonCurvatureState,
    SecantCurvatureState,
    hutchinson_curvature,
    secant_curvature,
)
from riemann_optax.phi.energy import (
    ModificationEnergyState,
    from_weights,
    maintenance_energy,
    modification_energy,
)
from riemann_optax.phi.gates import UtilityGateState, metaplasticity, utility_gate
from riemann_optax.phi.gauss_newton import GaussNewtonCurvatureState, gauss_newton_curvature
from riemann_optax.phi.gradient_importance import ImportanceState, laplace, memory_aware_synapses, online_ewc
from riemann_optax.phi.learned_rates import AutostepState, IDBDState, autostep, idbd
from riemann_optax.phi.momentum import MomentumActivityState, momentum_activity
from riemann_optax.phi.multiplicative import multiplicative_geometry
from riemann_optax.phi.path_importance import SynapticIntelligenceState, synaptic_intelligence
from riemann_optax.phi.presynaptic import PresynapticReleaseState, presynaptic_release
from riemann_optax.phi.rwalk import RWalkState, rwalk
from riemann_optax.phi.structure import (
    FactoredActivityState,
    PerNeuronState,
    SlidingThresholdState,
    factored_activity,
    per_neuron,
    sliding_threshold,
)
from riemann_optax.phi.third_factor import from_value
from riemann_optax.phi.uncertainty import bayesian_synapse
from riemann_optax.phi.variational import (
    VariationalState,
    bayesian_gradient_descent,
    draw_perturbations,
    mesu,
)

__all__ = [
    "EXTRA_ARGUMENTS",
    "AccumulatedActivityState",
    "ActivityState",
    "AutostepState",
    "CombinedState",
    "ExtraArgument",
    "FactoredActivityState",
    "GaussNewtonCurvatureState",
    "HutchinsonCurvatureState",
    "IDBDState",
    "ImportanceState",
    "ModificationEnergyState",
    "MomentumActivityState",
    "PerNeuronState",
    "PermutedState",
    "Phi",
    "PresynapticReleaseState",
    "RWalkState",
    "SecantCurvatureState",
    "SlidingThresholdState",
    "SurpriseState",
    "SynapticIntelligenceState",
    "UtilityGateState",
    "VariationalState",
    "accumulated_activity",
    "activity",
    "autostep",
    "bayesian_gradient_descent",
    "bayesian_synapse",
    "draw_perturbations",
    "factored_activity",
    "from_value",
    "from_weights",
    "gauss_newton_curvature",
    "hutchinson_curvature",
    "idbd",
    "laplace",
    "leaf_mean",
    "limited_mean",
    "maintenance_energy",
    "memory_aware_synapses",
    "mesu",
    "metaplasticity",
    "modification_energy",
    "momentum_activity",
    "multiplicative_geometry",
    "online_ewc",
    "per_neuron",
    "permuted",
    "power",
    "presynaptic_release",
    "product",
    "rwalk",
    "secant_curvature",
    "sliding_threshold",
    "surprise",
    "synaptic_intelligence",
    "unit_mean",
    "utility_gate",
    "weighted_sum",
]

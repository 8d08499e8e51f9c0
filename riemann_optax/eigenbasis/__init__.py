"""The metric in a Kronecker eigenbasis: synapses that interact."""

from riemann_optax.eigenbasis.each_axis import in_eigenbasis_of_each_axis
from riemann_optax.eigenbasis.task_boundary import BoundaryInEigenbasisState
from riemann_optax.eigenbasis.transform import InEigenbasisState, in_eigenbasis

__all__ = [
    "BoundaryInEigenbasisState",
    "InEigenbasisState",
    "in_eigenbasis",
    "in_eigenbasis_of_each_axis",
]

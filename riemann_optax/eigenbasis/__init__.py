"""The metric in a Kronecker eigenbasis: synapses that interact."""

from riemann_optax.eigenbasis.layout import MatrixAxes, kernel_axes
from riemann_optax.eigenbasis.transform import InEigenbasisState, in_eigenbasis

__all__ = ["InEigenbasisState", "MatrixAxes", "in_eigenbasis", "kernel_axes"]

"""Anchors: weights to be pulled back to, which protect plasticity where phi alone only slows forgetting.

An anchor is an Optax gradient transformation that maps the parameters to the tree of weights they are pulled
to by :func:`riemann_optax.add_anchored_weights`; the updates it is given lend only their structure.
"""

from riemann_optax.anchor.importance import ImportanceWeightedState, importance_weighted_weights
from riemann_optax.anchor.isometry import nearest_isometry
from riemann_optax.anchor.targets import (
    AnchorState,
    BennaFusiState,
    TaskBoundaryState,
    benna_fusi_chain,
    initial_weights,
    slow_weights,
    task_boundary_weights,
)

__all__ = [
    "AnchorState",
    "BennaFusiState",
    "ImportanceWeightedState",
    "TaskBoundaryState",
    "benna_fusi_chain",
    "importance_weighted_weights",
    "initial_weights",
    "nearest_isometry",
    "slow_weights",
    "task_boundary_weights",
]

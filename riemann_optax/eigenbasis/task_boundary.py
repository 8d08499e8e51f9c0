"""Task boundaries announced outside of a step, where the coordinates of the state are not known."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from riemann_optax.boundary import consolidated_where, consolidates, consolidating_states


class BoundaryInEigenbasisState(NamedTuple):
    """The inner state of :func:`riemann_optax.in_eigenbasis` where something in it consolidates.

    Attributes:
      pending: bool scalar, whether a task has ended since the last update. The next update consolidates
        first, because only ``update`` knows how axes are read, and so the coordinates of the state.
      inner_state: the state of the inner transformation, in the coordinates of the bases.
    """

    pending: jax.Array
    inner_state: optax.OptState

    @property
    def takes_importance(self) -> bool:
        """Whether an inner state takes a ``task_importance``, which raises an error here."""
        return any(
            getattr(node, "takes_importance", False) for node in consolidating_states(self.inner_state)
        )

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return a state that consolidates at its next update; :func:`riemann_optax.consolidate` calls it."""
        del params  # the next update has the same
        if task_importance is not None:
            raise ValueError(
                "in_eigenbasis: task_importance belongs to single weights, which the eigenbasis mixes: keep "
                "what needs it outside of in_eigenbasis."
            )
        if _is_measured(self.inner_state):
            raise ValueError(
                "in_eigenbasis: with running=False a phi needs task_importance, which belongs to single "
                "weights, and the eigenbasis mixes these: keep it outside of in_eigenbasis, or let it run."
            )
        return self._replace(pending=jnp.ones_like(self.pending))


def enclosed(inner_state: optax.OptState) -> optax.OptState:
    """Return the initial inner state, with a flag for a pending boundary if anything in it consolidates."""
    if not consolidating_states(inner_state):
        return inner_state
    return BoundaryInEigenbasisState(jnp.zeros([], jnp.bool_), inner_state)


def enclosed_like(old: optax.OptState, inner_state: optax.OptState) -> optax.OptState:
    """Return the next inner state in the form of the old one, with no boundary pending."""
    if not isinstance(old, BoundaryInEigenbasisState):
        return inner_state
    return BoundaryInEigenbasisState(jnp.zeros_like(old.pending), inner_state)


def opened(state: optax.OptState) -> tuple[optax.OptState, Any]:
    """Return an inner state and whether a boundary is pending; None where nothing consolidates."""
    if isinstance(state, BoundaryInEigenbasisState):
        return state.inner_state, state.pending
    return state, None


def consolidated_if(pending: Any, inner_state: optax.OptState, params: Any) -> optax.OptState:
    """Consolidate an inner state where a boundary is pending, with parameters in its coordinates."""
    if pending is None:
        return inner_state

    def after(node: Any) -> Any:
        if not consolidating_states(node) or _is_measured(node):
            return node
        return consolidated_where(pending, node, params)

    return jax.tree.map(after, inner_state, is_leaf=consolidates)


def _is_measured(state: Any) -> bool:
    """Return whether an inner state consolidates only with a ``task_importance``."""
    return any(getattr(node, "needs_importance", False) for node in consolidating_states(state))

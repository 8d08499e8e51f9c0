"""What every edit without state shares."""

from collections.abc import Callable
from typing import Any

import optax

from riemann_optax.covector import require_covectors


def stateless_edit(
    name: str, edit: Callable[[optax.Updates], optax.Updates]
) -> optax.GradientTransformationExtraArgs:
    """Build what stands between the stages and keeps no state; ``name`` is for the error without a metric."""

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        require_covectors(updates, name)
        return edit(updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)

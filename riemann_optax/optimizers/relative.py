"""Steps relative to the size of the weights they change."""

from typing import Any

import jax
import optax

from riemann_optax import _check, _tree

MIN_SCALE = 1e-3  # Adafactor's: what starts at 0 must be able to move


def scale_by_parameter_scale() -> optax.GradientTransformationExtraArgs:
    """Multiply each leaf of the updates by the root mean square of its parameter, at least ``MIN_SCALE``.

    This is ``optax.scale_by_param_block_rms`` in wide dtypes, with the updates in their own dtypes.
    """
    scale = optax.scale_by_param_block_rms(MIN_SCALE)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        params = _check.require_params(_tree.trained(params, updates), "multiply_by_parameter_scale")
        scaled, state = scale.update(_tree.widen(updates), state, _tree.widen(params))
        return jax.tree.map(lambda new, old: new.astype(old.dtype), scaled, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)

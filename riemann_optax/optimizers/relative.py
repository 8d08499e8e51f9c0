"""Steps relative to the size of the weights they change."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree

MIN_SCALE = 1e-3  # Adafactor's: what starts at 0 must be able to move


def scale_by_parameter_scale() -> optax.GradientTransformationExtraArgs:
    """Multiply each leaf of the updates by the root mean square of its parameter, at least ``MIN_SCALE``."""

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        params = _check.require_params(params, "multiply_by_parameter_scale")

        def scale(u: Any, p: Any) -> jax.Array:
            size = jnp.maximum(jnp.sqrt(jnp.mean(_tree.squared_magnitude(p))), MIN_SCALE)
            wide = _tree.wide_dtype(u)
            return (size.astype(_tree.working_dtype(u)) * jnp.asarray(u).astype(wide)).astype(u.dtype)

        return jax.tree.map(scale, updates, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)

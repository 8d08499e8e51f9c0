"""A guard against bad gradients."""

import numpy as np
import optax

from riemann_optax.metric import check_transformation


def skip_nonfinite(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let a gradient with NaN or infinity anywhere change neither the state of ``tx`` nor the weights.

    This is ``optax.apply_if_finite`` that never gives up: however many bad gradients follow each other, none
    is applied. The state counts them (``notfinite_count`` in a row, ``total_notfinite`` in all); look at it.
    Without the guard one NaN stays in the running mean of a phi for good, and so in every later update.
    Under sharding the test needs one all-reduce.

    Args:
      tx: a whole optimiser, or both stages: a metric cannot leave the guard.

    Returns:
      A gradient transformation with state ``optax.ApplyIfFiniteState``.

    Raises:
      TypeError: where ``tx`` is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.skip_nonfinite(ro.riemannian_sgd(0.1))
      >>> params = jnp.array([1.0])
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jnp.array([jnp.nan]), state, params)
      >>> print(updates, state.total_notfinite)
      [0.] 1
    """
    check_transformation("tx", tx)
    return optax.with_extra_args_support(
        optax.apply_if_finite(tx, max_consecutive_errors=np.iinfo(np.int32).max)
    )

"""A guard against bad gradients."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _tree
from riemann_optax._check import check_transformation
from riemann_optax._varying import varying_like
from riemann_optax.boundary import consolidate_within, restarts


def skip_nonfinite(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Skip every update whose gradient has a NaN or infinity: state and weights do not change.

    The same holds for the extra arguments of ``update``: where one example of a batch is all padding, the
    mean gradient may be finite while the gradient of that example is NaN. ``optax.apply_if_finite`` gives up
    after a number of bad gradients; this never applies one. The state counts them (``notfinite_count`` in a
    row, ``total_notfinite`` in all); look at it. Without the guard one NaN stays in the running mean of a phi
    for good, and so in every later update. Under sharding the test needs one all-reduce. A task boundary
    (``task_boundary=True``) at a skipped update is not lost, unless its ``task_importance`` is what is no
    number: states consolidate, and :func:`restart_at_boundary`, which does not read the gradient, restarts.

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
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.ApplyIfFiniteState:
        state = optax.ApplyIfFiniteState(
            notfinite_count=jnp.zeros([], jnp.int32),
            last_finite=jnp.array(True),
            total_notfinite=jnp.zeros([], jnp.int32),
            inner_state=tx.init(params),
        )
        return varying_like(state, params)

    def update(
        updates: optax.Updates,
        state: optax.ApplyIfFiniteState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.ApplyIfFiniteState]:
        finite = _all_finite((updates, extra_args))

        # A selection, not a lax.cond as in optax.apply_if_finite: XLA fuses it with the update, and the
        # branches of that cond differ in sharding when called eagerly on an Explicit mesh.
        def select(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_updates, inner_state = tx.update(updates, state.inner_state, params, **extra_args)
        boundary = extra_args.get("task_boundary")
        if boundary is None:
            skipped = optax.tree.zeros_like(new_updates), state.inner_state
        else:
            skipped = _at_boundary(tx, updates, state.inner_state, params, new_updates, extra_args)
        none = jnp.zeros([], jnp.int32)
        return select(new_updates, skipped[0]), optax.ApplyIfFiniteState(
            notfinite_count=select(none, optax.safe_increment(state.notfinite_count)),
            last_finite=finite,
            total_notfinite=select(state.total_notfinite, optax.safe_increment(state.total_notfinite)),
            inner_state=select(inner_state, skipped[1]),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float | complex) or _tree.is_inexact(leaf)


def _all_finite(tree: Any) -> jax.Array:
    """Return whether all numbers of a tree are finite; what else is in it does not count."""
    numbers = filter(_is_number, jax.tree.leaves(tree))
    return reduce(jnp.logical_and, (jnp.all(jnp.isfinite(leaf)) for leaf in numbers), jnp.array(True))


def _at_boundary(
    tx: optax.GradientTransformationExtraArgs,
    gradients: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None,
    likes: optax.Updates,
    extra_args: dict[str, Any],
) -> tuple[optax.Updates, optax.OptState]:
    """Return the updates, shaped as ``likes``, and the state of a skipped update that may be a boundary."""
    importance = extra_args.get("task_importance")
    boundary = jnp.logical_and(extra_args["task_boundary"], _all_finite(importance))
    none = optax.tree.zeros_like(likes)
    if restarts(state):
        zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if _is_number(leaf) else leaf, extra_args)
        given = zero | ({} if importance is None else {"task_importance": importance})
        at_boundary = tx.update(optax.tree.zeros_like(gradients), state, params, **given)
    else:
        at_boundary = none, consolidate_within(state, _tree.trained(params, gradients), importance)
    chosen: tuple[optax.Updates, optax.OptState] = jax.tree.map(
        lambda new, old: jnp.where(boundary, new, old), at_boundary, (none, state)
    )
    return chosen

"""Guards: against bad gradients, and for what only the values of a metric can show."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from riemann_optax import _tree
from riemann_optax._check import check_transformation
from riemann_optax.covector import Covector
from riemann_optax.edits import stateless_edit


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
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.ApplyIfFiniteState:
        return optax.ApplyIfFiniteState(
            notfinite_count=jnp.zeros([], jnp.int32),
            last_finite=jnp.array(True),
            total_notfinite=jnp.zeros([], jnp.int32),
            inner_state=tx.init(params),
        )

    def update(
        updates: optax.Updates,
        state: optax.ApplyIfFiniteState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.ApplyIfFiniteState]:
        finite = reduce(
            jnp.logical_and,
            (jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(updates)),
            jnp.array(True),
        )

        # A selection, not optax.apply_if_finite's lax.cond: XLA fuses it with the update, and called eagerly
        # on an Explicit mesh the two branches of that cond differ in their shardings.
        def select(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_updates, inner_state = tx.update(updates, state.inner_state, params, **extra_args)
        none = jnp.zeros([], jnp.int32)
        return select(new_updates, optax.tree.zeros_like(new_updates)), optax.ApplyIfFiniteState(
            notfinite_count=select(none, optax.safe_increment(state.notfinite_count)),
            last_finite=finite,
            total_notfinite=select(state.total_notfinite, optax.safe_increment(state.total_notfinite)),
            inner_state=select(inner_state, state.inner_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def check_metric() -> optax.GradientTransformationExtraArgs:
    """Pass updates through and, under ``checkify``, report an ``E`` that is not positive and finite.

    A phi that turns negative or NaN in the middle of a run shows in values alone, which a compiled step
    cannot raise about. Wrapped in ``jax.experimental.checkify`` a step returns the first such error beside
    its result, with the name of the leaf and its smallest and largest ``E``. **Without ``checkify`` this
    stage does nothing** and costs nothing, so that it may stay in the chain.

    Returns:
      A gradient transformation without state, to be placed between the two stages, and before
      :func:`competitive_plasticity`, whose losers have an infinite ``E`` by intention.

    Raises:
      ValueError: at ``update``, where no leaf carries a metric.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> from jax.experimental import checkify
      >>> wrong = ro.phi.from_weights(lambda w: -w)
      >>> tx = optax.chain(ro.compute_metric(wrong), ro.check_metric(), ro.scale_by_inverse_metric())
      >>> params = {"w": jnp.array([0.5, 3.0])}
      >>> step = jax.jit(checkify.checkify(tx.update, errors=checkify.user_checks))
      >>> error, _ = step(params, tx.init(params), params)
      >>> print(error.get().splitlines()[0])
      check_metric: E of leaf ['w'] is not positive and finite: from -2.0 to 0.5 (`check` failed)

    References:
      The JAX authors, `The checkify transformation
      <https://docs.jax.dev/en/latest/debugging/checkify_guide.html>`_, JAX documentation
    """

    def check(updates: optax.Updates) -> optax.Updates:
        leaves = jax.tree_util.tree_leaves_with_path(updates, is_leaf=lambda node: isinstance(node, Covector))
        for path, leaf in leaves:
            if isinstance(leaf, Covector) and leaf.metric.size:
                metric = leaf.metric
                name = _tree.leaf_name(path).replace("{", "{{").replace("}", "}}")  # not for str.format
                checkify.debug_check(
                    jnp.all((metric > 0) & jnp.isfinite(metric)),
                    f"check_metric: E of {name} is not positive and finite: from {{low}} to {{high}}",
                    low=jnp.min(metric),
                    high=jnp.max(metric),
                )
        return updates

    return stateless_edit("check_metric", check)

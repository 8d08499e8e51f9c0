"""A check for what only the values of a metric can show."""

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from riemann_optax import _tree
from riemann_optax.covector import Covector
from riemann_optax.edits._edit import stateless_edit


def check_metric() -> optax.GradientTransformationExtraArgs:
    """Pass updates through and, under ``checkify``, report an ``E`` that is not positive and finite.

    A phi may turn negative or NaN in the middle of a run. A compiled step cannot raise an error for a value.
    Wrapped in ``jax.experimental.checkify`` it returns the first such error with its result: the name of the
    leaf, and its smallest and largest ``E``. **Not wrapped, this stage does nothing** and costs nothing, so
    it may stay in the chain.

    Returns:
      A gradient transformation without state, to be placed between the two stages, and before
      :func:`competitive_plasticity`, where frozen weights have an infinite ``E`` by design.

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

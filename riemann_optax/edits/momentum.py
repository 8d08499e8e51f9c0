"""Momentum on the covector that a phi keeps already."""

from typing import Any

import jax
import optax

from riemann_optax._check import check_flag
from riemann_optax._tree import leaf_name
from riemann_optax.covector import Covector
from riemann_optax.edits._edit import stateless_edit


def momentum_from_phi(nesterov: bool = False) -> optax.GradientTransformationExtraArgs:
    r"""Put in the place of each gradient the momentum that phi keeps, without a state of its own.

    .. math::
      g_t \leftarrow \frac{m_t}{1 - \beta^t}
      \quad\text{or}\quad
      g_t \leftarrow \frac{\beta\,m_t}{1 - \beta^{t+1}} + \frac{(1 - \beta)\,g_t}{1 - \beta^t}

    with the running mean :math:`m_t` of the gradient in :func:`riemann_optax.phi.momentum_activity`. The
    same as :func:`on_gradient` with :func:`ema`, for half of the state. Place it directly after
    :func:`compute_metric`. Euclidean leaves pass unchanged.

    Stateless. Elementwise, so no collective of its own; a conformal metric before it takes its all-reduce.

    Args:
      nesterov: whether to look ahead.

    Returns:
      A gradient transformation without state, to be placed between the two stages.

    Raises:
      ValueError: at ``update``, where no leaf carries a metric, or the phi of one keeps no momentum (or two
        of its parts do).
      TypeError: for a ``nesterov`` that is no boolean.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> metric = ro.compute_metric(ro.phi.momentum_activity(decay=0.5), alpha=0.0)
      >>> tx = optax.chain(metric, ro.momentum_from_phi(), ro.scale_by_inverse_metric())
      >>> state = tx.init(jnp.zeros(1))
      >>> for gradient in (3.0, 6.0):
      ...     updates, state = tx.update(jnp.array([gradient]), state)
      ...     print(updates)  # the mean of 3, then of 3 and twice of 6
      [3.]
      [5.]

    References:
      Jiang and Xiao, `Stochastic Approximation with Block Coordinate Optimal Stepsizes
      <https://arxiv.org/abs/2507.08963>`_, arXiv, 2025
    """
    check_flag("nesterov", nesterov)

    def replace(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, Covector):
            return leaf
        if leaf.momentum is None:
            raise ValueError(
                f"momentum_from_phi: at {leaf_name(path)} there is no one momentum to take: give "
                "compute_metric phi.momentum_activity, alone or as one part of a combination, and put "
                "momentum_from_phi directly after it."
            )
        return leaf.with_components(leaf.momentum(nesterov))

    def edit(updates: optax.Updates) -> optax.Updates:
        return jax.tree_util.tree_map_with_path(replace, updates)

    return stateless_edit("momentum_from_phi", edit)

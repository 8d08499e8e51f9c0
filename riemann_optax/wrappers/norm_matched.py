"""A control for whole optimisers: the base step, scaled to the length of the metric's step."""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax._check import check_transformation
from riemann_optax.boundary import check_outermost, check_scalable


class NormMatchedBaseState(NamedTuple):
    """State of :func:`norm_matched_base`.

    Attributes:
      base: the state of the base optimiser.
      reference: the state of the optimiser whose steps are measured.
    """

    base: optax.OptState
    reference: optax.OptState


def norm_matched_base(
    base: optax.GradientTransformation,
    reference: optax.GradientTransformation,
    over: Literal["tree", "leaf"] = "tree",
) -> optax.GradientTransformationExtraArgs:
    r"""Step in the direction of ``base`` with the step length of ``reference``.

    .. math::
      u = u_\mathrm{base}\,\frac{\|u_\mathrm{ref}\|}{\|u_\mathrm{base}\|}

    An identification control: train once with ``reference``, your optimiser with a metric, and once with
    ``norm_matched_base(base, reference)``, where ``base`` is the same optimiser without the metric. If the
    second does as well, the metric helped through the length of its steps, as a better learning rate or
    schedule would, and not through their direction. ``over="leaf"`` also gives the base the metric's balance
    between leaves. The controls of phi are :func:`riemann_optax.phi.permuted` and
    :func:`riemann_optax.phi.leaf_mean`.

    Both optimisers see the same gradients and the parameters that the base steps lead to. Where the base
    step is 0 it stays 0. Under sharding two all-reduces of a scalar per leaf, which XLA combines.

    Args:
      base: an optimiser without a metric; its own learning rate cancels, unless it is 0.
      reference: an optimiser with one.
      over: ``"tree"`` for one norm, ``"leaf"`` for one per leaf.

    Returns:
      A gradient transformation with state :class:`NormMatchedBaseState`; extra arguments reach both.

    Raises:
      TypeError: where one of the two is no gradient transformation.
      ValueError: for an unknown ``over``; at ``init``, where ``base`` resets units, restarts or averages (put
        that around this one), or one of the two counts energy (put that after this one).

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> metric = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy()), ro.scale_by_inverse_metric(), optax.scale(-1.0)
      ... )
      >>> tx = ro.norm_matched_base(optax.sgd(1.0), metric)
      >>> params, gradients = jnp.array([0.0, 1.0]), jnp.array([3.0, 8.0])
      >>> print(metric.update(gradients, metric.init(params), params)[0])
      [-3. -4.]
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates, jnp.linalg.norm(updates))  # the direction of the gradient, the length 5
      [-1.76 -4.68 ] 5.0
    """
    check_transformation("base", base)
    check_transformation("reference", reference)
    _check.check_choice("over", over, ("tree", "leaf"))
    base, reference = optax.with_extra_args_support(base), optax.with_extra_args_support(reference)

    def init(params: optax.Params) -> NormMatchedBaseState:
        base_state, reference_state = base.init(params), reference.init(params)
        check_scalable("norm_matched_base", base_state)
        check_outermost("norm_matched_base", base_state, reference_state)
        return NormMatchedBaseState(base=base_state, reference=reference_state)

    def update(
        updates: optax.Updates,
        state: NormMatchedBaseState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, NormMatchedBaseState]:
        updates = _tree.arrays(updates)
        wanted, reference_state = reference.update(updates, state.reference, params, **extra_args)
        steps, base_state = base.update(updates, state.base, params, **extra_args)
        scales = jax.tree.map(
            lambda wished, own: _tree.divided(wished, own, 0.0),
            _norms(wanted, over),
            _norms(steps, over),
        )
        matched = jax.tree.map(
            lambda u, c: (u.astype(np.promote_types(u.dtype, c.dtype)) * c).astype(u.dtype), steps, scales
        )
        return matched, NormMatchedBaseState(base=base_state, reference=reference_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _norms(tree: Any, over: str) -> Any:
    """Return, for every leaf, the root mean square over its group: the norm, up to a common factor."""
    means = _tree.group_mean(
        jax.tree.map(_tree.squared_magnitude, tree), "tree" if over == "tree" else "leaf"
    )
    return _tree.power(means, 0.5)

"""Stage 1: from a gradient to a covector with its metric; and ways to see that metric."""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax import _observe as observe
from riemann_optax._axes import Axes
from riemann_optax._declare import least_of, momentum_kept_by, name_of, names_of, update_phi
from riemann_optax._tree import GROUPS, Group
from riemann_optax.boundary import consolidating_states
from riemann_optax.covector import Covector, MetricAttachedError, map_covectors, require_covectors

Role = Literal["metric", "inverse_metric"]
ROLES = ("metric", "inverse_metric")


class ComputeMetricState(NamedTuple):
    """State of :func:`compute_metric`.

    Attributes:
      count: int32 scalar, the number of updates so far; a schedule of ``alpha`` reads it.
      phi: the state of phi.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    phi: optax.OptState


def compute_metric(
    phi: optax.GradientTransformation,
    alpha: optax.ScalarOrSchedule = 1.0,
    role: Role = "metric",
    *,
    conformal: Group | None = None,
    axes: Axes = "flax",
) -> optax.GradientTransformationExtraArgs:
    r"""Attach the metric :math:`E = 1 + \alpha\,\varphi` to each gradient leaf (stage 1).

    .. math::
      g(w) = \mathrm{diag}(E_1, \dots, E_n), \qquad E_i(w) = 1 + \alpha\,\varphi_i(w)

    The result holds :class:`Covector` leaves and must reach :func:`scale_by_inverse_metric` (or
    :func:`in_orthonormal_frame`) before any transformation that works on arrays.

    The equations of the paper divide by ``E``: phi is then *rigidity*, and a large phi means small steps. Its
    text calls ``E`` an effective learning rate: phi is then *plasticity*. ``role`` chooses: ``"metric"``
    (the equations) sets ``E = 1 + alpha*phi``; ``"inverse_metric"`` (the sentences) ``1/E = 1 + alpha*phi``.

    ``conformal`` keeps the metric's angles and takes its scale from phi's own mean:

    .. math::
      E_i = \mu\,\frac{1 + \alpha\,\varphi_i/\mu}{1 + \alpha} = \frac{\mu + \alpha\,\varphi_i}{1 + \alpha},
      \qquad \mu = \mathrm{mean}(\varphi)

    ``E`` then has the mean of phi: ``alpha = 0`` gives ``E = mu`` everywhere, ``alpha`` towards infinity
    ``E = phi``. With phi = root mean square gradient the rate means what it means to Adam, and carries over
    between problems of different gradient scales. Where ``mu`` is 0 (no gradient yet) ``E`` is 1. It needs
    ``phi >= 0``. With ``role="inverse_metric"`` the same formula gives ``1/E``.

    Under ``shard_map`` or ``pmap``, average gradients over devices *before* this stage: phi is not linear in
    the gradient, so replicas that see different gradients compute different metrics, and their weights
    diverge without any error. If the weights themselves are split there, each device takes the means of its
    own part, and replicated weights diverge too. Under ``jit`` on sharded arrays all means are whole.

    Args:
      phi: a transformation from the gradient tree to the tree of phi values, real and of the same shapes.
        Extra arguments of ``update`` are passed on to it.
      alpha: the scaling factor, at least 0: a number, a schedule of the update count, or a traced scalar.
        Without ``conformal`` the metric is 1 at 0, whatever phi is (infinite and NaN included), and the
        update is that of the base optimiser bit for bit. One exception: under ``jit``, where a schedule or a
        traced scalar is 0, the compiler may order the operations of an Adam that follows differently (last
        bit). The derivative at a traced 0 is still that of ``1 + alpha*phi``. With ``conformal`` the metric
        at 0 is the mean of phi, which has to be finite.
      role: which of the two readings.
      conformal: None, or the group of the mean: ``"tree"`` (under sharding one all-reduce per leaf, which XLA
        combines), ``"leaf"`` or ``"neuron"`` (the fan-in of each output, by ``axes``).
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.

    Returns:
      A gradient transformation with state :class:`ComputeMetricState`. ``E`` is evaluated in float32, or
      wider where the gradient is wider.

    Raises:
      ValueError: for a negative or non-finite concrete ``alpha``, or one at which a phi that can be negative
        makes ``E`` 0; for an unknown ``role``, group or ``axes``; at ``update``, where the result of phi
        differs from the gradients in structure or shape, gradients differ from ``params``, or a gradient
        already carries a metric.
      TypeError: for a ``phi`` that is no gradient transformation, or a leaf without a gradient.

    Warns:
      UserWarning: for a phi that can be negative without a limit; at ``init``, for ``conformal`` with an
        importance that is 0 until the first task boundary.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy(), alpha=3.0),
      ...     ro.scale_by_inverse_metric(),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params = jnp.array([0.0, 1.0])
      >>> updates, _ = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
      >>> print(updates)  # the idle synapse moves by 0.1, the costly one by 0.1 / (1 + 3*1)
      [-0.1   -0.025]

    References:
      Kang, Son and Joel, *Biological Synaptic Plasticity Based Riemannian Geometry AI Learning Optimization
      Mechanism* (in Korean; the text names no venue and no year): Eqs. 2 and 3.

      Amari, `Natural Gradient Works Efficiently in Learning
      <https://doi.org/10.1162/089976698300017746>`_, Neural Computation, 1998: steepest descent on a
      Riemannian manifold.
    """
    _check.check_transformation("phi", phi)
    given = optax.with_extra_args_support(phi)
    _check.check_choice("role", role, ROLES)
    if conformal is not None:
        _check.check_choice("conformal", conformal, GROUPS)
    _axes.check_axes(axes)
    _check.check_schedulable("alpha", alpha)
    _check_that_metric_is_positive(phi, alpha, role, conformal)

    def init(params: optax.Params) -> ComputeMetricState:
        _tree.check_inexact(params, "params")
        state = ComputeMetricState(count=jnp.zeros([], jnp.int32), phi=given.init(params))
        if conformal is not None and consolidating_states(state.phi):
            _check.warn(
                "compute_metric: phi is an importance that a task boundary sets, and conformal scales the "
                "metric to its mean: E is 1 before the first boundary, and near that mean after it, however "
                "small. Give conformal=None, and a rate of plain descent."
            )
        return state

    def update(
        updates: optax.Updates,
        state: ComputeMetricState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ComputeMetricState]:
        _refuse_covectors(updates)
        _tree.check_inexact(updates, "gradients")
        params = _tree.trained(params, updates)
        if params is not None:
            _check.check_gradients(updates, params)
        updates, params = _tree.arrays((updates, params))
        try:
            ((values, means, phi_state), names), momentum = momentum_kept_by(
                lambda: names_of(
                    lambda: update_phi(given, conformal, updates, state.phi, params, **extra_args)
                )
            )
        except (TypeError, ValueError, AttributeError) as error:
            _explain_other_leaves(state.phi, updates, error)
            raise
        values = _tree.arrays(values)
        check_phi_values(values, updates)
        observe.phi_used(names, updates)
        current_alpha = _tree.at_count(alpha, state.count)

        values = jax.tree.map(
            lambda g, v: v.astype(np.promote_types(v.dtype, _tree.working_dtype(g))), updates, values
        )
        if conformal is None:
            scales = jax.tree.map(lambda v: _one_plus(v, current_alpha), values)
        else:
            means = _axes.group_mean(values, conformal, axes) if means is None else means
            means = jax.tree.map(lambda v, mean: mean.astype(v.dtype), values, means)
            least = jax.tree.map(_tree.once(lambda mean: _least(mean, current_alpha)), means)
            share = functools.cache(lambda dtype: _share(current_alpha, dtype))
            scales = jax.tree.map(lambda v, low: low + share(v.dtype) * v, values, least)

        def attach(path: tuple[Any, ...], gradient: Any, value: Any, scale: Any, *kept: Any) -> Covector:
            inverted, own = role == "inverse_metric", kept[0] if kept else None
            gradient = jnp.asarray(gradient)
            return Covector(gradient, scale, inverted=inverted, path=path, phi=value, momentum=own)

        structure: Any = jax.tree.structure(updates)
        known = momentum is not None and structure == jax.tree.structure(momentum)
        trees = (values, scales, momentum) if known else (values, scales)
        updates = jax.tree_util.tree_map_with_path(attach, updates, *trees)
        return updates, ComputeMetricState(optax.safe_increment(state.count), phi_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_that_metric_is_positive(
    phi: optax.GradientTransformation, alpha: Any, role: Role, conformal: Group | None
) -> None:
    """Raise ``ValueError`` where a phi says that it can be so negative that ``E`` reaches 0."""
    name, least = name_of(phi), least_of(phi)
    if least >= 0:
        return
    low = "negative without a limit" if least == -math.inf else f"as low as {least:g}"
    if conformal is not None:
        raise ValueError(
            f"conformal: {name} can be {low}, and a scale is taken from the mean of a phi that is never "
            "negative: leave conformal out (riemannian_sgd, or conformal=None)."
        )
    lowest = 1 + float(alpha) * least if _check.is_concrete_number(alpha) else 1.0
    if lowest == -math.inf:
        _check.warn(
            f"compute_metric: {name} can be {low}, and so can 1 + alpha*phi: a weight would then climb. "
            "Multiply only what is never negative, give weighted_sum no negative weights, or put "
            "check_metric() behind and run the step under checkify."
        )
    elif lowest < 0 or (lowest == 0 and role == "metric"):
        limit = round(-1 / least, 9)
        reached = 1 + limit * least <= 0
        below = f"below {limit:g}, such as {limit / 2:g}" if reached else f"of at most {limit:g}"
        raise ValueError(
            f"alpha: {name} can be {low}, so that 1 + alpha*phi falls to {lowest:g} at "
            f"alpha={float(alpha):g}: give alpha {below}."
        )


def _explain_other_leaves(state: optax.OptState, gradients: optax.Updates, error: Exception) -> None:
    """Raise ``ValueError`` where phi has failed because its state was made for other leaves or shapes."""
    gradients = _tree.bare(gradients)

    def is_none(node: Any) -> bool:
        return node is None

    structure = jax.tree.structure(gradients, is_leaf=is_none)

    def like_gradients(tree: Any) -> bool:
        own: Any = jax.tree.structure(tree, is_leaf=is_none)
        return bool(own == structure)

    for part in jax.tree.leaves(_tree.bare(state), is_leaf=like_gradients):
        if part is None or not like_gradients(part):
            continue
        rows = zip(
            jax.tree_util.tree_leaves_with_path(gradients, is_leaf=is_none),
            jax.tree.leaves(part, is_leaf=is_none),
            strict=True,
        )
        for (path, gradient), kept in rows:
            if (gradient is None) != (kept is None):
                without, other = (
                    ("gradients", "state") if gradient is None else ("arrays of the state", "gradients")
                )
                raise ValueError(
                    f"compute_metric: the {without} have None at {_tree.leaf_name(path)}, and the {other} an "
                    "array: give init and update the same leaves, with None in both for what is not trained."
                ) from error
            old, new = np.shape(kept), np.shape(gradient)
            if len(old) == len(new) and any(a not in (1, b) for a, b in zip(old, new, strict=True)):
                raise ValueError(
                    f"compute_metric: {_tree.leaf_name(path)} has shape {new}, and the state of phi has been "
                    f"made for another, it holds an array of shape {old}: after a parameter has been resized "
                    "make the state anew with tx.init."
                ) from error
    _explain_missing_leaves(state, gradients, error)


def _explain_missing_leaves(state: optax.OptState, gradients: optax.Updates, error: Exception) -> None:
    """Raise ``ValueError`` where an array of phi's state has other leaves than the gradients."""
    here = {_tree.leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(gradients)}
    fields: dict[tuple[Any, ...], set[str]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(_tree.bare(state)):
        of_state = [i for i, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)]
        place = of_state[-1] + 1 if of_state else 0
        fields.setdefault(path[:place], set()).add(_tree.leaf_name(path[place:]))
    for there in fields.values():
        if here & there and here != there:
            name = min(here ^ there)
            side, other = ("gradients", "state of phi") if name in here else ("state of phi", "gradients")
            raise ValueError(
                f"compute_metric: {name} is in the {side} and not in the {other}: after a parameter has come "
                "or gone make the state anew with tx.init, or carry over the rest with "
                "ro.checkpoint.transplant."
            ) from error


def _one_plus(value: jax.Array, alpha: Any) -> jax.Array:
    """Return ``1 + alpha * phi``; where alpha is 0 that is 1, also for a phi that is infinite or NaN."""
    scale = jnp.asarray(alpha).astype(value.dtype)
    if _check.is_concrete_number(alpha):
        # A constant 1 lets the compiler drop the metric: a computed one makes it round Adam differently.
        return jnp.ones_like(value) if alpha == 0 else 1 + scale * value
    unused = jnp.logical_and(scale == 0, ~jnp.isfinite(value))
    return 1 + scale * jnp.where(unused, jnp.zeros_like(value), value)


def _least(mean: jax.Array, alpha: Any) -> jax.Array:
    """Return ``mean / (1 + alpha)``, the least ``E``; where the mean is 0, and so all of phi, that is 1."""
    scale = 1 + jnp.asarray(alpha).astype(mean.dtype)
    return jax.lax.select(mean == 0, jnp.ones_like(mean), mean / scale)


def _share(alpha: Any, dtype: Any) -> jax.Array:
    """Return ``alpha / (1 + alpha)``, the share of phi in ``E``."""
    scale = jnp.asarray(alpha).astype(dtype)
    return scale / (1 + scale)


def check_phi_values(values: Any, gradients: Any) -> None:
    """Raise ``ValueError`` for a phi whose result is not one real value per weight."""
    remedy = "phi must return one value per weight, in the structure of the gradients."
    _check.check_same_structure(values, gradients, "the result of phi", "the gradients", remedy)
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"the result of phi has dtype {leaf.dtype} at {_tree.leaf_name(path)}: phi must be real and "
                "floating point."
            )


def _refuse_covectors(updates: optax.Updates) -> None:
    for leaf in jax.tree.leaves(updates):
        if isinstance(leaf, Covector):
            raise MetricAttachedError(
                f"compute_metric was given a gradient that carries a metric already ({leaf!r}). For a second "
                "factor of E use multiply_metric; for two metrics in a row put scale_by_inverse_metric "
                "between them."
            )


def split(updates: optax.Updates) -> tuple[optax.Updates, optax.Updates]:
    """Return the components and the metric of updates taken between the two stages.

    Args:
      updates: a tree with :class:`Covector` leaves. Leaves without a metric are Euclidean.

    Returns:
      ``(components, metric)``: two trees of arrays in the structure of ``updates``; ``metric`` holds ``E``,
      which is 1 for Euclidean leaves.

    Raises:
      ValueError: where no leaf carries a metric.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> stage_1 = ro.compute_metric(ro.phi.maintenance_energy(), alpha=3.0)
      >>> params = {"w": jnp.array([0.0, 1.0])}
      >>> covectors, _ = stage_1.update({"w": jnp.array([5.0, 6.0])}, stage_1.init(params), params)
      >>> components, metric = ro.split(covectors)
      >>> print(components["w"], metric["w"])
      [5. 6.] [1. 4.]
    """
    require_covectors(updates, "split")
    components = map_covectors(lambda c: c.components, updates)
    metric = map_covectors(
        lambda c: jnp.broadcast_to(c.metric, c.shape),
        updates,
        euclidean=lambda x: jnp.ones_like(x, dtype=_tree.working_dtype(x)),
    )
    return components, metric

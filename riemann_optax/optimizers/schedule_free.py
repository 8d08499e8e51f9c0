"""Schedule-free averaging: no schedule, and no end of the run to choose."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._check import check_transformation
from riemann_optax._state_fields import declare_fields
from riemann_optax._varying import varying_like
from riemann_optax.boundary import check_outermost, check_scalable, completed, is_nnx_optimizer, trained
from riemann_optax.eigenbasis import InEigenbasisState
from riemann_optax.phi import _state


@declare_fields(linear=("iterate",), weights=("iterate",), exact=("iterate",))
class ScheduleFreeState(NamedTuple):
    """State of :func:`schedule_free`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      weight_sum: scalar, float32 or wider, the sum of the averaging weights so far.
      iterate: ``z``, where the base optimiser stands, shaped like the parameters; 0 before the first
        update.
      momentum: scalar, float32 or wider, ``b1``, which :func:`eval_params` needs.
      base: the state of the base optimiser.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    weight_sum: jax.Array
    iterate: optax.Params
    momentum: jax.Array
    base: optax.OptState

    def places_weights(self) -> str:
        """Return what puts weights in a place; what multiplies updates asks for this method."""
        return "schedule_free"


def schedule_free(
    base: optax.GradientTransformation, *, b1: float = 0.9, power: float = 2.0
) -> optax.GradientTransformationExtraArgs:
    r"""Average the iterates of ``base`` in the place of a schedule of its rate.

    .. math::
      z_{t+1} &= z_t + \mathrm{base}(\nabla f(y_t)) \\
      x_{t+1} &= (1 - c_t)\,x_t + c_t\,z_{t+1}, \qquad c_t = \frac{(t+1)^r}{\sum_{s \le t} (s+1)^r} \\
      y_{t+1} &= (1 - \beta_1)\,z_{t+1} + \beta_1\,x_{t+1}

    The parameters that are trained are ``y``, where gradients are taken. **Evaluate at x**, which
    :func:`eval_params` returns. ``base`` includes its learning rate and its sign; weight decay inside it acts
    on ``y``, as published. Nothing after it may change its updates: put what scales them, such as
    ``optax.contrib.reduce_on_plateau``, into ``base``. State: the base's, and 1 value per weight. No
    collective. Put :func:`riemann_optax.master_weights` around it for weights of bfloat16 or float16: ``x``
    is found as the difference of ``y`` and ``z``, and drifts if ``y`` is rounded at each step.

    Args:
      base: a whole optimiser without momentum, such as RMSprop or a metric with its learning rate.
      b1: how far ``y`` lies towards the average, in (0, 1): the momentum of the method.
      power: ``r``; 0 weighs all iterates alike, 2 the later ones more.

    Returns:
      A gradient transformation with state :class:`ScheduleFreeState`.

    Raises:
      ValueError: for a ``b1`` outside (0, 1) or a negative ``power``; at ``init``, where ``base`` places
        weights itself or counts their energy; at ``update``, where ``params`` are missing.
      TypeError: where ``base`` is no gradient transformation.

    Warns:
      UserWarning: at ``init``, for weights narrower than float32.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.schedule_free(optax.sgd(0.5), b1=0.9)
      >>> params = jnp.array([4.0])
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     updates, state = tx.update(2 * params, state, params)  # the loss is the square
      ...     params = optax.apply_updates(params, updates)
      >>> print(ro.eval_params(state, params).round(2))
      [0.]

    References:
      Defazio et al, `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_, NeurIPS, 2024
    """
    check_transformation("base", base)
    _check.check_number("b1", b1, low=0.0, high=1.0, low_open=True, high_open=True)
    _check.check_number("power", power, low=0.0)
    base = optax.with_extra_args_support(base)

    def init(params: optax.Params) -> ScheduleFreeState:
        _tree.check_inexact(params, "params")
        base_state = base.init(params)
        check_scalable("schedule_free", base_state)
        check_outermost("schedule_free", base_state)
        _warn_of_narrow_weights(params)
        return ScheduleFreeState(
            count=jnp.zeros([], jnp.int32),
            weight_sum=_state.wide_scalar(0.0),
            iterate=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=_tree.wide_dtype(p)), params),
            # A copy: the caller's own array may lie in another state, and both be donated.
            momentum=_state.wide_scalar(b1),
            base=base_state,
        )

    def update(
        updates: optax.Updates,
        state: ScheduleFreeState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScheduleFreeState]:
        params = _check.require_params(_tree.trained(params, updates), "schedule_free")
        steps, base_state = base.update(updates, state.base, params, **extra_args)
        dtype = state.weight_sum.dtype
        number, order = state.count.astype(dtype) + 1, jnp.asarray(power, dtype)
        weight = number**order
        weight_sum = state.weight_sum + weight
        # Of a high power the sum overflows in a long run. By then it is this many times the last weight, by
        # Euler and Maclaurin.
        by_then = number / (order + 1) + 0.5 + order / (12 * number)
        share = jnp.where(jnp.isfinite(weight_sum), weight / weight_sum, 1 / by_then)
        # The old y was made with the old b1, which a schedule or a caller may have changed since.
        ratio = b1 / state.momentum

        def advance(y: jax.Array, z: jax.Array, step: jax.Array) -> jax.Array:
            return jnp.where(state.count == 0, y.astype(z.dtype), z) + step.astype(z.dtype)

        def move(y: jax.Array, z: jax.Array, step: jax.Array) -> jax.Array:
            # The new y less the old one with x = (y - (1 - b) (z - step)) / b put in, z being the new one:
            # what read the old z too would make XLA copy it.
            c, r, b = (number.astype(jnp.real(z).dtype) for number in (share, ratio, state.momentum))
            own = r * (1 - b) * (1 - c) * step.astype(z.dtype)
            return (own + (c + (1 - r) * (1 - c)) * (z - y.astype(z.dtype))).astype(y.dtype)

        iterate = jax.tree.map(advance, params, state.iterate, steps)
        moves = jax.tree.map(move, params, iterate, steps)
        return moves, ScheduleFreeState(
            count=optax.safe_increment(state.count),
            weight_sum=weight_sum,
            iterate=iterate,
            momentum=varying_like(_state.wide_scalar(b1), state.momentum),
            base=base_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""Return the weights to evaluate, and to keep, after schedule-free training: the average.

    .. math::
      x = \frac{y - (1 - \beta_1)\,z}{\beta_1}

    with ``y`` the parameters that are trained and ``z`` the ``iterate`` in the state of
    :func:`schedule_free`; before the first update it is ``y``. It is the average only if the updates alone
    move the weights. After a projection, a clip of weights, or a scaling of the updates that follows the
    averaging, such as ``optax.contrib.reduce_on_plateau``, it drifts away, as in ``optax.contrib``. Running
    statistics of BatchNorm belong to ``y``: compute them anew for the average.

    Args:
      state: the state of an optimiser with :func:`schedule_free` in it, as
        :func:`riemannian_schedule_free` makes it, or with several under ``optax.partition``; or an
        ``nnx.Optimizer``, whose averages ``nnx.update(evaluated, ro.eval_params(optimizer, model))`` puts
        into ``evaluated = nnx.clone(model)``. Do not put them into the model itself: training goes on
        from ``y``.
      params: the parameters that are trained with this state, after its last update; with an
        ``nnx.Optimizer`` the model. What ``optax.partition`` keeps from the averaging is returned as it is.

    Returns:
      The averaged weights, in structure and dtypes of ``params``; of a model its trained variables.

    Raises:
      ValueError: where the state holds no average, several of one leaf, one of other parameters, one
        inside of an eigenbasis, or those of several runs.

    Warns:
      UserWarning: where something after the averaging is known to scale its updates.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.riemannian_schedule_free(0.1)
      >>> params = {"w": jnp.ones(2)}
      >>> print(ro.eval_params(tx.init(params), params)["w"])  # not trained yet
      [1. 1.]
    """
    if is_nnx_optimizer(state):
        params = trained("eval_params", state, params)
    boxed, params = params, _tree.bare(params)
    state = _tree.bare(getattr(state, "opt_state", state))
    found = _tree.find_states(state, ScheduleFreeState)
    if not found and _tree.find_states(state, optax.contrib.ScheduleFreeState):
        raise ValueError(
            "eval_params: this average is that of optax.contrib.schedule_free: evaluate "
            "optax.contrib.schedule_free_eval_params(state, params)."
        )
    if not found:
        raise ValueError(
            "eval_params: the state holds no schedule-free average: pass the whole state of "
            "riemannian_schedule_free. Other optimisers are evaluated at their own parameters."
        )
    for outer in _tree.find_states(state, InEigenbasisState):
        if _tree.find_states(outer.inner, ScheduleFreeState):
            raise ValueError(
                "eval_params: schedule-free averaging inside of in_eigenbasis averages turned weights: put "
                "in_eigenbasis inside, schedule_free(in_eigenbasis(...)), and evaluate that."
            )
    _warn_of_what_scales(state)
    _check_averaged_once(found)
    _check_one_run(found)
    evaluated = params
    for own, weights in _averages(state, params):  # of several, each has the leaves of its own group
        evaluated = completed(_average(own, weights), evaluated)
    evaluated = jax.tree.map(lambda x, p: x if x is p else x.astype(_tree.dtype_of(p)), evaluated, params)
    return _tree.like(evaluated, boxed)


def _averages(state: Any, params: optax.Params) -> list[tuple[ScheduleFreeState, optax.Params]]:
    """Return all averages, each with the weights that its optimiser sees: wide ones under master_weights."""

    def is_around(node: Any) -> bool:
        return any(callable(getattr(type(node), method, None)) for method in ("weights_for", "wide"))

    found: list[tuple[ScheduleFreeState, optax.Params]] = []
    for node in jax.tree.leaves(state, is_leaf=lambda node: _is_average(node) or is_around(node)):
        if _is_average(node):
            found.append((node, params))
        elif is_around(node) and hasattr(node, "weights_for"):
            found += _averages(node.inner_state, node.weights_for(params))
        elif is_around(node):
            found += _averages(node.wide(), params)
    return found


def _is_average(node: Any) -> bool:
    return isinstance(node, ScheduleFreeState)


def _warn_of_what_scales(state: Any) -> None:
    """Warn of what may change updates behind the averaging, whose average then drifts away."""
    if isinstance(state, ScheduleFreeState) or not isinstance(state, tuple | dict):
        return
    parts = list(state.values()) if isinstance(state, dict) else list(state)
    averages = [bool(_tree.find_states(part, ScheduleFreeState)) for part in parts]
    is_chain = type(state) is tuple or isinstance(state, dict)  # fields of a state do not follow each other
    for part in parts[averages.index(True) + 1 :] if is_chain and any(averages) else []:
        part = part.inner_state if isinstance(part, optax.MaskedState) else part
        name = type(part).__name__
        if isinstance(part, optax.EmptyState):
            _check.warn(
                "eval_params: a stage without a state stands behind the averaging. Where it changes updates, "
                "as a mask or optax.keep_params_nonnegative does, the average drifts away from the weights: "
                "put it inside, ro.schedule_free(optax.chain(base, ...)), or take an optimiser without "
                "averaging, such as riemannian_adamw."
            )
        elif name.startswith(("ScaleBy", "ReduceLROnPlateau", "Trace", "Ema", "ApplyEvery")):
            _check.warn(
                f"eval_params: {name} stands behind the averaging. What changes its updates there, such as "
                "optax.contrib.reduce_on_plateau, makes the average drift away from the weights: put it "
                "inside, ro.schedule_free(optax.chain(base, ...))."
            )
    for part in parts:
        _warn_of_what_scales(part)


def _check_averaged_once(found: list[ScheduleFreeState]) -> None:
    seen = Counter(
        _tree.leaf_name(path) for own in found for path, _ in jax.tree.leaves_with_path(own.iterate)
    )
    for name, times in seen.items():
        if times > 1:
            raise ValueError(
                f"eval_params: the state holds {times} schedule-free averages of {name}: pass the state "
                "of one optimiser, in which at most one riemannian_schedule_free moves a leaf."
            )


def _check_one_run(found: list[ScheduleFreeState]) -> None:
    for own in found:
        if jnp.ndim(own.count):
            raise ValueError(
                f"eval_params: the state is that of {jnp.size(own.count)} runs at once, as jax.vmap makes "
                "it: map over them, jax.vmap(ro.eval_params)(state, params), or nnx.vmap for Flax NNX."
            )


def _average(own: ScheduleFreeState, params: optax.Params) -> optax.Params:
    """Return ``x`` of the leaves that a state averages; ``masked`` has left out the others."""
    remedy = (
        "pass the parameters that are trained with this state; with Flax NNX, eval_params(optimizer, model)."
    )
    if hasattr(own.iterate, "shape") and not jax.tree_util.treedef_is_leaf(jax.tree.structure(params)):
        raise ValueError(
            "eval_params: the average is one vector of all weights: leave out optax.flatten, or keep it "
            "inside of the averaging, schedule_free(optax.flatten(base))."
        )
    trained_by = _tree.masked_like(_tree.trained(params, own.iterate), own.iterate)
    _check.check_same_structure(own.iterate, trained_by, "the average", "params", remedy)

    def average(y: jax.Array, z: jax.Array) -> jax.Array:
        y = jnp.asarray(y)
        x = (y.astype(z.dtype) - (1 - own.momentum) * z) / own.momentum
        return jnp.where(own.count == 0, y, x.astype(y.dtype))

    # In an optimiser of Flax the state's containers may be others than those of the parameters.
    leaves, treedef = jax.tree.flatten(trained_by)
    return jax.tree.unflatten(treedef, map(average, leaves, jax.tree.leaves(own.iterate)))


def _warn_of_narrow_weights(params: optax.Params) -> None:
    """Warn where weights are rounded so coarsely that their average, a difference, cannot be kept exactly."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(_tree.bare(params)):
        dtype = _tree.dtype_of(leaf)
        if jnp.finfo(dtype).bits < 32:  # type: ignore[no-untyped-call]
            _check.warn(
                f"schedule_free: {_tree.leaf_name(path)} is {jnp.dtype(dtype)}, and each step is rounded to "
                "that: the average, which is found from weights and iterate, drifts away in a long run. Keep "
                "the weights wide inside of the optimiser: "
                "ro.master_weights(ro.riemannian_schedule_free(rate))."
            )
            return

"""What weights are pulled back to: the initial, slow, chained or task-boundary weights."""

import itertools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Declared
from riemann_optax._state_fields import declare_fields
from riemann_optax.boundary import consolidated_where
from riemann_optax.phi import _state


@declare_fields(linear=("weights",), weights=("weights",), exact=("weights",))
class AnchorState(NamedTuple):
    """State of :func:`initial_weights` and :func:`slow_weights`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      weights: the anchor, shaped like the parameters; zeros before the first update.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    weights: optax.Params


def initial_weights() -> optax.GradientTransformationExtraArgs:
    """Anchor: the parameters as they are at the first update, :math:`a = w_0`.

    State: 1 value per weight, in the dtype of the parameters. No collective. Needs ``params``.

    Returns:
      An anchor with state :class:`AnchorState`.

    Raises:
      ValueError: at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> anchor = ro.anchor.initial_weights()
      >>> state = anchor.init(jnp.zeros(1))
      >>> for weight in (3.0, 4.0):
      ...     target, state = anchor.update(jnp.zeros(1), state, jnp.array([weight]))
      ...     print(target)
      [3.]
      [3.]

    References:
      Kumar, Marklund and Van Roy, `Maintaining Plasticity in Continual Learning via Regenerative
      Regularization <https://arxiv.org/abs/2308.11958>`_, arXiv, 2023
    """

    def init(params: optax.Params) -> AnchorState:
        return AnchorState(jnp.zeros([], jnp.int32), _state.zeros_of(params))

    def update(
        updates: optax.Updates, state: AnchorState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Params, AnchorState]:
        del updates, extra_args
        params = _check.require_params(params, "initial_weights")
        weights = _state.first_or(params, state.weights, state.count)
        return weights, AnchorState(optax.safe_increment(state.count), weights)

    return optax.GradientTransformationExtraArgs(init, update)


def slow_weights(*, decay: float = 0.999, state_dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    r"""Anchor: a running mean of the weights, :math:`a_t = \beta a_{t-1} + (1 - \beta) w_t`, from ``w_0`` on.

    State: 1 value per weight. No collective. Needs ``params``.

    Args:
      decay: of the running mean, in [0, 1). Default 0.999 (ours): a memory of about 1000 updates.
      state_dtype: of the mean; None means float32, or wider where the parameter is wider. A bfloat16 mean
        would stall at this decay, and is refused.

    Returns:
      An anchor with state :class:`AnchorState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1) or a ``state_dtype`` that is not real floating
        point; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> anchor = ro.anchor.slow_weights(decay=0.75)
      >>> state = anchor.init(jnp.zeros(1))
      >>> for weight in (3.0, 4.0):
      ...     target, state = anchor.update(jnp.zeros(1), state, jnp.array([weight]))
      ...     print(target)
      [3.]
      [3.25]

    References:
      Tarvainen and Valpola, `Mean teachers are better role models <https://arxiv.org/abs/1703.01780>`_,
      NeurIPS, 2017: the running mean of the weights
    """
    _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> AnchorState:
        return AnchorState(jnp.zeros([], jnp.int32), _weights_like(params, state_dtype))

    def update(
        updates: optax.Updates, state: AnchorState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Params, AnchorState]:
        del updates, extra_args
        params = _check.require_params(params, "slow_weights")
        old = _state.first_or(params, state.weights, state.count)
        weights = jax.tree.map(
            lambda a, w: a + jnp.asarray(1 - decay).astype(a.dtype) * (w.astype(a.dtype) - a), old, params
        )
        return weights, AnchorState(optax.safe_increment(state.count), weights)

    return optax.GradientTransformationExtraArgs(init, update)


@declare_fields(linear=("copies",), weights=("copies",), exact=("copies",))
class BennaFusiState(NamedTuple):
    """State of :func:`benna_fusi_chain`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      copies: the slow copies of the weights, the fastest first, each shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    copies: tuple[optax.Params, ...]


def benna_fusi_chain(
    *, copies: int = 3, coupling: float = 0.125, leak: bool = False, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Anchor: the first of a chain of ever slower copies of the weights (a complex synapse).

    .. math::
      C_k\,\Delta u_k = g_{k-1}\,(u_{k-1} - u_k) - g_k\,(u_k - u_{k+1}), \qquad
      C_k = 2^k, \quad g_k = \mathrm{coupling}\cdot 2^{-k}, \qquad k = 1 \dots K

    with ``u_0`` the weight itself: communicating vessels, each twice as wide as the one before and joined by
    a tube half as wide, so that copy ``k`` takes about ``4**k / coupling`` updates to follow and memories
    fade like a power of time. The weight's own share of the first tube is the pull: after stage 2,
    ``add_anchored_weights(coupling / learning_rate, benna_fusi_chain(coupling=coupling))`` is the published
    synapse, which keeps ``sum C_k u_k`` over the weight and its copies. With ``leak=True`` it is equal to the
    authors' equations in float64.

    State: ``copies`` values per weight. No collective. Needs ``params``.

    Args:
      copies: ``K``, the number of slow copies, at least 1.
      coupling: ``g_0``, the share of the distance between the weight and its first copy exchanged per update,
        in (0, 1]. Default 1/8, as in Kaplanis et al.
      leak: if True the last copy decays towards 0, as published, so that every memory fades; by default it
        does not.
      state_dtype: of the copies; None means float32, or wider where the parameter is wider.

    Returns:
      An anchor with state :class:`BennaFusiState`; all copies start as the parameters of the first update.

    Raises:
      ValueError: for ``copies`` below 1, a concrete ``coupling`` outside (0, 1] or a ``state_dtype`` that is
        not real floating point; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> anchor = ro.anchor.benna_fusi_chain(copies=1, coupling=1.0)
      >>> state = anchor.init(jnp.zeros(1))
      >>> for weight in (0.0, 8.0, 8.0):  # u_1 closes half of the distance per update: g_0 / C_1
      ...     target, state = anchor.update(jnp.zeros(1), state, jnp.array([weight]))
      ...     print(target, state.copies[0])
      [0.] [0.]
      [0.] [4.]
      [4.] [6.]

    References:
      Benna and Fusi, `Computational principles of synaptic memory consolidation
      <https://doi.org/10.1038/nn.4401>`_, Nature Neuroscience, 2016

      Kaplanis, Shanahan and Clopath, `Continual Reinforcement Learning with Complex Synapses
      <https://arxiv.org/abs/1802.07239>`_, ICML, 2018
    """
    _check.check_count("copies", copies)
    _check.check_flag("leak", leak)
    _check.check_number("coupling", coupling, low=0.0, high=1.0, low_open=True)
    _check.check_state_dtype(state_dtype)
    narrow = state_dtype is not None and jnp.dtype(state_dtype).itemsize < 4
    if narrow and _check.is_concrete_number(coupling):
        unit = float(jnp.finfo(state_dtype).eps)  # type: ignore[no-untyped-call]
        share = coupling * 2 * 4.0**-copies
        if share < unit:
            raise ValueError(
                f"state_dtype: in {jnp.dtype(state_dtype)} the last of {copies} copies stalls, as it goes "
                f'{share:.2g} of its way at a time: give state_dtype="float32", or fewer copies.'
            )

    def init(params: optax.Params) -> BennaFusiState:
        return BennaFusiState(
            jnp.zeros([], jnp.int32), tuple(_weights_like(params, state_dtype) for _ in range(copies))
        )

    def update(
        updates: optax.Updates, state: BennaFusiState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Params, BennaFusiState]:
        del updates, extra_args
        params = _check.require_params(params, "benna_fusi_chain")
        vessels = tuple(_state.first_or(params, copy, state.count) for copy in state.copies)

        def flow(weight: jax.Array, *levels: jax.Array) -> tuple[jax.Array, ...]:
            chain = [weight.astype(levels[0].dtype), *levels]
            # Tube k joins vessels k and k + 1; all flows belong to the levels before the update.
            flows = [
                jnp.asarray(coupling * 2.0**-k).astype(u.dtype) * (u - below)
                for k, (u, below) in enumerate(itertools.pairwise(chain))
            ]
            last = jnp.asarray(coupling * 2.0**-copies * leak).astype(chain[-1].dtype) * chain[-1]
            outflows = [*flows[1:], last]
            return tuple(
                u + (inflow - outflow) / 2.0**k
                for k, (u, inflow, outflow) in enumerate(zip(levels, flows, outflows, strict=True), start=1)
            )

        moved = jax.tree.map(flow, params, *vessels)
        new_copies = tuple(
            jax.tree.map(lambda _, levels, k=k: levels[k], params, moved) for k in range(copies)
        )
        return vessels[0], BennaFusiState(optax.safe_increment(state.count), new_copies)

    return optax.GradientTransformationExtraArgs(init, update)


@declare_fields(linear=("weights",), weights=("weights",), exact=("weights",))
class TaskBoundaryState(NamedTuple):
    """State of :func:`task_boundary_weights`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      tasks: int32 scalar, the number of task boundaries so far.
      weights: the parameters at the last boundary, or at the first update.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    tasks: jax.Array
    weights: optax.Params

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after a task boundary; :func:`riemann_optax.consolidate` calls it."""
        # Before the first update no task of this state has ended: one that somebody has measured has.
        ended = (self.count > 0) | (task_importance is not None)
        return self._replace(
            tasks=jnp.where(ended, optax.safe_increment(self.tasks), self.tasks),
            weights=_state.copy_like(_tree.masked_like(params, self.weights), self.weights),
        )


def task_boundary_weights(*, from_start: bool = False) -> optax.GradientTransformationExtraArgs:
    """Anchor: the parameters at the last task boundary, :math:`a = w_k` from the end of task ``k`` on.

    A boundary is announced by the extra argument ``task_boundary`` of ``update`` (one boolean: this update is
    the first of a new task) or by :func:`riemann_optax.consolidate`. One before the first update is ignored,
    unless a ``task_importance`` is given with it: that of the task of a pretrained model. Weighted by a
    precision, the pull is that of elastic weight consolidation, or of the Laplace rule:
    ``add_anchored_weights(rate, task_boundary_weights(), precision="phi")`` between the stages.

    State: 1 value per weight, in the dtype of the parameters. No collective. Needs ``params``. In a Flax NNX
    loop: ``optimizer.update(model, gradients, task_boundary=boundary)``.

    Args:
      from_start: False (default) pulls to nothing until the first boundary, as published for elastic weight
        consolidation; True pulls to the first weights until then, the mode of the prior in the Laplace rule.

    Returns:
      An anchor with state :class:`TaskBoundaryState`.

    Raises:
      TypeError: where ``from_start`` is no boolean.
      ValueError: at ``update``, where ``params`` are missing, or ``task_boundary`` is no single boolean.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> anchor = ro.anchor.task_boundary_weights()
      >>> state = anchor.init(jnp.zeros(1))
      >>> for weight, boundary in ((1.0, False), (2.0, False), (3.0, True), (4.0, False)):
      ...     params = jnp.array([weight])
      ...     target, state = anchor.update(jnp.zeros(1), state, params, task_boundary=boundary)
      ...     print(target)
      [1.]
      [2.]
      [3.]
      [3.]

    References:
      Kirkpatrick et al, `Overcoming catastrophic forgetting in neural networks
      <https://doi.org/10.1073/pnas.1611835114>`_, PNAS, 2017
    """
    _check.check_flag("from_start", from_start)

    def init(params: optax.Params) -> TaskBoundaryState:
        return TaskBoundaryState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), _state.zeros_of(params))

    def update(
        updates: optax.Updates,
        state: TaskBoundaryState,
        params: optax.Params | None = None,
        *,
        task_boundary: Any = None,
        task_importance: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Params, TaskBoundaryState]:
        del updates, extra_args
        params = _check.require_params(params, "task_boundary_weights")
        state = consolidated_where(task_boundary, state, params, task_importance)
        weights = _state.first_or(params, state.weights, state.count)
        target = weights if from_start else _state.first_or(params, weights, state.tasks)
        return target, state._replace(count=optax.safe_increment(state.count), weights=weights)

    return Declared(init, update, name="task_boundary_weights", needs=("task_boundary",))


def _weights_like(params: optax.Params, state_dtype: Any) -> optax.Params:
    """Return zeros for averaged weights: in ``state_dtype``, or at least float32; complex where they are."""

    def zeros(weight: Any) -> jax.Array:
        narrow = state_dtype is not None and not jnp.issubdtype(_tree.dtype_of(weight), jnp.complexfloating)
        return jnp.zeros_like(weight, dtype=state_dtype if narrow else _tree.wide_dtype(weight))

    return jax.tree.map(zeros, params)

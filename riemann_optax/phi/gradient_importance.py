"""Importance measured from gradients: Fisher information and output sensitivity, summed over tasks."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi, required
from riemann_optax._state_fields import declare_fields
from riemann_optax.boundary import consolidated_where
from riemann_optax.phi import _state


@declare_fields(squared=("task_mean", "importance"))
class ImportanceState(NamedTuple):
    """State of :func:`online_ewc`, :func:`laplace` and :func:`memory_aware_synapses`.

    Attributes:
      count: int32 scalar, the number of updates since the last task boundary.
      memory: scalar, the argument of that name at the last update, which ``consolidate`` needs.
      task_mean: running mean of the importance in the present task, shaped like the parameters; ``()`` with
        ``running=False``.
      importance: the importance from all finished tasks, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    memory: jax.Array
    task_mean: optax.Updates
    importance: optax.Updates

    @property
    def takes_importance(self) -> bool:
        """Whether ``consolidated`` can make use of a ``task_importance``."""
        return True

    @property
    def needs_importance(self) -> bool:
        """Whether ``consolidated`` has to be given a ``task_importance``, as with ``running=False``."""
        return len(jax.tree.leaves(self.task_mean)) < len(jax.tree.leaves(self.importance))

    def consolidated(self, params: optax.Params, task_importance: optax.Params | None = None) -> Self:
        """Return the state after a task boundary; :func:`riemann_optax.consolidate` calls it."""
        del params
        if task_importance is not None:
            measured = _tree.masked_like(task_importance, self.importance)
            _check.check_same_structure(
                measured, self.importance, "task_importance", "params", "give one number per weight."
            )
        elif self.needs_importance:
            raise ValueError(
                "with running=False the importance of a task is measured at its end: pass task_importance to "
                "consolidate, or to each update whose task_boundary may be true."
            )
        else:
            measured = self.task_mean

        def fold(total: jax.Array, task: jax.Array) -> jax.Array:
            wide = _tree.to_working_dtype(total)
            task = jnp.asarray(task).astype(wide.dtype)
            return _state.narrowed(self.memory.astype(wide.dtype) * wide + task, total.dtype)

        return self._replace(
            count=jnp.zeros_like(self.count),
            task_mean=jax.tree.map(jnp.zeros_like, self.task_mean),
            importance=jax.tree.map(fold, self.importance, measured),
        )


def online_ewc(
    *, memory: float = 1.0, decay: float = 0.99, running: bool = True, state_dtype: Any = None
) -> Phi:
    r"""Diagonal Fisher information of the finished tasks (online elastic weight consolidation).

    .. math::
      \varphi = F, \qquad F \leftarrow \gamma F + F_\mathrm{task} \ \text{ at each task boundary}, \qquad
      F_\mathrm{task} = \overline{\tfrac1B \textstyle\sum_{b} |g_b|^2}

    with ``g_b`` the gradient of example ``b`` of ``B`` and a bar for the bias-corrected running mean over the
    updates of the task. Phi stays as it is within a task.

    Give the gradient of each example as the extra argument ``per_example_gradients``, with a leading batch
    axis: ``jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)``. **Without them phi is the batched
    Fisher**, the square of the batch-mean gradient: ``1/B`` of the Fisher where per-example gradients are
    independent with mean zero, and more where they agree. The true Fisher uses labels drawn from the model;
    with labels of the data it is the empirical Fisher.

    Add the published penalty separately: ``add_anchored_weights(rate, anchor, precision="phi")`` between the
    stages, with ``alpha = learning_rate * rate``, is its implicit step. For a penalty ``lambda/2 * sum F (w -
    w_old)**2``, as in both papers, the rate is ``lambda``; for programs that leave out the half, it is ``2 *
    lambda``. The anchor :func:`riemann_optax.anchor.importance_weighted_weights` makes it Kirkpatrick's, with
    the weights of every task, and :func:`riemann_optax.anchor.task_boundary_weights` Schwarz's, with those of
    the last; both are equal to the papers' in float64. The papers measure ``F_task`` after training, at the
    mode: pass that as ``task_importance`` at the boundary.

    ``phi >= 0``. State: 2 values per weight, 1 with ``running=False``. No collective, but for the mean over
    the batch axis of ``per_example_gradients`` where that axis is sharded.

    Extra arguments of ``update``, all optional: ``task_boundary`` (one boolean: this update is the first of a
    new task), ``per_example_gradients``, ``task_importance`` (the ``F_task`` of the task that has just ended,
    instead of the running mean). In a Flax NNX loop: ``optimizer.update(model, gradients,
    per_example_gradients=per_example, task_boundary=boundary)``. For ``TrainState`` see
    :func:`riemann_optax.consolidate`.

    Args:
      memory: ``gamma``, the share of ``F`` that survives a boundary, in [0, 1]. Default 1: nothing is
        forgotten, as in Kirkpatrick et al. Below 1 it is Schwarz et al.'s.
      decay: of the running mean within a task, in [0, 1]; 1 is the plain mean over the task. Default 0.99
        (ours): the last 100 updates or so, where the weights are near the mode.
      running: False keeps no running mean: each update whose ``task_boundary`` may be true then needs
        ``task_importance``.
      state_dtype: of both trees; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`ImportanceState`, in units of loss squared per weight squared (of log
      likelihood: inverse weight squared).

    Raises:
      ValueError: for a concrete ``memory`` or ``decay`` outside [0, 1]; at ``update``, for
        ``per_example_gradients`` that lack the batch axis, for a ``task_boundary`` that is no single boolean,
        or where ``running=False`` and ``task_importance`` is missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.online_ewc()
      >>> params = jnp.zeros(1)
      >>> per_example = jnp.array([[1.0], [-3.0]])
      >>> _, state = phi.update(per_example.mean(0), phi.init(params), per_example_gradients=per_example)
      >>> state = ro.consolidate(state, params)
      >>> print(state.importance)  # (1 + 9) / 2; the batched Fisher would be (-1)**2
      [5.]

    References:
      Kirkpatrick et al, `Overcoming catastrophic forgetting in neural networks
      <https://doi.org/10.1073/pnas.1611835114>`_, PNAS, 2017

      Schwarz et al, `Progress & Compress: A scalable framework for continual learning
      <https://arxiv.org/abs/1805.06370>`_, ICML, 2018
    """
    return _accumulated_importance("online_ewc", fisher_information, memory, decay, running, state_dtype)


def laplace(
    *,
    examples_per_task: float = 1.0,
    memory: float = 1.0,
    decay: float = 0.99,
    running: bool = True,
    state_dtype: Any = None,
) -> Phi:
    r"""Posterior precision that the finished tasks have added to the prior's (natural continual learning).

    .. math::
      \varphi = \sum_\mathrm{tasks} F_k, \qquad F_k = N\,\overline{\tfrac1B \textstyle\sum_b |g_b|^2}, \qquad
      E = 1 + \sigma_0^2\,\varphi = \sigma_0^2\,\Lambda, \quad
      \Lambda = \sigma_0^{-2} + \sum_\mathrm{tasks} F_k

    ``alpha`` is the variance ``sigma_0**2`` of the prior. The published step preconditions the log posterior
    by the precision of the task's prior, whose mode ``mu`` is the mode of the last task:

    .. math::
      w \leftarrow w - \eta\,\big(\sigma_0^2\,\nabla\ell(w) / E + w - \mu\big)

    which is, ``l`` being the negative log likelihood of the whole task (``N`` times the mean loss)::

        optax.chain(
            ro.compute_metric(ro.phi.laplace(examples_per_task=N), alpha=prior_variance),
            ro.scale_by_inverse_metric(),
            optax.scale(N * prior_variance),
            ro.add_anchored_weights(1.0, ro.anchor.task_boundary_weights()),
            optax.scale_by_learning_rate(learning_rate),
        )

    In the first task ``E = 1``: gradient descent, and no pull. Equal to the paper's rule in float64 with a
    diagonal precision. :func:`riemann_optax.in_eigenbasis` around the chain makes it diagonal in the basis of
    both Kronecker factors, with measured eigenvalues; the paper's are products.

    ``phi >= 0``. State: 2 values per weight, 1 with ``running=False``. No collective, but for the mean over
    the batch axis of ``per_example_gradients`` where that axis is sharded. Extra arguments of ``update``, all
    optional, as for :func:`online_ewc`: ``task_boundary``, ``per_example_gradients`` (**without them phi is
    the batched Fisher**, about ``1/B`` of it) and ``task_importance``, here the *sum* of the Fisher over the
    examples. In a Flax NNX loop: ``optimizer.update(model, gradients, per_example_gradients=per_example,
    task_boundary=boundary)``. The gradients must be of a log likelihood.

    Args:
      examples_per_task: ``N``, the number of examples in a task, positive; the mean over the updates times
        ``N`` is the sum over the examples. Default 1: phi per example.
      memory: the share of the sum that survives a boundary, in [0, 1]. Default 1, the published sum.
      decay: of the running mean within a task, in [0, 1], as for :func:`online_ewc`. Default 0.99 (ours).
      running: False keeps no running mean: each update whose ``task_boundary`` may be true then needs
        ``task_importance``.
      state_dtype: of both trees; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`ImportanceState`, a precision: inverse weight squared.

    Raises:
      ValueError: for a concrete ``examples_per_task`` that is not positive, or ``memory`` or ``decay``
        outside [0, 1]; at ``update`` as :func:`online_ewc`.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.laplace(examples_per_task=100)
      >>> params = jnp.zeros(1)
      >>> per_example = jnp.array([[2.0], [-2.0]])
      >>> _, state = phi.update(per_example.mean(0), phi.init(params), per_example_gradients=per_example)
      >>> print(ro.consolidate(state, params).importance)  # 100 examples of Fisher information 4
      [400.]

    References:
      Kao et al, `Natural continual learning: success is a journey, not (just) a destination
      <https://arxiv.org/abs/2106.08085>`_, NeurIPS, 2021
    """
    _check.check_number("examples_per_task", examples_per_task, low=0.0, low_open=True)

    def measure(updates: optax.Updates, per_example_gradients: optax.Updates | None) -> optax.Updates:
        fisher = fisher_information(updates, per_example_gradients)
        return jax.tree.map(lambda f: jnp.asarray(examples_per_task).astype(f.dtype) * f, fisher)

    return _accumulated_importance("laplace", measure, memory, decay, running, state_dtype)


def memory_aware_synapses(
    *, memory: float = 1.0, decay: float = 1.0, running: bool = True, state_dtype: Any = None
) -> Phi:
    r"""How much the size of the network's output depends on each weight (memory aware synapses).

    .. math::
      \varphi = \Omega, \qquad
      \Omega \leftarrow \gamma\,\Omega + \frac1N \sum_{n=1}^N
      \left|\frac{\partial \lVert f(x_n; w)\rVert_2^2}{\partial w}\right| \ \text{ at each task boundary}

    The published penalty ``lambda * sum Omega (w - w_old)**2`` is ``add_anchored_weights(2 * lambda,
    anchor.task_boundary_weights(), precision="phi")`` between the stages. Equal to the paper's in float64.

    Labels are not needed, nor is the loss: give the gradient of the squared norm of the output for each
    example as the extra argument ``output_norm_gradients``, with a leading batch axis:
    ``jax.vmap(jax.grad(lambda w, x: jnp.sum(f(w, x) ** 2)), in_axes=(None, 0))(params, inputs)``. Phi stays
    as it is within a task.

    ``phi >= 0``. State: 2 values per weight, 1 with ``running=False``. No collective, but for the mean over
    the batch axis where that axis is sharded.

    Extra arguments of ``update``: ``output_norm_gradients`` (needed unless ``running=False``);
    ``task_boundary`` (one boolean: this update is the first of a new task); ``task_importance`` (the mean
    over examples of the absolute gradients for the task that has just ended, measured after training as in
    the paper's experiments). In a Flax NNX loop: ``optimizer.update(model, gradients,
    output_norm_gradients=per_example, task_boundary=boundary)``. With ``TrainState`` use ``running=False``
    and ``ro.consolidate(opt_state, params, task_importance)``.

    Args:
      memory: ``gamma``, the share of ``Omega`` that survives a boundary, in [0, 1]. Default 1, the published
        sum.
      decay: of the running mean within a task, in [0, 1]. Default 1: the plain mean over all examples of the
        task, as published.
      running: False keeps no running mean: each update whose ``task_boundary`` may be true then needs
        ``task_importance``.
      state_dtype: of both trees; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`ImportanceState`, in units of output squared per weight.

    Raises:
      ValueError: for a concrete ``memory`` or ``decay`` outside [0, 1]; at ``update``, where
        ``output_norm_gradients`` are missing or lack the batch axis, for a ``task_boundary`` that is no
        single boolean, or where ``running=False`` and ``task_importance`` is missing.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.memory_aware_synapses()
      >>> params = jnp.array([2.0, 1.0])
      >>> inputs = jnp.array([[1.0, 0.0], [0.0, 3.0]])  # the output is params @ x
      >>> per_example = jax.vmap(jax.grad(lambda w, x: (w @ x) ** 2), in_axes=(None, 0))(params, inputs)
      >>> _, state = phi.update(params, phi.init(params), params, output_norm_gradients=per_example)
      >>> print(ro.consolidate(state, params).importance)  # mean of |2 (w @ x) x|
      [2. 9.]

    References:
      Aljundi et al, `Memory Aware Synapses: Learning what (not) to forget
      <https://arxiv.org/abs/1711.09601>`_, ECCV, 2018
    """

    def measure(updates: optax.Updates, output_norm_gradients: optax.Updates | None) -> optax.Updates:
        output_norm_gradients = required(
            "memory_aware_synapses",
            "output_norm_gradients",
            output_norm_gradients,
            "; or set running=False and measure it at task boundaries",
        )
        return mean_over_examples(
            _tree.magnitude, output_norm_gradients, updates, "output_norm_gradients", "squared output norm"
        )

    return _accumulated_importance(
        "memory_aware_synapses", measure, memory, decay, running, state_dtype, "output_norm_gradients"
    )


def fisher_information(updates: optax.Updates, per_example_gradients: optax.Updates | None) -> optax.Updates:
    """Return the mean squared per-example gradient; without these, the square of the batch gradient."""
    if per_example_gradients is None:
        return jax.tree.map(_tree.squared_magnitude, updates)
    return mean_over_examples(
        _tree.squared_magnitude, per_example_gradients, updates, "per_example_gradients", "loss"
    )


def mean_over_examples(
    function: Callable[[jax.Array], jax.Array],
    examples: optax.Updates,
    updates: optax.Updates,
    argument: str,
    quantity: str,
) -> optax.Updates:
    """Return the mean of ``function`` over the leading axis of each leaf of an extra argument."""

    def mean(path: tuple[Any, ...], gradient: jax.Array, leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if leaf.shape[1:] != jnp.shape(gradient) or leaf.ndim == jnp.ndim(gradient):
            raise ValueError(
                f"{argument} has shape {leaf.shape} at {_tree.leaf_name(path)}, whose gradient has shape "
                f"{jnp.shape(gradient)}: it needs a leading batch axis, and in it the gradient of each "
                f"example's {quantity}."
            )
        return jnp.mean(function(leaf), axis=0)

    return jax.tree_util.tree_map_with_path(mean, updates, examples)


def _accumulated_importance(
    name: str,
    measure: Callable[[optax.Updates, optax.Updates | None], optax.Updates],
    memory: float,
    decay: float,
    running: bool,
    state_dtype: Any,
    argument: str = "per_example_gradients",
) -> Phi:
    """Return a phi that sums, over tasks, the mean of ``measure`` within each."""
    _check.check_share("memory", memory)
    _check.check_flag("running", running)
    _check.check_share("decay", decay)
    _check.check_state_dtype(state_dtype, squares=True)
    if running:
        _check.check_mean_moves("decay", decay, "state_dtype", state_dtype)

    def init(params: optax.Params) -> ImportanceState:
        return ImportanceState(
            count=jnp.zeros([], jnp.int32),
            memory=_state.wide_scalar(memory),
            task_mean=_tree.zeros_like(params, state_dtype) if running else (),
            importance=_tree.zeros_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: ImportanceState,
        params: optax.Params | None = None,
        *,
        task_boundary: Any = None,
        task_importance: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ImportanceState]:
        state = state._replace(memory=_state.wide_scalar(memory))
        state = consolidated_where(task_boundary, state, params, task_importance)
        count = optax.safe_increment(state.count)
        task_mean = state.task_mean
        if running:
            weight = _state.newest_weight(decay, count)

            def average(x: jax.Array, mean: jax.Array) -> jax.Array:
                wide = mean.astype(x.dtype)
                return _state.narrowed(wide + weight.astype(x.dtype) * (x - wide), mean.dtype)

            task_mean = jax.tree.map(average, measure(updates, extra_args.get(argument)), task_mean)
        values = jax.tree.map(lambda g, i: i.astype(_tree.working_dtype(g)), updates, state.importance)
        return values, state._replace(count=count, task_mean=task_mean)

    needs = (argument, "task_boundary") if running else ("task_boundary", "task_importance")
    return Phi(init, update, name=name, needs=needs)

"""The aliases: whole optimisers, each a chain and nothing else."""

from typing import Any

import optax

from riemann_optax import _check
from riemann_optax._tree import Group
from riemann_optax.edits.lifting import on_gradient
from riemann_optax.inspect.recording import record_metric
from riemann_optax.metric import Role, compute_metric
from riemann_optax.phi import activity, factored_activity
from riemann_optax.scaling import in_orthonormal_frame, scale_by_inverse_metric


def riemannian_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = 0.9,
    nesterov: bool = True,
    *,
    phi: optax.GradientTransformation | None = None,
    alpha: optax.ScalarOrSchedule = 100.0,
    role: Role = "metric",
    conformal: Group | None = "tree",
    weight_decay: float | None = None,
    mask: Any = None,
    decay_in_metric: bool = False,
    record: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent under a metric, with momentum on the tangent: Eqs. 2 and 3 of the paper.

    .. math::
      v \leftarrow m\,v + \frac{\nabla f(w)}{E}, \qquad
      w \leftarrow w - \eta\,\Big(m\,v + \frac{\nabla f(w)}{E}\Big), \qquad E = c\,(1 + \alpha\,\varphi)

    with :math:`c` the conformal factor. The chain: :func:`compute_metric`,
    :func:`record_metric` if asked for, :func:`scale_by_inverse_metric`, ``optax.trace``, decoupled weight
    decay, ``optax.scale_by_learning_rate``.

    **The defaults** are those that most of the tasks of ``python -m benchmarks.time_to_target`` choose, each
    left out once, on its tuning seeds; ``benchmarks/REPORT.md`` has what they then reach. They hold one value
    per weight of a matrix, half of Adam's state. Begin at a rate of 0.003: a tenth of Adam's, because
    momentum by ``optax.trace`` sums what Adam averages. **The equations alone** are ``momentum=None,
    conformal=None, alpha=1.0``; with ``alpha=0.0`` and no ``conformal`` this
    equals ``optax.sgd`` of the same momentum bit for bit.

    Args:
      learning_rate: a number or a schedule.
      momentum: decay of ``optax.trace`` on the tangent vector, or None. As in ``optax.sgd``, momentum
        multiplies the size of a steady step by ``1 / (1 - momentum)``.
      nesterov: whether momentum is Nesterov's.
      phi: what the metric measures; by default ``phi.factored_activity(decay=0.97)``.
      alpha: the scaling factor: a number, a schedule or a traced scalar.
      role: ``"metric"`` divides by ``1 + alpha*phi`` (the equations), ``"inverse_metric"`` multiplies by it.
      conformal: None, or the group over which :func:`compute_metric` takes the scale of the metric. Without
        it the size of a step falls with the mean of ``E``, and the best rate depends on phi and alpha.
      weight_decay: strength of decoupled weight decay, times the learning rate; or None.
      mask: which leaves decay: a tree of booleans or a function of the parameters, as in ``optax.adamw``.
      decay_in_metric: False decays all weights at the same rate (as AdamW does), outside of the metric and of
        momentum; True adds the decay to the gradient not seen by phi: divided by ``E`` (stiff weights decay
        less) and averaged by momentum.
      record: whether to keep statistics of ``E`` for :func:`metric_statistics`.
      state_dtype: of momentum and of the default phi.

    Returns:
      A gradient transformation.

    Raises:
      ValueError, TypeError: as the parts of the chain do.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> loss = lambda w: (w[0] - 3.0) ** 2 + 50.0 * (w[1] + 2.0) ** 2
      >>> tx = ro.riemannian_sgd(
      ...     3.0, momentum=None, phi=ro.phi.secant_curvature(), alpha=10.0, conformal=None
      ... )
      >>> params = jnp.array([1.0, -1.0])
      >>> state = tx.init(params)
      >>> for _ in range(40):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      [ 3.0000 -2.0000]

    References:
      Kang, Son and Joel, *Biological Synaptic Plasticity Based Riemannian Geometry AI Learning Optimization
      Mechanism*: Eqs. 2 and 3.
    """
    _check.check_schedulable("learning_rate", learning_rate)
    if momentum is not None:
        _check.check_decay(momentum, "momentum")
    if weight_decay is not None:
        _check.check_schedulable("weight_decay", weight_decay)
    if phi is None:
        phi = factored_activity(decay=0.97, state_dtype=state_dtype)
    stages = [
        *_metric_stages(phi, alpha, role, conformal, record, state_dtype),
        scale_by_inverse_metric(),
    ]
    if weight_decay is not None and decay_in_metric:
        stages.insert(-1, on_gradient(optax.add_decayed_weights(weight_decay, mask)))
    if momentum is not None:
        stages.append(optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=state_dtype))
    if weight_decay is not None and not decay_in_metric:
        stages.append(optax.add_decayed_weights(weight_decay, mask))
    return optax.chain(*stages, optax.scale_by_learning_rate(learning_rate))


def riemannian_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    weight_decay: float = 1e-4,
    mask: Any = None,
    nesterov: bool = True,
    phi: optax.GradientTransformation | None = None,
    alpha: optax.ScalarOrSchedule = 1.0,
    role: Role = "metric",
    conformal: Group | None = None,
    decay_in_metric: bool = False,
    record: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW in the orthonormal frame of a metric: Riemannian Adam with decoupled weight decay.

    .. math::
      w \leftarrow w - \eta\,\big(g^{-1/2}\,\mathrm{Adam}(g^{-1/2}\,\nabla f) + \lambda w\big)

    Adam divides by its own running mean of the gradient in the frame, and thereby takes out any constant
    factor put in: of a metric that does not change, one factor ``1/sqrt(E)`` is left in the step. With
    ``alpha=0`` (and no ``conformal``) it equals ``optax.nadamw`` bit for bit, and with ``nesterov=False``
    ``optax.adamw``.
    Momentum in the frame is parallel transport exactly where each ``E_i`` depends on ``w_i`` alone,
    approximately otherwise.

    Of the defaults only Nesterov's momentum differs from AdamW's: it is what the benchmark suite gains by
    (``benchmarks/REPORT.md``). The default phi adds nothing to it there, since Adam measures activity
    already: this alias is for a phi that measures something else.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the running mean of the gradient in the frame.
      b2: decay of the running mean of its square.
      eps: added to the denominator outside of the root.
      eps_root: added inside of the root.
      weight_decay: strength of decoupled weight decay, times the learning rate.
      mask: which leaves decay: a tree of booleans or a function of the parameters.
      nesterov: whether momentum is Nesterov's, as in ``optax.nadamw``.
      phi: what the metric measures; by default ``phi.activity()``.
      alpha: the scaling factor: a number, a schedule or a traced scalar.
      role: ``"metric"`` divides by ``1 + alpha*phi`` (the equations), ``"inverse_metric"`` multiplies by it.
      conformal: None, or the group over which :func:`compute_metric` takes the scale of the metric.
      decay_in_metric: False decays all weights at the same rate, as AdamW does; True adds the decay inside of
        the frame, so that it leaves it, like Adam's step, divided by ``sqrt(E)``: stiff weights decay less.
      record: whether to keep statistics of ``E`` for :func:`metric_statistics`.
      state_dtype: of the running mean of the gradient (``mu_dtype`` of ``optax.adamw``) and of the default
        phi.

    Returns:
      A gradient transformation.

    Raises:
      ValueError, TypeError: as the parts of the chain do.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.riemannian_adamw(
      ...     0.1, phi=ro.phi.maintenance_energy(), alpha=3.0, weight_decay=0.0, nesterov=False
      ... )
      >>> params = jnp.array([0.0, 1.0])
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
      >>> print(updates)  # Adam's first step is 0.1; E = [1, 4] leaves 1 / sqrt(E) of it
      [-0.1000 -0.0500]

    References:
      Becigneul and Ganea, `Riemannian Adaptive Optimization Methods
      <https://arxiv.org/abs/1810.00760>`_, ICLR, 2019

      Loshchilov and Hutter, `Decoupled Weight Decay Regularization
      <https://arxiv.org/abs/1711.05101>`_, ICLR, 2019
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_decay(b1, "b1")
    _check.check_decay(b2, "b2")
    _check.check_number("eps", eps, low=0.0)
    _check.check_number("eps_root", eps_root, low=0.0)
    _check.check_schedulable("weight_decay", weight_decay)
    if phi is None:
        phi = activity(state_dtype=state_dtype)
    stages = _metric_stages(phi, alpha, role, conformal, record, state_dtype)
    adam = optax.scale_by_adam(
        b1=b1, b2=b2, eps=eps, eps_root=eps_root, mu_dtype=state_dtype, nesterov=nesterov
    )
    decay = optax.add_decayed_weights(weight_decay, mask)
    if decay_in_metric:
        stages.append(in_orthonormal_frame(optax.chain(adam, decay)))
    else:
        stages += [in_orthonormal_frame(adam), decay]
    return optax.chain(*stages, optax.scale_by_learning_rate(learning_rate))


def _metric_stages(
    phi: optax.GradientTransformation,
    alpha: optax.ScalarOrSchedule,
    role: Role,
    conformal: Group | None,
    record: bool,
    state_dtype: Any,
) -> list[optax.GradientTransformation]:
    """Return stage 1 and the edits that both aliases offer."""
    _check.check_state_dtype(state_dtype)
    stages: list[optax.GradientTransformation] = [compute_metric(phi, alpha, role, conformal=conformal)]
    if record:
        stages.append(record_metric())
    return stages

"""The aliases: whole optimisers, each a chain and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._tree import Group
from riemann_optax.edits import on_gradient
from riemann_optax.eigenbasis import in_eigenbasis
from riemann_optax.eigenbasis.layout import ChooseSide, Side
from riemann_optax.inspect.recording import record_metric
from riemann_optax.metric import Role, compute_metric
from riemann_optax.optimizers.adaptive import SETTLING_STEPS, adaptive_metric
from riemann_optax.optimizers.momentum import ema, keep_state_types
from riemann_optax.optimizers.relative import scale_by_parameter_scale
from riemann_optax.optimizers.schedule_free import schedule_free
from riemann_optax.phi import activity
from riemann_optax.scaling import scale_by_inverse_metric

# Where to begin, in each alias's own units of rate; the site, the docstrings and the trainer say the same.
RECOMMENDED_RATES = {
    "riemannian_sgd": 0.1,
    "riemannian_adamw": 0.003,
    "riemannian_schedule_free": 0.003,
    "riemannian_eigenbasis": 0.003,
}


def riemannian_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    *,
    phi: optax.GradientTransformation | None = None,
    alpha: optax.ScalarOrSchedule = 1.0,
    role: Role = "metric",
    conformal: Group | None = None,
    weight_decay: optax.ScalarOrSchedule | None = None,
    mask: Any = None,
    decay_in_metric: bool = False,
    record: bool = False,
    state_dtype: Any = None,
    axes: Axes = "flax",
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent under a metric, Eqs. 2 and 3 of the paper and nothing else by default.

    .. math::
      w \leftarrow w - \eta\,\frac{\nabla f(w)}{E}, \qquad E = 1 + \alpha\,\varphi

    With ``momentum`` m the step is ``v``, with ``v = m v + grad / E``. The chain: :func:`scale_by_metric`,
    ``optax.trace``, decoupled weight decay, ``optax.scale_by_learning_rate``; at ``alpha=0.0`` it equals
    ``optax.sgd`` bit for bit, where gradients have the dtype of the weights, in which momentum is kept.

    **Rates** have the units of ``optax.sgd``: begin at 0.1, and higher for a larger alpha, because ``E >= 1``
    only shrinks steps (:func:`riemann_optax.phi.utility_gate` is negative for some weights, and wants an
    alpha below 1). To train a network without thinking about alpha use :func:`riemannian_adamw`.

    Args:
      learning_rate: a number or a schedule.
      momentum: decay of ``optax.trace`` on the tangent vector, or None. As in ``optax.sgd``, momentum
        multiplies the size of a steady step by ``1 / (1 - momentum)``.
      nesterov: whether momentum is Nesterov's.
      phi: what the metric measures; by default ``phi.activity()``.
      alpha: the scaling factor: a number, a schedule or a traced scalar.
      role: ``"metric"`` divides by ``1 + alpha*phi`` (the equations), ``"inverse_metric"`` multiplies by it.
      conformal: None, or the group over which :func:`compute_metric` takes the scale of the metric.
      weight_decay: strength of decoupled weight decay, times the learning rate: a number or a schedule; or
        None.
      mask: which leaves decay: a tree of booleans or a function of the parameters, as in ``optax.adamw``.
      decay_in_metric: False decays all weights at the same rate (as AdamW does), outside of the metric and of
        momentum; True adds the decay to the gradient, not seen by phi: divided by ``E`` (stiff weights decay
        less) and summed by momentum.
      record: whether to keep statistics of ``E`` for :func:`metric_statistics`.
      state_dtype: of momentum and of the default phi; None means the parameters' own for momentum and float32
        or wider for phi.
      axes: for ``conformal="neuron"``, which axes are inputs and outputs: a preset of :func:`kernel_axes`,
        :class:`MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a dictionary of
        these by the names of modules.

    Returns:
      A gradient transformation.

    Raises:
      ValueError, TypeError: as the parts of the chain do, and for an argument that nothing would read.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> loss = lambda w: (w[0] - 3.0) ** 2 + 50.0 * (w[1] + 2.0) ** 2
      >>> tx = ro.riemannian_sgd(3.0, phi=ro.phi.secant_curvature(), alpha=10.0)
      >>> params = jnp.array([1.0, -1.0])
      >>> state = tx.init(params)
      >>> for _ in range(40):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      [ 3.0000 -2.0000]

    References:
      Kang, Son and Joel, *Biological Synaptic Plasticity Based Riemannian Geometry AI Learning Optimization
      Mechanism* (in Korean; the text names no venue and no year): Eqs. 2 and 3.
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_state_dtype(state_dtype)
    if momentum is not None:
        _check.check_decay(momentum, "momentum")
    if weight_decay is not None:
        _check.check_schedulable("weight_decay", weight_decay)
    elif mask is not None or decay_in_metric:
        raise ValueError("mask and decay_in_metric say how weights decay, and none do: give weight_decay.")
    _axes.check_axes(axes)
    if axes != "flax" and conformal != "neuron":
        raise ValueError('axes is read for conformal="neuron" alone: give it to the phi that has axes.')
    for name, flag in (("nesterov", nesterov), ("decay_in_metric", decay_in_metric), ("record", record)):
        _check.check_flag(name, flag)
    if nesterov and momentum is None:
        raise ValueError("nesterov=True is a kind of momentum, and there is none: give momentum.")
    if state_dtype is not None and momentum is None and phi is not None:
        raise ValueError(
            "state_dtype is for momentum and the default phi, and neither is here: give it to phi."
        )
    if phi is None:
        phi = activity(state_dtype=state_dtype)
    edits: list[optax.GradientTransformation] = [record_metric()] if record else []
    if weight_decay is not None and decay_in_metric:
        edits.append(on_gradient(optax.add_decayed_weights(weight_decay, _check.mask_of_decay(mask))))
    metric = compute_metric(phi, alpha, role, conformal=conformal, axes=axes)
    stages = [metric, *edits, scale_by_inverse_metric()]
    if momentum is not None:
        stages.append(_trace(momentum, nesterov, state_dtype))
    if weight_decay is not None and not decay_in_metric:
        stages.append(optax.add_decayed_weights(weight_decay, _check.mask_of_decay(mask)))
    return optax.chain(*stages, optax.scale_by_learning_rate(learning_rate))


def riemannian_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.97,
    eps: float = 1e-8,
    *,
    mu_dtype: Any = None,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any = None,
    nesterov: bool = True,
    phi: optax.GradientTransformation | None = None,
    alpha: optax.ScalarOrSchedule = 10_000.0,
    role: Role = "metric",
    conformal: Group | None = "tree",
    record: bool = False,
    axes: Axes = "flax",
    multiply_by_parameter_scale: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""The recommended optimiser: AdamW's arguments, AdamW's rates, half of AdamW's state.

    .. math::
      u = \frac{\nabla f(w)}{E + \epsilon}, \qquad
      w \leftarrow w - \eta\,\big(\hat m(u) + \lambda w\big), \qquad
      E = \frac{\mu + \alpha\,\varphi}{1 + \alpha}, \quad \mu = \mathrm{mean}(\varphi)

    with :math:`\varphi` the root mean square gradient, row times column, and :math:`\hat m` the
    bias-corrected running mean with Nesterov's look-ahead. The chain: :func:`compute_metric` with a conformal
    metric, :func:`ema` as its second stage, decoupled weight decay, ``optax.scale_by_learning_rate``.

    **Rates** have the units of ``optax.adamw``: take the one you have. If you have none, begin at 0.003 for
    about a million weights; :func:`starting_rate` returns the rate for another size. With a ``phi`` that is
    no size of the gradient take :func:`riemannian_sgd` and tune the rate.

    **State**: one value per weight of a matrix, for the momentum, and one per row and column; AdamW has two.

    **Convergence**: at a constant rate the loss stalls where steps are as long as the rate, on a problem
    without noise too, as under ``optax.nadam``. Under a schedule that falls to 0 it converges.

    **The largest step**: under the default phi ``E`` is at least ``sqrt(1 - b2) |grad|``, the root mean
    square that Adam would remember had every earlier gradient been 0. So ``|u| <= 1 / sqrt(1 - b2)``, Adam's
    own bound: a weight whose row and column were silent moves no further than under Adam.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the running mean of the steps, in [0, 1).
      b2: decay of the running means in the default phi, in [0, 1); not used where ``phi`` is given.
      eps: added to ``E``, at least 0; not where ``role`` is ``"inverse_metric"``.
      mu_dtype: of the running mean of the steps; None means float32, or wider where the parameter is wider.
      weight_decay: strength of decoupled weight decay, times the learning rate: a number or a schedule.
      mask: which leaves decay: a tree of booleans or a function of the parameters.
      nesterov: whether momentum is Nesterov's, as in ``optax.nadamw``.
      phi: what the metric measures; by default ``phi.factored_activity(decay=b2)``.
      alpha: the scaling factor: a number, a schedule or a traced scalar. ``E`` is at least ``mu / (1 +
        alpha)``: a weight whose gradients are smaller than that share of the mean moves less than under Adam.
      role: ``"metric"`` divides by the metric, ``"inverse_metric"`` multiplies by the same expression.
      conformal: the group over which the scale of the metric is taken from phi's mean; None for ``1 +
        alpha*phi``, whose rates are not AdamW's.
      record: whether to keep statistics of ``E`` for :func:`metric_statistics`.
      axes: which axes are inputs and outputs, for the default phi and ``conformal="neuron"``: a preset of
        :func:`kernel_axes`, :class:`MatrixAxes`, a function of a leaf's name and the leaf that returns
        either, or a dictionary of these by the names of modules. Where ``phi`` is given, ``axes`` is an
        argument of that phi.
      multiply_by_parameter_scale: whether the step of each leaf is multiplied by the root mean square of its
        weights, at least 1e-3, as in ``optax.adafactor``. The rate is then the relative change of a leaf,
        and no longer AdamW's. The decay is not multiplied.

    Returns:
      A gradient transformation.

    Raises:
      ValueError, TypeError: as the parts of the chain do; where both ``phi`` and ``axes`` are given.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.riemannian_adamw(0.003, weight_decay=0.1)
      >>> params = {"kernel": jnp.ones([2, 3]), "bias": jnp.zeros(3)}
      >>> state = tx.init(params)
      >>> gradients = jax.grad(lambda p: jnp.sum(p["kernel"] ** 2) + jnp.sum(p["bias"]))(params)
      >>> updates, state = tx.update(gradients, state, params)
      >>> params = optax.apply_updates(params, updates)

    References:
      Kang, Son and Joel, *Biological Synaptic Plasticity Based Riemannian Geometry AI Learning Optimization
      Mechanism* (in Korean; the text names no venue and no year): the metric.

      Shazeer and Stern, `Adafactor: Adaptive Learning Rates with Sublinear Memory Cost
      <https://arxiv.org/abs/1804.04235>`_, ICML, 2018: rows times columns.

      Loshchilov and Hutter, `Decoupled Weight Decay Regularization
      <https://arxiv.org/abs/1711.05101>`_, ICLR, 2019
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_schedulable("weight_decay", weight_decay)
    _check.check_decay(b1, "b1")
    _check.check_state_dtype(mu_dtype, "mu_dtype")
    _check.check_mean_moves("b1", b1, "mu_dtype", mu_dtype)
    _check.check_flag("multiply_by_parameter_scale", multiply_by_parameter_scale)
    _check_axes(phi, axes)
    stage_1 = adaptive_metric(phi, alpha, b2, eps, role, conformal, record, axes)
    relative = [scale_by_parameter_scale()] if multiply_by_parameter_scale else []
    return optax.chain(
        *stage_1,
        ema(b1, nesterov, mu_dtype),
        *relative,
        optax.add_decayed_weights(weight_decay, _check.mask_of_decay(mask)),
        optax.scale_by_learning_rate(learning_rate),
    )


def riemannian_schedule_free(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.97,
    eps: float = 1e-8,
    *,
    warmup_steps: int = 100,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any = None,
    power: float = 2.0,
    phi: optax.GradientTransformation | None = None,
    alpha: optax.ScalarOrSchedule = 10_000.0,
    role: Role = "metric",
    conformal: Group | None = "tree",
    record: bool = False,
    sides: Side | ChooseSide = "none",
    basis_dtype: Any = "bfloat16",  # a class would be a schedule to optax.inject_hyperparams
    axes: Axes = "flax",
) -> optax.GradientTransformationExtraArgs:
    r"""The same metric without a schedule: no end of the run to choose, no decay of the rate.

    .. math::
      z_{t+1} &= z_t - \eta_t\,\Big(\frac{\nabla f(y_t)}{E + \epsilon} + \lambda y_t\Big), \qquad
      E = \frac{\mu + \alpha\,\varphi}{1 + \alpha}, \quad \mu = \mathrm{mean}(\varphi) \\
      x_{t+1} &= (1 - c_t)\,x_t + c_t\,z_{t+1}, \qquad c_t = \frac{(t+1)^r}{\sum_{s \le t} (s+1)^r} \\
      y_{t+1} &= (1 - \beta_1)\,z_{t+1} + \beta_1\,x_{t+1}, \qquad
      \eta_t = \eta\,\min(1, (t+1)/\mathrm{warmup})

    The metric is that of :func:`riemannian_adamw`. It stands inside :func:`schedule_free`, whose averaging
    takes the place of momentum and of the schedule. The parameters that are trained are ``y``. **Evaluate and
    keep** the average ``x``, which ``ro.eval_params(state, params)`` returns.

    **Rates** have the units of ``optax.adamw``, at their peak: begin at 0.003 for about a million weights
    (:func:`starting_rate` for another size). The rate rises linearly over the first ``warmup_steps`` and then
    stays. State: one value per weight of a matrix and one per row and column; with ``sides="smaller"``, in
    bases as those of :func:`riemannian_eigenbasis`, of plain correlations, 1.5 times the weights of a
    Transformer.

    Args:
      learning_rate: a number; a schedule is multiplied by the warm-up.
      b1: how far gradients are taken towards the average, in (0, 1); 0.5 for a GAN and for tables of
        embeddings.
      b2: decay of the running means in the default phi, in [0, 1); not used where ``phi`` is given.
      eps: added to ``E``, at least 0; not where ``role`` is ``"inverse_metric"``.
      warmup_steps: updates until the full rate; 0 for none. In a run of a few hundred updates 100 is long,
        and 20 better; a high rate wants 100.
      weight_decay: strength of decoupled weight decay, times the learning rate: a number or a schedule.
      mask: which leaves decay: a tree of booleans or a function of the parameters.
      power: ``r`` of the averaging weights ``(t+1)**r``.
      phi: what the metric measures; by default ``phi.factored_activity(decay=b2)``.
      alpha: the scaling factor: a number, a schedule or a traced scalar.
      role: ``"metric"`` divides by the metric, ``"inverse_metric"`` multiplies by the same expression.
      conformal: the group over which the scale of the metric is taken from phi's mean, or None.
      record: whether to keep statistics of ``E`` for :func:`metric_statistics`.
      sides: which sides of a matrix get a basis in which the metric is diagonal: ``"none"``, ``"smaller"`` or
        another choice of :func:`in_eigenbasis`.
      basis_dtype: of its factors and bases; None means float32, or wider where the parameter is.
      axes: which axes are inputs and outputs, for the default phi, ``conformal="neuron"`` and ``sides``: a
        preset of :func:`kernel_axes`, :class:`MatrixAxes`, a function of a leaf's name and the leaf that
        returns either, or a dictionary of these by the names of modules. Where ``phi`` is given, and not
        ``sides``, ``axes`` is an argument of that phi.

    Returns:
      A gradient transformation with state :class:`ScheduleFreeState`.

    Raises:
      ValueError, TypeError: as the parts do; where ``phi`` and ``axes`` are given and no ``sides``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.riemannian_schedule_free(0.003)
      >>> params = {"kernel": jnp.ones([2, 3])}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> averaged = ro.eval_params(state, params)  # evaluate these

    References:
      Defazio et al, `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_, NeurIPS, 2024
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_schedulable("weight_decay", weight_decay)
    if not isinstance(warmup_steps, jax.Array):  # optax.inject_hyperparams makes an array of it
        _check.check_count("warmup_steps", warmup_steps, low=0)
    _check.check_state_dtype(basis_dtype, "basis_dtype", squares=True)
    if sides == "none":
        _check_axes(phi, axes)
    stages = [*adaptive_metric(phi, alpha, b2, eps, role, conformal, record, axes), scale_by_inverse_metric()]
    if sides != "none":
        with _check.quiet():  # of the dtype, under the name that it has here, the user has been warned
            turned = in_eigenbasis(
                optax.chain(*stages),
                settling_steps=SETTLING_STEPS,
                sides=sides,
                axes=axes,
                state_dtype=basis_dtype,
            )
        stages = [turned]
    rate = learning_rate
    if isinstance(warmup_steps, jax.Array) or warmup_steps:

        def rate(count: Any) -> Any:
            steps = jnp.maximum(warmup_steps, 1)
            full = learning_rate(count) if callable(learning_rate) else learning_rate
            return full * ((jnp.minimum(count, steps - 1) + 1) / steps)

    base = optax.chain(
        *stages,
        optax.add_decayed_weights(weight_decay, _check.mask_of_decay(mask)),
        optax.scale_by_learning_rate(rate),
    )
    return schedule_free(base, b1=b1, power=power)


def _trace(decay: Any, nesterov: bool, state_dtype: Any) -> optax.GradientTransformationExtraArgs:
    """Return ``optax.trace`` with its sum in a dtype: complex where the weights are, as Optax's is not."""
    summing = optax.trace(decay=decay, nesterov=nesterov)

    def init(params: optax.Params) -> optax.TraceState:
        if state_dtype is None:
            return summing.init(params)
        return optax.TraceState(_tree.vectors_like(params, state_dtype))

    return keep_state_types(optax.GradientTransformation(init, summing.update))


def _check_axes(phi: optax.GradientTransformation | None, axes: Axes) -> None:
    _axes.check_axes(axes)
    if phi is not None and axes != "flax":
        raise ValueError(
            "axes belongs to the default phi, and phi is given: give axes to that phi (and to compute_metric "
            'in a chain of your own, for conformal="neuron").'
        )

"""riemannian_eigenbasis: the recommended metric in the eigenbasis of each matrix's shorter side."""

from typing import Any, Literal

import optax

from riemann_optax import _check
from riemann_optax._axes import Axes
from riemann_optax._tree import Group
from riemann_optax.edits import on_gradient
from riemann_optax.eigenbasis import in_eigenbasis
from riemann_optax.eigenbasis.layout import ChooseSide, Side
from riemann_optax.metric import Role
from riemann_optax.optimizers.adaptive import SETTLING_STEPS, adaptive_metric
from riemann_optax.optimizers.momentum import ema, measure_with_momentum
from riemann_optax.phi import activity
from riemann_optax.scaling import scale_by_inverse_metric

GRADIENT_SHARE = 0.3


def riemannian_eigenbasis(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.97,
    eps: float = 1e-8,
    *,
    mu_dtype: Any = "bfloat16",
    nu_dtype: Any = "bfloat16",
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any = None,
    nesterov: bool = True,
    phi: optax.GradientTransformation | None = None,
    alpha: optax.ScalarOrSchedule = 10_000.0,
    role: Role = "metric",
    conformal: Group | None = "tree",
    record: bool = False,
    gradient_share: float | None = None,
    sides: Side | ChooseSide = "smaller",
    basis_decay: float = 0.95,
    basis_dtype: Any = "bfloat16",
    correlate: Literal["gradients", "tempered_gradients", "whitened_gradients"] = "tempered_gradients",
    update_every: int | None = None,
    settling_steps: int | None = None,
    tau: float = 0.0,
    refresh_budget: float | None = None,
    axes: Axes = "flax",
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW's arguments and rates, in the eigenbasis of each matrix's shorter side, in Adam's state or less.

    .. math::
      u = Q\,\frac{\hat m(Q^\top G)}{E + \epsilon}, \qquad
      w \leftarrow w - \eta\,(u + \lambda w), \qquad
      E = \frac{\mu + \alpha\,\varphi}{1 + \alpha}, \quad \mu = \mathrm{mean}(\varphi)

    with ``Q`` the eigenvectors of the running mean of :math:`G G^\top`, in which a column of ``G`` counts by
    its size (of :math:`G^\top G` and rows, where ``G`` has fewer columns than rows), :math:`\hat m` the
    bias-corrected running mean of Nesterov's kind, and :math:`\varphi` the root of the running mean of
    :math:`\sigma\,|Q^\top G|^2 + (1 - \sigma)\,|\hat m|^2` for each component. The chain:
    :func:`in_eigenbasis` of :func:`compute_metric` (conformal) and :func:`scale_by_inverse_metric`; then
    decoupled weight decay and ``optax.scale_by_learning_rate``.

    **Momentum** is that of the covector: the gradient is averaged before the metric divides it. It is kept in
    the eigenbasis and turned when the basis is, which is exact and costs one product per refresh; kept in the
    axes of the weights it would cost one more product per step.

    **The gradient's share** :math:`\sigma` is what phi still counts of noise. A component that is mostly
    noise has a small mean: at a share of 1, as in Adam, its steps are a quarter of the rate, at 0.3 half of
    it, at 0 all of it. An oscillation has a small mean as well, and wants a large share. So 0 is best where
    the noise is large (language models, at a lower rate), 1 where there is none, and 0.3 between the two.

    **Rounding.** A basis magnifies differences in the last place: after a few steps in float32 the weights of
    two machines, or of one and eight devices, may differ by as much as a step.

    **Rates** are those of ``optax.adamw``: take the one you have; this optimiser often bears twice as much.
    If you have none, begin at 0.003 for about a million weights (:func:`starting_rate` for another size).

    **State**, all in bfloat16: momentum and mean square of each weight, and factor and basis of the shorter
    side of a matrix: 1.5 times the weights of a Transformer with separate query, key and value; AdamW has 2.
    With ``phi=phi.factored_activity(decay=b2)``, row times column, it is 1, at a somewhat higher loss. With
    ``mu_dtype=None, nu_dtype=None`` inside of :func:`low_precision_state` of ``"int8"`` it is 1 as well.
    **Cost** of an update of an ``n x m`` matrix, n the shorter side: ``6 n**2 m`` operations, and ``14
    n**3 / update_every`` for the refresh.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the running mean of the gradients, in [0, 1).
      b2: decay of the running means in the default phi, in [0, 1); not used where ``phi`` is given.
      eps: added to ``E``, at least 0; not where ``role`` is ``"inverse_metric"``.
      mu_dtype: of the running mean of the gradients; None means float32, or wider where the parameter is.
        Means of bfloat16 stall where their decay is above 0.992, which is refused.
      nu_dtype: of the mean squares in the default phi, likewise; not used where ``phi`` is given.
      weight_decay: strength of decoupled weight decay, times the learning rate: a number or a schedule.
      mask: which leaves decay: a tree of booleans or a function of the parameters.
      nesterov: whether momentum is Nesterov's, as in ``optax.nadamw``.
      phi: what the metric measures; by default ``phi.activity(decay=b2, state_dtype=nu_dtype)``.
      alpha: the scaling factor: a number, a schedule or a traced scalar.
      role: ``"metric"`` divides by the metric, ``"inverse_metric"`` multiplies by the same expression.
      conformal: the group over which the scale of the metric is taken from phi's mean; None for ``1 +
        alpha*phi``, whose rates are not AdamW's.
      record: whether to keep statistics of ``E``, which belongs to eigenvectors.
      gradient_share: ``sigma``, in [0, 1]. None means 0.3, and 1 where ``phi`` is given: such a phi sees the
        gradient itself. Below 1 it sees the root of the sum of the two squares, which has no sign.
      sides: ``"smaller"``, ``"both"`` (for more state) or another choice of :func:`in_eigenbasis`.
      basis_decay: of the running means of the correlations, in [0, 1).
      basis_dtype: of factors and bases; None means float32, or wider where the parameter is.
      correlate: ``"tempered_gradients"``, where a column counts by its size, and not by its square;
        ``"gradients"``, as in SOAP; or ``"whitened_gradients"`` for the bases of KL-Shampoo, which needs
        ``sides="both"``.
      update_every: steps between two refreshes of a basis. None means 10: ``optax.inject_hyperparams`` would
        make an array of a number.
      settling_steps: steps until that is so; before, bases are refreshed more often, at first in every step.
        None means 300. Without effect if ``refresh_budget`` is too small to refresh all sides in one step.
      tau: refresh a basis only if it has turned by this much; see :func:`in_eigenbasis`.
      refresh_budget: the most operations that refreshes may take in one step; see :func:`in_eigenbasis`.
      axes: which axes are inputs and outputs: a preset of :func:`kernel_axes`, :class:`MatrixAxes`, a
        function of a leaf's name and the leaf that returns either, or a dictionary of these by the names of
        modules.

    Returns:
      A gradient transformation.

    Raises:
      ValueError, TypeError: as the parts of the chain do, and for running means that would stall.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.riemannian_eigenbasis(0.003, weight_decay=0.1)
      >>> params = {"kernel": jnp.ones([2, 3]), "bias": jnp.zeros(3)}
      >>> state = tx.init(params)
      >>> gradients = jax.grad(lambda p: jnp.sum(p["kernel"] ** 2) + jnp.sum(p["bias"]))(params)
      >>> updates, state = tx.update(gradients, state, params)
      >>> params = optax.apply_updates(params, updates)

    References:
      Kang, Son and Joel, *Biological Synaptic Plasticity Based Riemannian Geometry AI Learning Optimization
      Mechanism* (in Korean; the text names no venue and no year): the metric.

      Vyas et al, `SOAP: Improving and Stabilizing Shampoo using Adam <https://arxiv.org/abs/2409.11321>`_,
      ICLR, 2025: the eigenbasis, one-sided and with a factored second moment among its variants.

      Lin et al, `Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization
      <https://arxiv.org/abs/2509.03378>`_, ICLR, 2026: whitened gradients.
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_schedulable("weight_decay", weight_decay)
    _check.check_decay(b1, "b1")
    _check.check_decay(b2, "b2")
    _check.check_decay(basis_decay, "basis_decay")
    _check.check_state_dtype(mu_dtype, "mu_dtype")
    _check.check_state_dtype(nu_dtype, "nu_dtype", squares=True)
    _check.check_state_dtype(basis_dtype, "basis_dtype", squares=True)
    _check.check_mean_moves("b1", b1, "mu_dtype", mu_dtype)
    _check.check_mean_moves("basis_decay", basis_decay, "basis_dtype", basis_dtype)
    if gradient_share is None:
        gradient_share = GRADIENT_SHARE if phi is None else 1.0
    _check.check_number("gradient_share", gradient_share, low=0.0, high=1.0)
    _check.check_choice("correlate", correlate, ("gradients", "tempered_gradients", "whitened_gradients"))
    if correlate == "whitened_gradients" and sides in ("smaller", "input", "output"):
        raise ValueError(
            f'riemannian_eigenbasis: correlate="whitened_gradients" whitens each side by the other, and '
            f'sides="{sides}" turns one of them: give sides="both".'
        )
    if phi is None:
        _check.check_mean_moves("b2", b2, "nu_dtype", nu_dtype)
        with _check.quiet():  # of the dtypes, under the names that they have here, the user has been warned
            phi = activity(decay=b2, state_dtype=nu_dtype)
    stage_1 = adaptive_metric(phi, alpha, b2, eps, role, conformal, record, axes)
    momentum = ema(b1, nesterov, mu_dtype)
    averaged = [*stage_1, on_gradient(momentum)]
    if not _check.is_concrete_number(gradient_share) or gradient_share != 1:
        averaged = [measure_with_momentum(optax.chain(*stage_1), momentum, gradient_share)]
    metric = optax.chain(*averaged, scale_by_inverse_metric())
    with _check.quiet():
        turned = in_eigenbasis(
            metric,
            decay=basis_decay,
            correlate=correlate,
            update_every=10 if update_every is None else update_every,
            settling_steps=SETTLING_STEPS if settling_steps is None else settling_steps,
            sides=sides,
            axes=axes,
            state_dtype=basis_dtype,
            tau=tau,
            refresh_budget=refresh_budget,
        )
    return optax.chain(
        turned,
        optax.add_decayed_weights(weight_decay, _check.mask_of_decay(mask)),
        optax.scale_by_learning_rate(learning_rate),
    )

"""soap: Shampoo with Adam in its eigenbasis, as published."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check
from riemann_optax._axes import Axes
from riemann_optax.eigenbasis import in_eigenbasis, in_eigenbasis_of_each_axis
from riemann_optax.optimizers.momentum import keep_state_types

_WITHOUT_LIMIT = 1e30


class SoapState(NamedTuple):
    """State of :func:`soap`, in the eigenbasis.

    Attributes:
      count: int32 scalar, the number of updates so far, including the first, which only finds the bases.
      adam: the state of ``optax.scale_by_adam``.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    adam: optax.OptState


def soap(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
    *,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    mask: Any = None,
    nesterov: bool = False,
    shampoo_beta: float | None = None,
    precondition_frequency: int | None = None,
    max_precondition_dim: int | None = None,
    one_sided: bool = False,
    staggered: bool = False,
    state_dtype: Any = None,
    axes: Axes = "flax",
) -> optax.GradientTransformationExtraArgs:
    r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    .. math::
      L &= \beta L + (1-\beta)\,G G^\top, \qquad R = \beta R + (1-\beta)\,G^\top G \\
      W &\leftarrow W - \eta\,\big(Q_L\,\mathrm{Adam}(Q_L^\top G\,Q_R)\,Q_R^\top + \lambda W\big)

    with ``Q`` the eigenvectors. ``eigh`` finds them from the first gradient. One power iteration and a QR
    decomposition with sorted columns refresh them every ``precondition_frequency`` steps, after the update.
    As in the authors' program **the first update only finds the bases**, so that no gradient is rotated into
    its own basis: weights only decay. Vectors use Adam.

    The defaults are the published algorithm. A convolution has a basis for each of its axes, as in the
    authors' program: of ``(3, 3, 512, 512)`` no side is longer than 512. Three things differ from theirs.
    Weight decay works as in ``optax.adamw``. Any other kernel with more than two axes, such as one of
    attention, is read as a matrix by ``axes``. A refresh adds ``8 epsilon`` of the correlation's size to its
    diagonal; this leaves its null space unchanged.

    A refresh turns the momentum and, as published, not the second moments. After one gradient that is much
    larger than the rest a step can be many rates long: put ``optax.clip_by_global_norm`` in front.
    :func:`riemannian_eigenbasis` mixes its second moments, and its steps stay short.

    The first gradient of a small batch, or the longer side of any matrix, has directions in which it is 0.
    ``eigh`` chooses their basis by rounding, so that two machines, or one and eight devices, may train
    differently.

    State of a square matrix: 6 values per weight; :func:`riemannian_eigenbasis` has 2. Of a ResNet of 50
    layers: 6.2 and 1.5.

    Args:
      learning_rate: a number or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root of the second moment, in the eigenbasis.
      eps_root: added to the second moment under the root.
      mu_dtype: dtype of the first moment; None means the gradient's in the eigenbasis, float32 or wider.
      weight_decay: strength of decoupled weight decay, times the learning rate: a number or a schedule.
      mask: which leaves decay: a tree of booleans or a function of the parameters.
      nesterov: whether to use Nesterov momentum, as in ``optax.nadamw``; published without.
      shampoo_beta: decay of the correlations, in [0, 1); None means ``b2``, as published.
      precondition_frequency: steps between two refreshes of the bases. None means 10, as published:
        ``optax.inject_hyperparams`` would make an array of a number.
      max_precondition_dim: the longest side that is turned; None means 10,000, as published.
      one_sided: whether only the shorter side is turned; the inputs of a convolution, window and channels,
        are then one side.
      staggered: whether to refresh the sides in turn, so that steps take equal time; published without.
      state_dtype: dtype of correlations and bases; None means float32, or wider where the parameter is.
      axes: which axes are inputs and outputs: a preset of :func:`kernel_axes`, :class:`MatrixAxes`, a
        function of a leaf's name and the leaf that returns either, or a dictionary of these by the names of
        modules.

    Returns:
      A gradient transformation.

    Raises:
      ValueError: for an argument outside its range.
      TypeError: where a matrix is complex.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = ro.soap(0.003)
      >>> params = {"kernel": jnp.ones([2, 3]), "bias": jnp.zeros(3)}
      >>> state = tx.init(params)
      >>> for _ in range(2):  # the first finds the bases
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)

    References:
      Vyas et al, `SOAP: Improving and Stabilizing Shampoo using Adam <https://arxiv.org/abs/2409.11321>`_,
      ICLR, 2025
    """
    _check.check_schedulable("learning_rate", learning_rate)
    _check.check_schedulable("weight_decay", weight_decay)
    for name, value in (("b1", b1), ("b2", b2)):
        _check.check_decay(value, name)
    if shampoo_beta is not None:
        _check.check_decay(shampoo_beta, "shampoo_beta")
    correlating = ("b2", b2) if shampoo_beta is None else ("shampoo_beta", shampoo_beta)
    _check.check_state_dtype(state_dtype)
    _check.check_mean_moves(*correlating, "state_dtype", state_dtype)
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        _check.check_number(name, value, low=0.0)
    precondition_frequency = 10 if precondition_frequency is None else precondition_frequency
    max_precondition_dim = 10_000 if max_precondition_dim is None else max_precondition_dim
    for name, count in (
        ("precondition_frequency", precondition_frequency),
        ("max_precondition_dim", max_precondition_dim),
    ):
        _check.check_count(name, count)
    _check.check_state_dtype(mu_dtype, "mu_dtype")
    for name, flag in (("nesterov", nesterov), ("one_sided", one_sided), ("staggered", staggered)):
        _check.check_flag(name, flag)
    in_bases = partial(in_eigenbasis, sides="smaller") if one_sided else in_eigenbasis_of_each_axis
    turned = in_bases(
        _after_the_first(
            keep_state_types(optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov))
        ),
        decay=b2 if shampoo_beta is None else shampoo_beta,
        update_every=precondition_frequency,
        max_size=max_precondition_dim,
        max_state=_WITHOUT_LIMIT,
        max_operations=_WITHOUT_LIMIT,
        axes=axes,
        state_dtype=state_dtype,
        second_moments="keep",
        refresh_together=1 if staggered else None,
    )
    return optax.chain(
        turned,
        optax.add_decayed_weights(weight_decay, _check.mask_of_decay(mask)),
        optax.scale_by_learning_rate(learning_rate),
    )


def _after_the_first(adam: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return 0 at the first update and leave Adam's state unchanged."""

    def init(params: optax.Params) -> SoapState:
        return SoapState(jnp.zeros([], jnp.int32), adam.init(params))

    def update(
        updates: optax.Updates, state: SoapState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, SoapState]:
        del extra_args
        first = state.count == 0

        def unless_first(tree: Any) -> Any:
            return jax.tree.map(lambda x: jnp.where(first, jnp.zeros_like(x), x), tree)

        # With a gradient of 0 the moments stay 0, so only the count must be restored.
        updates, adam_state = adam.update(unless_first(updates), state.adam, params)
        adam_state = adam_state._replace(count=unless_first(adam_state.count))
        return unless_first(updates), SoapState(optax.safe_increment(state.count), adam_state)

    return optax.GradientTransformationExtraArgs(init, update)

"""Utility-based perturbed gradient descent (Elsayed and Mahmood, 2024), of this package's parts."""

import jax
import optax

import riemann_optax as ro


def utility_based_descent(
    rate: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike,
    weight_decay: jax.typing.ArrayLike,
    key: jax.Array | int,
    decay: float = 0.999,
) -> optax.GradientTransformationExtraArgs:
    r"""Descend with gradient and noise both gated by the utility of each weight (weight-wise UPGD).

    .. math:: w \leftarrow (1 - \eta\lambda)\,w - 2\eta\,(g + \sigma\,\xi)\,\big(1 - \mathrm{sigmoid}(U)\big)

    with ``U`` the utility of :func:`riemann_optax.phi.utility_gate`; the factor of 2 is that of the published
    code.

    Args:
      rate: the learning rate.
      scale: ``sigma``, in units of the gradient.
      weight_decay: ``lambda``.
      key: a random key or an integer seed.
      decay: of the running utility.

    References:
      Elsayed and Mahmood, `Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning
      <https://arxiv.org/abs/2404.00781>`_, ICLR, 2024
    """
    return optax.chain(
        ro.compute_metric(ro.phi.utility_gate(decay=decay), alpha=0.5),
        ro.on_gradient(optax.add_noise(scale**2, 0.0, key)),
        ro.scale_by_inverse_metric(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )

"""Shrink and perturb (Ash and Adams, 2020), at every step as in the continual-learning literature."""

from typing import Any

import jax
import optax


def shrink_and_perturb(
    shrink: jax.typing.ArrayLike, scale: jax.typing.ArrayLike, key: jax.Array | int
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the weights that a step leads to and shake them: last in a chain.

    .. math:: w \leftarrow (1 - s)\,(w + u) + \sigma\,\xi, \qquad \xi \sim N(0, 1)

    Args:
      shrink: ``s``, the share of each weight that is taken away per step.
      scale: ``sigma``, in units of the weights.
      key: a random key or an integer seed.

    Returns:
      A gradient transformation whose state is that of :func:`optax.add_noise`.

    References:
      Ash and Adams, `On Warm-Starting Neural Network Training <https://arxiv.org/abs/1910.08475>`_, NeurIPS,
      2020
    """

    def shrunk(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        # As a difference: the weights themselves would round the small share away.
        return jax.tree.map(lambda u, w: u - shrink * (w + u), updates, params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del extra_args
        return noise.update(shrunk(updates, params), state)

    noise = optax.add_noise(scale**2, 0.0, key)
    return optax.GradientTransformationExtraArgs(noise.init, update)

"""What is measured of a learner at the end of a task: how alive its units are, and what it has forgotten."""

import jax
import jax.numpy as jnp
import numpy as np

PROBE = 1_200  # images of the task that the measures see, or as many as it has
RANK, DEAD = "effective rank", "dead units"


def effective_rank(activities: jax.Array) -> jax.Array:
    r"""Return the exponential of the entropy of the normalised singular values.

    .. math:: \exp\Big(-\sum_k p_k \log p_k\Big), \qquad p_k = \sigma_k \Big/ \sum_j \sigma_j

    From 1, or 0 where all activities are 0, to the smaller of the two sizes.

    Args:
      activities: of one layer, shape (examples, units).

    References:
      Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO, 2007; of hidden
      activities in Dohare et al., `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature, 2024
    """
    singular = jnp.linalg.svd(activities, compute_uv=False)
    total = singular.sum()
    shares = singular / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def dead_units(hidden: list[jax.Array]) -> jax.Array:
    """Return the share, in per cent, of the hidden units that are 0 on every example."""
    dead = jnp.concatenate([(layer == 0).all(0) for layer in hidden])
    return 100 * dead.mean()


def liveliness(hidden: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the effective rank, as a mean over the hidden layers, and the dead units in per cent."""
    ranks = jnp.stack([effective_rank(layer) for layer in hidden])
    return ranks.mean(), dead_units(hidden)


def forgetting(accuracies: np.ndarray) -> np.ndarray:
    r"""Return how far accuracies have fallen from their best, as a mean over the tasks before the last.

    .. math:: \frac{1}{T - 1} \sum_{j < T} \max_{j \le t < T} a_{t,j} - a_{T,j}

    Args:
      accuracies: shape (..., learned, tested): of each task after each task; those not learned yet are left
        out.

    References:
      Chaudhry et al., Riemannian walk for incremental learning: understanding forgetting and intransigence,
      ECCV, 2018
    """
    tasks = accuracies.shape[-1]
    if tasks < 2:
        return np.zeros(accuracies.shape[:-2])
    best = [accuracies[..., task:-1, task].max(-1) for task in range(tasks - 1)]
    return np.stack(best, -1).mean(-1) - accuracies[..., -1, :-1].mean(-1)

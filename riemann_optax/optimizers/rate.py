"""Where to begin with the learning rate, from the size of a model."""

import math

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _tree
from riemann_optax.boundary import is_nnx_optimizer, parameters_of

_RATE_OF_A_MILLION = 0.003


def starting_rate(params: optax.Params) -> float:
    r"""Return a learning rate to begin at, for a model that no rate is known for.

    .. math::
      \eta = 0.003 \cdot \left(\frac{10^6}{n}\right)^{1/3}

    with n the number of weights: 0.003 for a million, and half of it for eight times as many. It is a peak:
    warm up to it and decay from it. Its units are those of ``optax.adamw``, :func:`riemannian_adamw`,
    :func:`riemannian_schedule_free` and :func:`riemannian_eigenbasis`.

    The published rates of the GPT-3 family (Brown et al, 2020, Table 2.1), of 125 to 175,000 million
    weights, lie within a factor of 1.5 of it; AdamW's best ones on Transformers of 0.13 to 6.6 million
    weights (``python -m benchmarks.drop_in``) within a factor of 3. It is a rate for a low training loss:
    where little data is learned by heart, the held-out loss wants less, down to an eighth. Some networks of
    a few thousand weights take several times as much, and others an eighth. Q-learning and densities, whose
    loss has no lowest value, want a quarter. Linear models and tables of embeddings take several times as
    much, because a batch touches few of their rows. The best rate grows with the batch. So it is a place to
    begin a search, not its result.

    Args:
      params: any tree of arrays or ``jax.ShapeDtypeStruct``, of which floating and
        complex arrays count; or a model of Flax NNX, of which the ``nnx.Param`` do. Of an ensemble whose
        members are stacked give those of one member, ``jax.tree.map(lambda w: w[0], params)``.

    Returns:
      The rate, a Python number.

    Raises:
      ValueError: where ``params`` have no weights.
      TypeError: for an ``nnx.Optimizer`` or a ``TrainState``, whose other values are no weights.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> ro.starting_rate({"kernel": jnp.zeros([1000, 1000])})
      0.003
      >>> params = {"kernel": jnp.zeros([64, 64]), "bias": jnp.zeros([64])}
      >>> round(ro.starting_rate(params), 4)
      0.0187
      >>> tx = ro.riemannian_adamw(ro.starting_rate(params))

    References:
      Brown et al, `Language Models are Few-Shot Learners <https://arxiv.org/abs/2005.14165>`_, NeurIPS, 2020:
      Table 2.1.
    """
    if is_nnx_optimizer(params):
        raise TypeError("params is an nnx.Optimizer: give starting_rate the model, or its parameters.")
    if hasattr(params, "opt_state"):
        raise TypeError("params is a whole training state: give starting_rate its params.")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(parameters_of(params)) if _tree.is_inexact(leaf)]
    count = sum(map(math.prod, shapes))
    if not count:
        raise ValueError(
            "params have no floating or complex arrays: give starting_rate the parameters of a model."
        )
    return _RATE_OF_A_MILLION / math.cbrt(count / 1e6)

"""Continual backpropagation (Dohare et al., 2024): hidden units of little use are drawn anew."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Layers = list[dict[str, jax.Array]]
Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]


class ContinualBackpropState(NamedTuple):
    """State of :func:`continual_backprop`; the lists have an entry per hidden layer.

    Attributes:
      key: the random key of the next update.
      utility: running contribution of each unit.
      age: updates since each unit was drawn.
      due: how many units, in parts of one, are to be drawn anew.
    """

    key: jax.Array
    utility: list[jax.Array]
    age: list[jax.Array]
    due: list[jax.Array]


def continual_backprop(
    replacement: jax.typing.ArrayLike,
    maturity: jax.typing.ArrayLike,
    key: jax.Array,
    draw: Draw,
    decay: float = 0.99,
) -> optax.GradientTransformationExtraArgs:
    r"""Draw the least useful mature unit of a layer anew, now and then: last in a chain.

    .. math:: u_i \leftarrow \beta u_i + (1 - \beta)\,|h_i| \sum_k |w_{ik}|

    with ``h`` the unit's activity and ``w`` its outgoing weights. Units are ranked by the running mean
    without its bias, :math:`u_i / (1 - \beta^{a_i})` at age :math:`a_i`, as in the authors' program. Each
    update adds ``replacement`` times the number of units older than ``maturity`` to a counter; where it
    exceeds 1, the mature unit of the smallest utility gets new incoming weights, a bias and outgoing weights
    of 0, utility and age 0, and the counter falls by 1. Running means of the optimiser in front are left as
    they are.

    ``params`` are a list of layers ``{"kernel", "bias"}``; ``update`` takes the extra argument
    ``activations``, the values of the hidden layers, with any batch axes in front.

    Args:
      replacement: share of the mature units replaced per update.
      maturity: age in updates up to which a unit is protected.
      key: a random key.
      draw: from a key and the shape of a kernel to initial weights.
      decay: of the running contribution; 0.99 as published.

    References:
      Dohare et al., `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature, 2024, algorithm 1
    """

    def init(params: Layers) -> ContinualBackpropState:
        units = [jnp.zeros_like(layer["bias"]) for layer in params[:-1]]
        return ContinualBackpropState(
            key=jnp.asarray(key),
            utility=units,
            age=units,
            due=[jnp.zeros((), unit.dtype) for unit in units],
        )

    def update(
        updates: Layers,
        state: ContinualBackpropState,
        params: Layers,
        *,
        activations: Sequence[jax.Array],
        **extra_args: Any,
    ) -> tuple[Layers, ContinualBackpropState]:
        del extra_args
        weights = optax.apply_updates(params, updates)
        next_key, *draw_keys = jax.random.split(state.key, len(weights))
        ages, utilities, dues = [], [], []
        for number, (activity, draw_key) in enumerate(zip(activations, draw_keys, strict=True)):
            into, out = weights[number], weights[number + 1]
            size = jnp.abs(activity).reshape(-1, activity.shape[-1]).mean(0)
            contribution = size * jnp.abs(out["kernel"]).sum(1)
            utility = decay * state.utility[number] + (1 - decay) * contribution
            age = state.age[number] + 1
            mature = age > maturity
            due = state.due[number] + replacement * mature.sum()
            replace = (due > 1) & mature.any()
            unbiased = utility / (1 - decay**age)
            least = jnp.argmin(jnp.where(mature, unbiased, jnp.inf))
            chosen = replace & (jnp.arange(len(age)) == least)
            fresh = draw(draw_key, into["kernel"].shape)
            weights[number] = {
                "kernel": jnp.where(chosen, fresh, into["kernel"]),
                "bias": jnp.where(chosen, 0, into["bias"]),
            }
            weights[number + 1] = {**out, "kernel": jnp.where(chosen[:, None], 0, out["kernel"])}
            utilities.append(jnp.where(chosen, 0, utility))
            ages.append(jnp.where(chosen, 0, age))
            dues.append(due - replace)
        changes = jax.tree.map(jnp.subtract, weights, params)
        return changes, ContinualBackpropState(next_key, utilities, ages, dues)

    return optax.GradientTransformationExtraArgs(init, update)

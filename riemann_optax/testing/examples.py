"""check_examples: whether the examples of a batch keep to themselves, as per-example gradients suppose."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from riemann_optax.supply.arguments import check_that_data_is_in_the_batch, has_axes
from riemann_optax.supply.checking import check_loss_function, check_result, number_of_examples
from riemann_optax.supply.functional import companions_in, functional


def check_examples(
    loss_fn: Callable[..., Any],
    model: Any,
    batch: Any,
    *arguments: Any,
    rtol: float = 1e-4,
    has_aux: bool = False,
) -> None:
    r"""Check that the loss of a batch is the mean of the losses of its examples, each alone.

    .. math::
      L(b_1, \dots, b_B) = \frac{1}{B} \sum_{k=1}^{B} L(b_k)

    Where it is not, a gradient of a single example is that of another network: a statistic is taken over the
    batch, or the loss is a sum. Dropout must be switched off, for it draws other masks. Call it outside of
    ``jit``; a module of NNX is not changed.

    Args:
      loss_fn: ``loss_fn(model, batch, *arguments)``, a number.
      model: as for :func:`riemann_optax.value_and_grad`.
      batch: the data, with examples along the first axis of each array.
      *arguments: what else the loss takes.
      rtol: the relative difference that rounding may make.
      has_aux: whether the loss returns ``(value, aux)``.

    Raises:
      AssertionError: where the two differ.
      ValueError: where arrays of the batch have other first axes, or a further argument is an array, or a
        container of arrays, of as many rows as the batch has examples; where the loss of the batch is not
        finite.
      TypeError: where ``loss_fn`` is no function, or does not return one number.

    Examples:
      >>> import jax.numpy as jnp
      >>> from riemann_optax.testing import check_examples
      >>> batch = jnp.array([1.0, 2.0, 6.0])
      >>> check_examples(lambda w, x: jnp.mean((w * x) ** 2), jnp.array(2.0), batch)
      >>> check_examples(lambda w, x: jnp.mean((w * (x - x.mean())) ** 2), jnp.array(2.0), batch)
      Traceback (most recent call last):
          ...
      AssertionError: the loss of the batch is 18.6667, the mean of those of its examples 0...
    """
    check_loss_function(loss_fn)
    parts = functional(model)

    beside = companions_in(arguments, model)

    def loss(batch: Any) -> float:
        given = arguments if beside is None else beside.given(arguments, beside.copies())
        result, _ = parts.evaluate(lambda copy: loss_fn(copy, batch, *given), parts.params)
        return float(check_result(result, has_aux)[0])

    size = number_of_examples(batch)
    data = arguments if beside is None else beside.given(arguments, [None] * len(beside.objects))
    check_that_data_is_in_the_batch(dict(enumerate(data, start=1)), size)
    ones = [
        jax.tree.map(lambda x, i=index: x[i : i + 1] if has_axes(x) else x, batch) for index in range(size)
    ]
    whole, mean = loss(batch), float(np.mean([loss(one) for one in ones]))
    if not np.isfinite(whole):
        raise ValueError(f"the loss of the batch is {whole}: give weights and data at which it is finite.")
    if not np.isclose(whole, mean, rtol=rtol, atol=rtol * 1e-3):
        raise AssertionError(
            f"the loss of the batch is {whole:g}, the mean of those of its examples {mean:g}: something "
            "in it mixes the examples (a statistic over the batch, a contrast between them), it is a sum, or "
            "dropout is on. Per-example gradients would be those of another network."
        )

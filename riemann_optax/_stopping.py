"""Stopping: the time at which a flow has reached a loss."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix


def stop_at(loss: Callable[[Any], jax.Array], params: optax.Params, stop_loss: Any, time: Any) -> Any:
    """Return the event that a falling loss reaches ``stop_loss``.

    Args:
      loss: of the weights.
      params: where the flow starts.
      stop_loss: where it ends.
      time: the dtype of the time.

    Raises:
      ValueError: where the loss is there already; diffrax sees where a sign changes.
    """
    at_start = loss(params)
    known = not any(isinstance(value, jax.core.Tracer) for value in (at_start, stop_loss))
    if known and at_start <= stop_loss:
        raise ValueError(
            f"stop_loss must be below the loss at params, got {stop_loss!r} and {float(at_start):.6g}."
        )
    tolerance = 4 * float(np.finfo(time).eps)
    halving: Any = _Halving
    return diffrax.Event(
        lambda t, y, args, **_: (loss(y) - stop_loss).astype(time),  # diffrax passes these by name
        root_finder=halving(rtol=tolerance, atol=tolerance, flip=True),
    )


class _Halving(optimistix.Bisection[Any]):
    """Bisection of the time alone: near a minimum the rounding of a loss is above any tolerance."""

    def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        """Return whether the time is known."""
        del fn, args, options, tags
        known = jnp.abs(state.upper - state.lower) <= self.atol + self.rtol * jnp.abs(y)
        return known, optimistix.RESULTS.successful


def time_dtype(wide: bool, has_event: bool) -> Any:
    """Return the dtype of time; diffrax finds the time of an event in the default dtype."""
    return np.float64 if wide or (has_event and jnp.zeros([]).dtype == jnp.float64) else np.float32

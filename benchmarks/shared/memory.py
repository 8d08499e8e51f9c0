"""How much memory a compiled program holds at once."""

from collections.abc import Callable
from typing import Any

import jax


def of_program(compiled: Any) -> int | None:
    """Return the bytes of a compiled program's arguments, results and temporaries; None where XLA gives none.

    What is donated counts once. XLA plans this memory when it compiles: the number is the same in every run.

    Examples:
      >>> import jax.numpy as jnp
      >>> of_program(jax.jit(lambda x: 2 * x).lower(jnp.zeros(1000)).compile())
      8000
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return int(held - plan.alias_size_in_bytes)


def device_peak() -> int | None:
    """Return the most bytes in use on the first device so far; None where it does not count them."""
    found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if found is None else int(found)


def raised(before: int | None, peak: Callable[[], int | None] = device_peak) -> int | None:
    """Return the device's peak if it has risen since ``before``: a peak is of the process and never falls.

    Examples:
      >>> raised(100, lambda: 120), raised(120, lambda: 120), raised(None, lambda: None)
      (120, None, None)
    """
    now = peak()
    return now if now is not None and before is not None and now > before else None

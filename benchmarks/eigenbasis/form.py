"""One form of the eigenbasis, or a peer of it, before anything has been run."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from benchmarks.shared.experiment import Method


class Form(NamedTuple):
    """One optimiser.

    Attributes:
      make: of a schedule and further options to an optimiser.
      every: the name of the option that says how often bases are refreshed; empty where there are none.
    """

    make: Callable[..., optax.GradientTransformation]
    every: str = ""

    def method(self) -> Method:
        """Return it as the runs of this benchmark take it."""
        return Method(self.make, "ours" if self.every == "update_every" else "peer", {"rate": None})

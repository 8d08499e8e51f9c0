"""The targets, frozen before anything but the two baselines had been run.

``near`` is what the weaker of tuned momentum and tuned AdamW had reached after four fifths of the budget, ``far``
what the stronger of the two had: the median over the tuning seeds, rounded up to two digits, and at least
1e-5 of the untrained loss. ``python -m benchmarks.time_to_target --freeze`` shows them anew.
"""

from typing import NamedTuple


class Targets(NamedTuple):
    """Losses to be reached.

    Attributes:
      near: the weaker baseline's.
      far: the stronger baseline's.
    """

    near: float
    far: float


NAMES = Targets._fields

TARGETS: dict[str, Targets] = {}

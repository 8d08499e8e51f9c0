"""The targets, frozen before anything but the two baselines had been run.

``near`` is what the weaker of tuned momentum and tuned AdamW had reached after four fifths of the budget,
``far`` what the stronger of the two had: the median over the tuning seeds, rounded up to three digits, and at
least 1e-5 of the untrained loss, where both are the same. ``python -m benchmarks.time_to_target --freeze``
shows them anew.
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

TARGETS: dict[str, Targets] = {
    "regression": Targets(near=2.13e-05, far=2.13e-05),
    "saddle": Targets(near=1.16e-05, far=1.16e-05),
    "plateau": Targets(near=0.0338, far=7.56e-05),
    "digits_mlp": Targets(near=0.0117, far=0.00272),
    "digits_convnet": Targets(near=0.0254, far=0.0104),
    "digits_mixer": Targets(near=0.0251, far=0.0231),
    "auto_encoder": Targets(near=1.31, far=1.11),
    "variational": Targets(near=24.2, far=23.6),
    "language_model": Targets(near=2.68, far=2.44),
    "recurrent": Targets(near=0.000595, far=0.000134),
    "tabular": Targets(near=2.35, far=0.787),
    "gpt_million": Targets(near=2.64, far=2.46),
    "mnist_mlp": Targets(near=0.0221, far=0.0203),
    "mnist_convnet": Targets(near=0.0473, far=0.0275),
}

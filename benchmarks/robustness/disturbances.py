"""Everything that is changed about a run, one thing at a time."""

from collections.abc import Mapping
from typing import NamedTuple


class Conditions(NamedTuple):
    """How a network is trained.

    Attributes:
      batch: examples per step, drawn with replacement.
      wrong_labels: share of the training labels that are drawn at random.
      shock: factor of the inputs of one batch, in the middle of the run.
      dtype: of weights and gradients.
      steps: of the run.
      planned: steps that the schedule of the rate was made for.
      b1, b2, alpha: of the optimiser; None for its default.
    """

    batch: int = 64
    wrong_labels: float = 0.0
    shock: float = 1.0
    dtype: str = "float32"
    steps: int = 300
    planned: int = 300
    b1: float | None = None
    b2: float | None = None
    alpha: float | None = None

    @property
    def options(self) -> dict[str, float]:
        """The hyper-parameters that are not the default."""
        named = {"b1": self.b1, "b2": self.b2, "alpha": self.alpha}
        return {name: value for name, value in named.items() if value is not None}


class Panel(NamedTuple):
    """One disturbance at several levels.

    Attributes:
      title: of its panel.
      axis: what the levels are.
      levels: the conditions, by the name of the level.
    """

    title: str
    axis: str
    levels: Mapping[str, Conditions]


CALM = Conditions()
PANELS = {
    "batch": Panel(
        "Other batches",
        "examples per step",
        {f"{n:,}": CALM._replace(batch=n) for n in (8, 64, 512, 4096)},
    ),
    "labels": Panel(
        "Wrong labels",
        "share drawn at random",
        {f"{100 * share:.0f}%": CALM._replace(wrong_labels=share) for share in (0.0, 0.1, 0.2, 0.4)},
    ),
    "shock": Panel(
        "One bad batch",
        "factor of its inputs",
        {f"{factor:g}": CALM._replace(shock=factor) for factor in (1.0, 10.0, 100.0, 1000.0)},
    ),
    "dtype": Panel(
        "Half precision",
        "weights and gradients",
        {name: CALM._replace(dtype=name) for name in ("float32", "bfloat16")},
    ),
    "length": Panel(
        "Longer than planned",
        "steps / planned",
        {
            "300 / 300": CALM,
            "600 / 300": CALM._replace(steps=600),
            "600 / 600": CALM._replace(steps=600, planned=600),
        },
    ),
    "b1": Panel(  # 0.9 is everybody's default, and no disturbance
        "Momentum",
        "b1",
        {"0.8": CALM._replace(b1=0.8), "0.9": CALM, "0.95": CALM._replace(b1=0.95)},
    ),
    "b2": Panel("Memory", "b2", {f"{b2:g}": CALM._replace(b2=b2) for b2 in (0.9, 0.97, 0.99, 0.999)}),
    "alpha": Panel("Strength", "alpha", {f"{a:g}": CALM._replace(alpha=a) for a in (100.0, 1e3, 1e4, 1e5)}),
}

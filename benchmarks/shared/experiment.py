"""The words that the benchmarks have in common: how large an experiment is, and who takes part.

A *method* takes part; a *point* is one choice of its hyper-parameters (:mod:`benchmarks.shared.tuning`); a
*trial* is a point tried on the tuning seeds; a *run* is one training on one seed; a *row* is what a table
shows of a method. Runs and rows hold what a benchmark measures, so that each benchmark has its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import optax

# Ours or a part of it, another form of ours, a control of it, a published rule, or a plain optimiser.
Role = Literal["ours", "design", "control", "peer", "base"]


class Size(NamedTuple):
    """How large an experiment is.

    Attributes:
      length: how long a run is, by the names of what it is made of: ``{"tasks": 100, "steps": 10_000}``.
      tuning_seeds: on which everything is chosen.
      seeds: fresh ones, on which what has been chosen is reported.
    """

    length: Mapping[str, Any]
    tuning_seeds: Sequence[int]
    seeds: Sequence[int]


class Method(NamedTuple):
    """Who takes part.

    Attributes:
      make: to an optimiser, from what the benchmark's runs have to give: values of the hyper-parameters, a
        random key, a schedule.
      role: what it is in the comparison.
      axes: what is tuned of it, by name.
      point_of: the method whose chosen point it takes over instead of being tuned.
    """

    make: Callable[..., optax.GradientTransformation]
    role: Role
    axes: Mapping[str, Any]
    point_of: str | None = None

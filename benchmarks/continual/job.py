"""What a stream is given to run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.continual.images import Images
from benchmarks.shared.tuning import Point


class Job(NamedTuple):
    """One method, at all points on all seeds at once.

    Attributes:
      method: its name.
      points: values of its hyper-parameters.
      seeds: of everything that is random.
      images: what is learned, where the stream has images.
      advance: told the share of the run that has just been done.
    """

    method: str
    points: Sequence[Point]
    seeds: Sequence[int]
    images: Images | None = None
    advance: Callable[[float], None] = lambda share: None

"""The streams: what is learned, by whom, on which seeds and with how many trials."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from benchmarks.continual import methods, online, permuted, regression
from benchmarks.continual.methods import DECAY, MATURITY
from benchmarks.permuted_digits.problem import Images
from benchmarks.shared.experiment import Method
from benchmarks.shared.lanes import Scores
from benchmarks.shared.tuning import Point

Run = Callable[[Method, Sequence[Point], range, Any, Callable[[float], None]], list[Scores]]


class Stream(NamedTuple):
    """One stream.

    Attributes:
      methods: who takes part, the most important first.
      run: learns the stream at some points on some seeds.
      measure: what is tuned and compared, a name in ``Scores.by_seed``.
      higher: whether more of it is better.
      size: how long a run is.
      seeds: fresh ones, on which the chosen points are reported.
      tuning_seeds: on which they are chosen.
      rounds: of trials, each of ``trials.ROUND``, for every method.
      sweep: at the chosen point, the values of one axis that are run besides; and by whom.
      ours: the name of our method.
    """

    methods: dict[str, Method]
    run: Run
    measure: str
    higher: bool
    size: Any
    seeds: range
    tuning_seeds: range = range(4)
    rounds: int = 3
    sweep: tuple[str, Callable[[float], list[float]], tuple[str, ...]] | None = None
    ours: str = methods.OURS


def ladder(rate: float) -> list[float]:
    """Return rates round a chosen one, up to 256 times it."""
    return [float(f"{rate * 2.0**k:.4g}") for k in range(-2, 9)]


ONLINE_LADDER = (methods.OURS, "SGD", "RMSprop", "Adam", "RMSprop + shrink and perturb", "RMSprop + L2-Init")


def streams(images: Images) -> dict[str, Stream]:
    """Return the streams by name, at full size; three of them learn ``images``."""
    slow = Stream(
        regression.METHODS,
        regression.run,
        measure="error",
        higher=False,
        size=regression.Size(),
        seeds=range(100, 200),
    )
    few = dict(islice(regression.METHODS.items(), 14))
    return {
        "slowly_changing": slow,
        "permuted_digits": Stream(
            permuted.METHODS,
            partial(permuted.run, images=images),
            measure="all tasks",
            higher=True,
            size=permuted.Size(),
            seeds=range(50, 80),
            tuning_seeds=range(3),
            rounds=2,
            sweep=(
                "strength",
                lambda chosen: [2.0, 5.0, 8.0, 20.0, 50.0],
                (permuted.OURS, "metric", "EWC", "re-tuned base: EWC, bounded", "metric, memory 0.7"),
            ),
            ours=permuted.OURS,
        ),
        "noise_shift": Stream(
            online.METHODS,
            partial(online.run, images=images, block_of=online.noise_block),
            measure="loss",
            higher=False,
            size=online.Size(blocks=12, steps=200, noisy=8, variance=0.001),
            seeds=range(100, 120),
            tuning_seeds=range(2),
            sweep=("rate", ladder, ONLINE_LADDER),
        ),
        "label_permuted_digits": Stream(
            online.METHODS,
            partial(online.run, images=images, block_of=online.label_block),
            measure="accuracy",
            higher=True,
            size=online.Size(blocks=40, steps=100),
            seeds=range(100, 120),
            tuning_seeds=range(2),
        ),
        "slowly_changing_flip": slow._replace(methods=few, run=partial(regression.run, flip=True)),
    }


def quick(name: str, stream: Stream) -> Stream:
    """Return a stream so short that it shows nothing, with two methods and one round of trials."""
    short = {"blocks": 2, "tasks": 2, "steps": 20, "epochs": 1, "noisy": 1}
    size = stream.size._replace(**{k: v for k, v in short.items() if k in stream.size._fields})
    return stream._replace(
        methods={name: stream.methods[name] for name in (stream.ours, "SGD")},
        size=size,
        seeds=range(100, 103),
        tuning_seeds=range(2),
        rounds=1,
        sweep=None,
    )


SETTINGS = {"decay": DECAY, "maturity": MATURITY, "hidden": online.HIDDEN}

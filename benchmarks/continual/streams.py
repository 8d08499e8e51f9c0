"""The streams: what is learned, by whom, on which seeds and with how many trials."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.continual import (
    chains,
    consolidation,
    methods,
    online,
    permuted,
    published,
    regression,
    splits,
)
from benchmarks.continual.methods import DECAY
from benchmarks.continual.renewal import MATURITY
from benchmarks.shared.experiment import Method, Size
from benchmarks.shared.lanes import Scores

OF_RULES = {"decay": DECAY, "maturity": MATURITY}
SETTINGS = OF_RULES | {"hidden": online.HIDDEN}
# Of a ``Job``, and the length as keywords.
Run = Callable[..., list[Scores]]


class Sweep(NamedTuple):
    """What is run besides, at the chosen point of some methods.

    Attributes:
      axis: the one that is swept.
      values: from the chosen value to those that are run.
      methods: by whom.
    """

    axis: str
    values: Callable[[float], Sequence[float]]
    methods: Sequence[str]


class Stream(NamedTuple):
    """One stream.

    Attributes:
      title: in words, with the measure that is compared.
      methods: who takes part, the most important first.
      run: learns the stream at some points on some seeds.
      measure: what is tuned and compared, a name in ``Scores.by_seed``.
      higher: whether more of it is better.
      size: how long a run is, and on which seeds.
      rounds: of trials, each of ``tuning.ROUND``, for every method.
      longer: the strongest rivals, which have two rounds more than ours.
      sweep: what is run besides.
      ours: the name of our method.
      settings: what determines a result besides points, seeds and size.
      tuning_tasks: the most tasks of a run on the tuning seeds; None for as many as on the fresh ones.
    """

    title: str
    methods: Mapping[str, Method]
    run: Run
    measure: str
    higher: bool
    size: Size
    rounds: int = 3
    longer: Sequence[str] = ()
    sweep: Sweep | None = None
    ours: str = methods.OURS
    settings: Mapping[str, Any] = SETTINGS
    tuning_tasks: int | None = None

    def tuning_length(self, length: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return how long a run on the tuning seeds is, for a stream of this length or of another."""
        length = dict(self.size.length if length is None else length)
        if self.tuning_tasks is not None:
            length["tasks"] = min(self.tuning_tasks, length["tasks"])
        return length


def ladder(rate: float) -> list[float]:
    """Return rates round a chosen one, up to 256 times it."""
    return [float(f"{rate * 2.0**k:.4g}") for k in range(-2, 9)]


RIVALS = ("SGD + continual backprop", "RMSprop + continual backprop", "RMSprop + L2-Init")
LADDER = (methods.OURS, "SGD", "RMSprop", "Adam", methods.SHAKEN[0], "RMSprop + L2-Init")
SWEPT = (consolidation.OURS, "metric", "EWC", "re-tuned base: EWC, bounded", "metric, memory 0.7")
FLIPPED = (
    methods.OURS,
    *methods.SHAKEN,
    "SGD",
    "RMSprop",
    "Adam",
    "permuted phi",
    "leaf-mean phi",
    "re-tuned base: pull + noise",
    "norm-matched gradient + pull",
    "untrained",
    "RMSprop + pull + noise outside",
    "RMSprop + L2-Init",
    chains.ONE_CHAIN,
)

SLOW = Stream(
    title="slowly-changing regression: mean squared error over the whole run",
    methods=regression.METHODS,
    run=regression.run,
    measure="error",
    higher=False,
    size=Size({"tasks": 100, "steps": 10_000}, tuning_seeds=range(4), seeds=range(100, 200)),
)
# A method takes about five minutes of one core; published are 800 tasks, and networks with 3 x 2,000 units.
FEW = {"tuning_seeds": range(2), "seeds": range(100, 105)}
ONE_PASS = {
    "tasks": 100,
    "images": 10_000,
    "epochs": 1,
    "batch": published.BATCH,
    "hidden": published.HIDDEN,
}
ONLINE = Stream(
    title="online permuted images: accuracy over the last tenth of the tasks, per cent",
    methods=published.METHODS,
    run=published.run_permuted,
    measure="accuracy, last tenth",
    higher=True,
    size=Size(ONE_PASS, **FEW),
    rounds=2,
    ours=chains.LONG_ISOMETRIC_CHAIN,  # here and below, of our chains the one that tuning prefers
    settings=OF_RULES,
    tuning_tasks=20,
)
STREAMS = {
    "slowly_changing": SLOW,
    "slowly_changing_flip": SLOW._replace(
        title="slowly-changing regression, one bit flipped per task: mean squared error",
        methods={name: regression.METHODS[name] for name in FLIPPED},
        run=partial(regression.run, flip=True),
    ),
    "permuted_digits": Stream(
        title="permuted digits: final accuracy over all ten tasks, per cent",
        methods=consolidation.METHODS,
        run=permuted.run,
        measure="all tasks",
        higher=True,
        size=Size({"tasks": 10, "epochs": 20, "batch": 32}, tuning_seeds=range(3), seeds=range(50, 80)),
        rounds=2,
        sweep=Sweep("strength", lambda chosen: [2.0, 5.0, 8.0, 20.0, 50.0], SWEPT),
        ours=consolidation.OURS,
    ),
    "label_permuted_digits": Stream(
        title="label-permuted digits: accuracy over the whole run, per cent",
        methods=online.METHODS,
        run=online.run,
        measure="accuracy",
        higher=True,
        size=Size(
            {"blocks": 40, "steps": 100, "batch": 16, "noisy": 0, "variance": 0.0},
            tuning_seeds=range(2),
            seeds=range(100, 120),
        ),
        longer=RIVALS,
        ours=chains.LONG_CHAIN,
    ),
    "noise_shift": Stream(
        title="growing noise, then shifts: cross-entropy over the whole run",
        methods=online.METHODS,
        run=online.run,
        measure="loss",
        higher=False,
        size=Size(
            {"blocks": 12, "steps": 200, "batch": 16, "noisy": 8, "variance": 0.001},
            tuning_seeds=range(2),
            seeds=range(100, 120),
        ),
        longer=RIVALS,
        sweep=Sweep("rate", ladder, LADDER),
        ours=chains.ISOMETRIC_SILENT_CHAIN,
    ),
    "online_permuted": ONLINE,
    "online_label_permuted": ONLINE._replace(
        title="online label-permuted images: accuracy over the last tenth of the tasks, per cent",
        run=published.run_label_permuted,
        ours=chains.LONG_CHAIN,
    ),
    "random_labels": ONLINE._replace(
        title="random labels, memorised: accuracy at the end of a task, last tenth of the tasks, per cent",
        run=published.run_random_labels,
        measure=f"{published.MEMORISED}, last tenth",
        ours=chains.ONE_CHAIN,  # of two that reach 100 per cent in tuning the first
        size=Size(ONE_PASS | {"images": 400, "epochs": 30}, **FEW),
    ),
    "class_incremental": Stream(
        title="two classes a task, one head: final accuracy over all classes, per cent",
        methods=consolidation.IN_CLASSES,
        run=splits.run,
        measure="all tasks",
        higher=True,
        size=Size({"epochs": 10, "batch": 32}, tuning_seeds=range(3), seeds=range(50, 70)),
        rounds=2,
        ours=consolidation.OURS_IN_CLASSES,
        settings=OF_RULES,
    ),
}


def adjusted(stream: Stream, **length: Any) -> Stream:
    """Return a stream of online images of another length; other streams, and what is None, stay."""
    if "hidden" not in stream.size.length:
        return stream
    given = {name: value for name, value in length.items() if value is not None}
    return stream._replace(size=stream.size._replace(length=stream.size.length | given))


def quick(stream: Stream) -> Stream:
    """Return a stream so short that it shows nothing, with two methods and one round of trials."""
    length = dict(stream.size.length)
    short = {"blocks": 2, "tasks": 2, "steps": 20, "epochs": 1, "noisy": min(1, length.get("noisy", 0))}
    short["images"] = 64
    return stream._replace(
        methods={name: stream.methods[name] for name in (stream.ours, methods.BASE)},
        size=Size(
            length | {name: value for name, value in short.items() if name in length},
            tuning_seeds=range(2),
            seeds=range(100, 103),
        ),
        rounds=1,
        sweep=None,
    )

"""What the trainer's command line says, with defaults that depend on the data, the model and the metric."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train.loop import CHUNK
from riemann_optax.examples.train.optimizers import MetricOptions, baseline_factory, own_default
from riemann_optax.examples.train.parser import build_parser
from riemann_optax.examples.train.phis import find
from riemann_optax.examples.train.processes import Cluster
from riemann_optax.optimizers import RECOMMENDED_RATES


class Defaults(NamedTuple):
    """What a problem is trained with unless the user says otherwise.

    The rate of the metric is among it where AdamW's is known to suit it, as on text; elsewhere it is the one
    that is recommended for the alias.

    Attributes:
      steps: length of a run.
      batch_size: examples in a batch.
      evaluate_every: steps between validations.
      adam_rate: rate of the baseline AdamW and its kin.
      sgd_rate: rate of the baseline SGD with Nesterov momentum .9.
      target: validation loss that counts as reached, or None where none has been measured.
      metric_rate: rate of a metric that takes AdamW's place, or None for the recommended one.
    """

    steps: int
    batch_size: int
    evaluate_every: int
    adam_rate: float
    sgd_rate: float
    target: float | None
    metric_rate: float | None = None


# Rates of the baselines: the best of half decades by the median validation loss of a few seeds, as `compare`
# does it (AdamW on the ConvNet: 1e-2 and 3e-2 tie). Targets: what tuned AdamW and tuned SGD with momentum
# both reach at the median, rounded up, and not to be moved.
DEFAULTS = {
    ("digits", "mlp"): Defaults(600, 32, 10, 3e-3, 1e-1, 0.1),
    ("digits", "convnet"): Defaults(600, 32, 10, 1e-2, 3e-2, 0.035),
    ("text", "transformer"): Defaults(600, 32, 50, 1e-2, 1e-1, 2.3, metric_rate=1e-2),
}
# Data sets that have not been tuned on.
_OTHER_IMAGES = Defaults(2000, 64, 100, 3e-3, 0.03, None)

_ADAM_KIN = ("adam", "adamw", "nadam", "nadamw", "radam", "amsgrad", "adabelief")

# Arguments that change nothing about the weights a run ends with, the last four but for rounding.
_FREE = ("out", "resume", "overwrite", "quiet", "energy", "tensorboard", "checkpoint_every", "data_dir")
FREE_ON_RESUME = (*_FREE, "shard", "coordinator", "processes", "process")


def _round_up(value: int) -> int:
    return -(-value // CHUNK) * CHUNK


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line and fill in the defaults that depend on other arguments.

    Args:
      argv: the arguments, by default those of the process.

    Returns:
      The arguments, all set but those that may be None: ``data_dir``, ``text_file``, ``target``, what tells
      where several processes meet, ``compare``, and ``phi``, ``alpha``, ``conformal``, ``momentum`` and
      ``weight_decay`` where the optimiser's own default holds. With ``compare`` those of the metric are as
      they were given; :func:`metrics` completes them for each phi.

    Raises:
      InputError: for arguments that are wrong in themselves or do not go together.

    Examples:
      >>> arguments = parse([])
      >>> arguments.model, arguments.optimizer, arguments.learning_rate
      ('convnet', 'riemannian_adamw', 0.003)
      >>> parse(["--data", "text"]).learning_rate  # AdamW's, which the metric takes over
      0.01
      >>> arguments = parse(["--phi", "maintenance_energy"])
      >>> arguments.optimizer, arguments.learning_rate, arguments.alpha
      ('riemannian_sgd', 0.1, 1.0)
    """
    arguments = build_parser().parse_args(argv)
    if arguments.model is None:
        arguments.model = "transformer" if arguments.data == "text" else "convnet"
    # Models that do not fit the data are refused where the model is built.
    defaults = _defaults(arguments)
    if arguments.compare is None:
        _complete_metric(arguments)
    elif arguments.phi is not None:
        raise InputError("--compare names the phis: leave out --phi")
    metrics(arguments)  # says what does not go together
    _complete_baseline(arguments, defaults)
    for name in ("steps", "batch_size", "evaluate_every", "target"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(defaults, name))
    arguments.evaluate_every = _round_up(arguments.evaluate_every)
    arguments.checkpoint_every = _round_up(arguments.checkpoint_every)
    _check_cluster(arguments)
    if arguments.shard is None:
        arguments.shard = "none" if arguments.coordinator is None else "data"
    if arguments.out is None:
        if arguments.resume or arguments.overwrite:
            raise InputError("--resume and --overwrite need --out, the folder of the run")
        moment = time.strftime("%Y%m%d-%H%M%S")
        arguments.out = Path("runs") / f"{arguments.data}-{arguments.model}-{moment}"
    return arguments


def _defaults(arguments: argparse.Namespace) -> Defaults:
    return DEFAULTS.get((arguments.data, arguments.model), _OTHER_IMAGES)


def metrics(arguments: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """Return the arguments of each metric of a run: one called ``"metric"``, or those to compare by name.

    Examples:
      >>> compared = metrics(parse(["--compare", "activity", "secant_curvature"]))
      >>> {name: one.optimizer for name, one in compared.items()}
      {'activity': 'riemannian_adamw', 'secant_curvature': 'riemannian_sgd'}
    """
    if arguments.compare is None:
        return {"metric": arguments}
    found = {}
    for name in arguments.compare:
        if name.replace(":", ".") in found:
            raise InputError(f"--compare has {name} twice: give each phi once")
        one = argparse.Namespace(**vars(arguments) | {"phi": name})
        _complete_metric(one)
        found[name.replace(":", ".")] = one  # also the name of a folder
    return found


def _complete_metric(arguments: argparse.Namespace) -> None:
    """Fill in the optimiser, and what of it is not its own default."""
    phi = None if arguments.phi is None else find(arguments.phi)
    adaptive = arguments.role == "metric" and (phi is None or phi.sized_like_gradient)
    if arguments.optimizer is None:
        arguments.optimizer = "riemannian_adamw" if adaptive else "riemannian_sgd"
    # E = 1 + alpha * phi is all that a phi of other units has a published meaning in.
    if phi is not None and arguments.alpha is None and (not adaptive or phi.alpha != 1):
        arguments.alpha = phi.alpha
    choice = f"--conformal {arguments.conformal}"
    if arguments.conformal is None and not adaptive:
        arguments.conformal = "none"
        choice = f"--phi {arguments.phi}" if arguments.role == "metric" else f"--role {arguments.role}"
    if arguments.learning_rate is None:
        own = own_default(arguments.optimizer, "conformal") or "none"
        if (arguments.conformal or own) != own and "none" in (arguments.conformal, own):
            raise InputError(
                f"--optimizer {arguments.optimizer} with {choice} has no recommended rate: give "
                "--learning-rate as well"
            )
        known = _defaults(arguments).metric_rate if arguments.optimizer != "riemannian_sgd" else None
        arguments.learning_rate = known or RECOMMENDED_RATES[arguments.optimizer]


def _complete_baseline(arguments: argparse.Namespace, defaults: Defaults) -> None:
    """Fill in the baseline's rate."""
    if arguments.baseline == "none":
        for option in ("baseline_learning_rate", "baseline_option"):
            if getattr(arguments, option) not in (None, []):
                raise InputError(f"--{option.replace('_', '-')} is not used by --baseline none: leave it out")
    if arguments.baseline_learning_rate is not None or arguments.baseline == "none":
        return
    if arguments.baseline in _ADAM_KIN:
        arguments.baseline_learning_rate = defaults.adam_rate
    elif arguments.baseline == "sgd":
        arguments.baseline_learning_rate = defaults.sgd_rate
    else:
        baseline_factory(arguments.baseline)  # a name that nobody knows wants no rate
        raise InputError(f"--baseline {arguments.baseline} needs --baseline-learning-rate as well")


def _check_cluster(arguments: argparse.Namespace) -> None:
    """Raise unless what is said about several processes goes together."""
    numbers = {"--processes": arguments.processes, "--process": arguments.process}
    given = [name for name, value in numbers.items() if value is not None]
    if arguments.coordinator is None or arguments.coordinator == "auto":
        if given and arguments.coordinator is None:
            raise InputError(f"{given[0]} needs --coordinator HOST:PORT as well")
        if given:
            raise InputError(f"{given[0]} is not used by --coordinator auto: leave it out")
    elif len(given) < len(numbers):
        raise InputError("--coordinator HOST:PORT needs --processes and --process as well")
    elif arguments.process >= arguments.processes:
        raise InputError(
            f"--process {arguments.process} is not below --processes {arguments.processes}: count from 0"
        )
    if arguments.coordinator is not None and arguments.out is None:
        raise InputError("--coordinator needs --out, a folder that all processes can write to")
    if arguments.coordinator is not None and arguments.shard == "none":
        raise InputError("--shard none uses one device of one process: give data or all with --coordinator")


def cluster(arguments: argparse.Namespace) -> Cluster:
    """Return what the arguments say about other processes."""
    return Cluster(**{name: getattr(arguments, name) for name in Cluster._fields})


def metric_options(arguments: argparse.Namespace) -> MetricOptions:
    """Return what the arguments say about the metric."""
    return MetricOptions(**{name: getattr(arguments, name) for name in MetricOptions._fields})


def baseline_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the baseline is built with: what it has in common with the metric, then the user's own."""
    shared: dict[str, Any] = {}
    if arguments.baseline == "adamw" and arguments.weight_decay is not None:
        shared = {"weight_decay": arguments.weight_decay}
    momentum = 0.9 if arguments.momentum is None else arguments.momentum
    if arguments.baseline == "sgd" and momentum:
        shared = {"momentum": momentum, "nesterov": True}
    return shared | dict(arguments.baseline_option)


def as_record(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as JSON can hold them."""
    record = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
    }
    return record | {"baseline_option": dict(arguments.baseline_option)}

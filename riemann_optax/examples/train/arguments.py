"""The command line of the trainer, with defaults that depend on the data, the model and the metric."""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from riemann_optax.examples import hub
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.models import MODELS
from riemann_optax.examples.train.chooser import as_text
from riemann_optax.examples.train.loop import CHUNK
from riemann_optax.examples.train.optimizers import EXTENDED, OPTIMIZERS, MetricOptions, own_default
from riemann_optax.examples.train.phis import PHIS, find
from riemann_optax.examples.train.placement import SHARDS
from riemann_optax.examples.train.processes import Cluster
from riemann_optax.optimizers import RECOMMENDED_RATES


class Defaults(NamedTuple):
    """What a problem is trained with unless the user says otherwise.

    The rate of the metric is not among it: each alias has one recommended rate for all problems.

    Attributes:
      steps: length of a run.
      batch_size: examples in a batch.
      evaluate_every: steps between validations.
      adam_rate: rate of the baseline AdamW and its kin.
      sgd_rate: rate of the baseline SGD with Nesterov momentum .9.
      target: validation loss that counts as reached, or None where none has been measured.
    """

    steps: int
    batch_size: int
    evaluate_every: int
    adam_rate: float
    sgd_rate: float
    target: float | None


# Rates of the baselines: the best of half decades by the median validation loss of a few seeds, as `compare`
# does it (AdamW on the ConvNet: 1e-2 and 3e-2 tie). Targets: what tuned AdamW and tuned SGD with momentum
# both reach at the median, rounded up, and not to be moved.
DEFAULTS = {
    ("digits", "mlp"): Defaults(600, 32, 10, 3e-3, 1e-1, 0.1),
    ("digits", "convnet"): Defaults(600, 32, 10, 1e-2, 3e-2, 0.035),
    ("text", "transformer"): Defaults(600, 32, 50, 1e-2, 1e-1, 2.3),
}
# Data sets that have not been tuned on.
_OTHER_IMAGES = Defaults(2000, 64, 100, 3e-3, 0.03, None)

_ADAM_KIN = ("adam", "adamw", "nadam", "nadamw", "radam", "amsgrad", "adabelief")

# Arguments that change nothing about the weights a run ends with, the last four but for rounding.
_FREE = ("out", "resume", "overwrite", "quiet", "tensorboard", "checkpoint_every", "data_dir")
FREE_ON_RESUME = (*_FREE, "shard", "coordinator", "processes", "process")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`InputError` with the message."""
        raise InputError(message)


class _ListPhis(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        wanted, _, own = values.partition(":")
        if wanted == "help":
            print(as_text(PHIS | {own: find(own)} if own else PHIS))
            parser.exit()
        setattr(namespace, self.dest, values)


def number(
    low: float, *, high: float = math.inf, open_low: bool = False, kind: type = float
) -> Callable[[str], Any]:
    """Return an argparse type that accepts finite numbers with ``low <= value < high``."""
    wanted = f"{'a whole number' if kind is int else 'a number'} {'above' if open_low else 'from'} {low:g}"
    if high < math.inf:
        wanted += f" and below {high:g}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from error
        if not math.isfinite(value) or not low <= value < high or (open_low and value == low):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return parse


def _address(text: str) -> str:
    """Accept ``auto`` or ``host:port``."""
    host, separator, port = text.rpartition(":")
    if text != "auto" and not (separator and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT or auto, got {text!r}")
    return text


def _option(text: str) -> tuple[str, float | bool]:
    """Parse ``name=value``, where the value is a number, ``true`` or ``false``."""
    name, separator, value = text.partition("=")
    if separator and value in ("true", "false"):
        return name, value == "true"
    try:
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected NAME=VALUE with a number, true or false, got {text!r}"
        ) from error


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the trainer's command line."""
    positive = number(0, open_low=True)
    count = number(1, kind=int)
    parser = Parser(
        prog="python -m riemann_optax.examples.train",
        description="Train a Flax model under a Riemannian metric, beside a baseline on the same batches.",
        allow_abbrev=False,
    )
    problem = parser.add_argument_group("the problem")
    problem.add_argument("--data", default="digits", choices=("digits", "text", *hub.SOURCES))
    problem.add_argument("--model", choices=MODELS, help="default: convnet for images, transformer for text")
    problem.add_argument("--data-dir", type=Path, help="folder of train-*.parquet and test-*.parquet files")
    problem.add_argument("--text-file", type=Path, help="text to use instead of the bundled one")
    problem.add_argument("--steps", type=count)
    problem.add_argument("--batch-size", type=count)
    problem.add_argument("--seed", type=number(0, kind=int), default=0, help="of weights and order of data")

    metric = parser.add_argument_group("the metric")
    metric.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="default riemannian_adamw; riemannian_sgd, the equations alone, where phi is no size of the "
        "gradient or the role is the other",
    )
    rates = ", ".join(f"{rate:g} for {name}" for name, rate in RECOMMENDED_RATES.items())
    metric.add_argument(
        "--learning-rate",
        type=positive,
        help=f"peak; 5%% warm-up, then cosine decay, but schedule-free has none; default {rates}",
    )
    metric.add_argument(
        "--phi",
        action=_ListPhis,
        metavar="NAME",
        help="default: the optimiser's own; or your module:function; 'help[:module:function]' lists all",
    )
    metric.add_argument(
        "--compare",
        nargs="+",
        metavar="NAME",
        help="several phis in the place of --phi, one after another on the same batches",
    )
    metric.add_argument("--alpha", type=number(0), help="default: the optimiser's own, or the phi's")
    metric.add_argument("--role", default="metric", choices=("metric", "inverse_metric"))
    metric.add_argument(
        "--conformal",
        choices=("none", "tree", "leaf", "neuron"),
        help="rescale E to the mean of phi; default: the optimiser's own, or none where phi is no size of "
        "the gradient",
    )
    metric.add_argument(
        "--momentum",
        type=number(0, high=1),
        help="b1 of the optimiser, or Nesterov momentum of an SGD, also of a baseline; default: its own, and "
        ".9 of a baseline sgd",
    )
    metric.add_argument(
        "--weight-decay", type=number(0), help="decoupled, also of AdamW; default: the optimiser's own"
    )
    metric.add_argument(
        "--eigenbasis",
        type=count,
        nargs="?",
        const=10,
        default=0,
        metavar="STEPS",
        help="run it in the eigenbasis of each matrix, refreshed every so many steps (default 10)",
    )

    baseline = parser.add_argument_group("the baseline")
    baseline.add_argument("--baseline", default="adamw", metavar="NAME", help="any Optax optimiser, or none")
    baseline.add_argument("--baseline-learning-rate", type=positive)
    baseline.add_argument(
        "--baseline-option", type=_option, action="append", default=[], metavar="NAME=VALUE"
    )

    devices = parser.add_argument_group("the devices")
    devices.add_argument(
        "--shard",
        choices=SHARDS,
        help="what the devices share: none uses one device; data spreads each batch over all of them; all, "
        "weights and optimiser state too; default none, and data with several processes",
    )
    devices.add_argument(
        "--coordinator",
        type=_address,
        metavar="HOST:PORT",
        help="where several processes meet, which run the same command: an address that process 0 can listen "
        "at and all can reach; or auto, for what JAX finds by itself (Slurm, Kubernetes, a cloud)",
    )
    devices.add_argument("--processes", type=number(2, kind=int), help="how many processes there are")
    devices.add_argument("--process", type=number(0, kind=int), help="the number of this one, from 0")

    output = parser.add_argument_group("the output")
    output.add_argument("--out", type=Path, help="folder to write to; default runs/DATA-MODEL-TIME")
    output.add_argument("--target", type=positive, help="validation loss whose first step is reported")
    output.add_argument("--evaluate-every", type=count, help=f"rounded up to a multiple of {CHUNK}")
    output.add_argument(
        "--checkpoint-every", type=count, default=200, help=f"rounded up to a multiple of {CHUNK}"
    )
    existing = output.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out; with more --steps than a finished run had, "
        + EXTENDED.replace("%", "%%"),
    )
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    output.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs too")
    output.add_argument("--quiet", action="store_true", help="no progress, only the table")
    return parser


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
      >>> arguments = parse(["--phi", "maintenance_energy"])
      >>> arguments.optimizer, arguments.learning_rate, arguments.alpha
      ('riemannian_sgd', 0.1, 1.0)
    """
    arguments = build_parser().parse_args(argv)
    if arguments.model is None:
        arguments.model = "transformer" if arguments.data == "text" else "convnet"
    # Models that do not fit the data are refused where the model is built.
    defaults = DEFAULTS.get((arguments.data, arguments.model), _OTHER_IMAGES)
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
    if arguments.conformal is None and not adaptive:
        arguments.conformal = "none"
    if arguments.learning_rate is None:
        own = own_default(arguments.optimizer, "conformal") or "none"
        if (arguments.conformal or own) != own and "none" in (arguments.conformal, own):
            raise InputError(
                f"--optimizer {arguments.optimizer} with --conformal {arguments.conformal} has no "
                "recommended rate: give --learning-rate as well"
            )
        arguments.learning_rate = RECOMMENDED_RATES[arguments.optimizer]


def _complete_baseline(arguments: argparse.Namespace, defaults: Defaults) -> None:
    """Fill in the baseline's rate."""
    if arguments.baseline_learning_rate is not None or arguments.baseline == "none":
        return
    if arguments.baseline in _ADAM_KIN:
        arguments.baseline_learning_rate = defaults.adam_rate
    elif arguments.baseline == "sgd":
        arguments.baseline_learning_rate = defaults.sgd_rate
    else:
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

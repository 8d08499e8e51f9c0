"""The options of the trainer's command line, and what values they take."""

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from riemann_optax.examples import hub
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.models import MODELS
from riemann_optax.examples.train.chooser import as_text
from riemann_optax.examples.train.loop import CHUNK
from riemann_optax.examples.train.optimizers import EXTENDED, OPTIMIZERS
from riemann_optax.examples.train.phis import PHIS, find
from riemann_optax.examples.train.placement import SHARDS
from riemann_optax.optimizers import RECOMMENDED_RATES

# The first whole number that 32 bits with a sign cannot count to.
_COUNTED = 2**31


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
            named = {own: find(own)} if own else {}
            print(as_text(named if own in PHIS else PHIS | named))
            parser.exit()
        setattr(namespace, self.dest, values)


def number(
    low: float, *, high: float | None = None, open_low: bool = False, kind: type = float
) -> Callable[[str], Any]:
    """Return an argparse type that accepts finite numbers with ``low <= value < high``.

    Whole numbers are below 2**31 where nothing is said, for JAX counts in 32 bits.
    """
    wanted = f"{'a whole number' if kind is int else 'a number'} {'above' if open_low else 'from'} {low:g}"
    limited = f"{wanted} and below {_COUNTED if high is None else high}"
    if high is not None:
        wanted = limited
    elif kind is int:
        high = _COUNTED

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from error
        # No math.isfinite, which fails for a whole number that is larger than every float.
        if high is not None and value >= high and value != math.inf:
            raise argparse.ArgumentTypeError(f"expected {limited}, got {text!r}")
        if not low <= value < math.inf or (open_low and value == low):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return parse


# JAX makes random keys of 32 bits: a larger seed would be another one over again.
SEED = number(0, high=2**32, kind=int)


def _address(text: str) -> str:
    """Accept ``auto`` or ``host:port``."""
    host, separator, port = text.rpartition(":")
    if text != "auto" and not (separator and host and port.isdecimal() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT or auto, got {text!r}")
    return text


def _option(text: str) -> tuple[str, float | bool]:
    """Parse ``name=value``, where the value is a number, ``true`` or ``false``; ``5`` is a whole number."""
    name, separator, value = text.partition("=")
    if separator and value in ("true", "false"):
        return name, value == "true"
    with contextlib.suppress(ValueError):
        if abs(int(value)) < _COUNTED:
            return name, int(value)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):  # which a record could not keep
        raise argparse.ArgumentTypeError(
            f"expected NAME=VALUE with a finite number, true or false, got {text!r}"
        )
    return name, number


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
    problem.add_argument(
        "--data",
        default="digits",
        choices=("digits", "text", *hub.SOURCES),
        help="default digits, of scikit-learn; text is bundled too; the others are read from --data-dir",
    )
    problem.add_argument("--model", choices=MODELS, help="default: convnet for images, transformer for text")
    problem.add_argument("--data-dir", type=Path, help="folder of train-*.parquet and test-*.parquet files")
    problem.add_argument("--text-file", type=Path, help="text to use instead of the bundled one")
    problem.add_argument("--steps", type=count, help="default 600; 2000 for the data of --data-dir")
    problem.add_argument("--batch-size", type=count, help="default 32; 64 for the data of --data-dir")
    problem.add_argument("--seed", type=SEED, default=0, help="of weights and order of data; default 0")

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
        help=f"peak; 5%% warm-up, then cosine decay, but schedule-free has none; default {rates}; "
        "on text 0.01, the rate of AdamW there, for all but riemannian_sgd",
    )
    metric.add_argument(
        "--phi",
        action=_ListPhis,
        metavar="NAME",
        help="default: the optimiser's own; or your module:function; help lists all, and "
        "help:module:function yours with them",
    )
    metric.add_argument(
        "--compare",
        nargs="+",
        metavar="NAME",
        help="several phis in the place of --phi, one after another on the same batches",
    )
    metric.add_argument("--alpha", type=number(0), help="default: the optimiser's own, or the phi's")
    metric.add_argument(
        "--role",
        default="metric",
        choices=("metric", "inverse_metric"),
        help="whether gradients are divided by 1 + alpha phi, the default, or multiplied by it",
    )
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
    baseline.add_argument(
        "--baseline", default="adamw", metavar="NAME", help="any Optax optimiser, or none; default adamw"
    )
    baseline.add_argument(
        "--baseline-learning-rate",
        type=positive,
        help="peak of the same schedule; one that changes its rate by itself, as rprop does, begins with it",
    )
    baseline.add_argument(
        "--baseline-option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the baseline, such as b2=0.95; may be given several times",
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
    output.add_argument(
        "--evaluate-every",
        type=count,
        help=f"steps, rounded up to a multiple of {CHUNK}; default 10 on digits, 50 on text, 100 elsewhere",
    )
    output.add_argument(
        "--checkpoint-every",
        type=count,
        default=200,
        help=f"steps, rounded up to a multiple of {CHUNK}; default 200",
    )
    existing = output.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out; with more --steps than a finished run had, "
        + EXTENDED.replace("%", "%%"),
    )
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    output.add_argument(
        "--energy",
        action="store_true",
        help="draw the accuracy against the energy spent, sum |dw|, beside the one against the steps, too",
    )
    output.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs too")
    output.add_argument("--quiet", action="store_true", help="no progress, only the table")
    return parser

"""What a run is, before it begins: read from the arguments, checked, and its folder made."""

import argparse
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import optax

from riemann_optax.examples import datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train import arguments as command_line
from riemann_optax.examples.train import processes
from riemann_optax.examples.train.loop import Problem
from riemann_optax.examples.train.optimizers import build_baseline, build_metric, explain, schedule_for
from riemann_optax.examples.train.placement import Placement
from riemann_optax.examples.train.record import Record, environment, is_run, read_record

RECORD, CHECKPOINTS, TENSORBOARD = "record.json", "checkpoints", "tensorboard"
PICTURES = ("curves.png", "metric.png")
ENERGY = "energy.png"  # drawn on request


class Contestant(NamedTuple):
    """An optimiser of a run: a metric or the baseline."""

    label: str
    learning_rate: float
    schedule: optax.Schedule
    transformation: optax.GradientTransformationExtraArgs


class Plan(NamedTuple):
    """A run that can begin.

    Attributes:
      problem: model, data and devices.
      contestants: the optimisers, keyed ``"metric"``, or by phi where several are compared, and
        ``"baseline"``.
      explanation: what E is in this run, in words.
      steps: number of steps of each optimiser.
      batch_size: examples in a batch.
      seed: of the initial weights and of the order of the data.
      evaluate_every: steps between two validations.
      checkpoint_every: steps between two checkpoints.
      target: validation loss whose first step is reported, or None.
      out: the folder, which is there and can be written to.
      energy: whether to draw the accuracy against the energy spent.
      tensorboard: whether to write TensorBoard logs.
      quiet: whether to show no progress.
      record: what is known so far; that of a finished run where there is nothing left to do.
      extended_at: the lengths that the run had before each extension, the last one last.
    """

    problem: Problem
    contestants: dict[str, Contestant]
    explanation: str
    steps: int
    batch_size: int
    seed: int
    evaluate_every: int
    checkpoint_every: int
    target: float | None
    out: Path
    energy: bool
    tensorboard: bool
    quiet: bool
    record: Record
    extended_at: list[int]


def prepare(arguments: argparse.Namespace) -> Plan:
    """Load the data, build model and optimisers, and make the folder; of several processes, each for itself.

    Raises:
      InputError: for what does not go together; nothing has been written then.
    """
    dataset = datasets.load(arguments.data, data_dir=arguments.data_dir, text_file=arguments.text_file)
    model = models.build(arguments.model, dataset, arguments.seed)
    if arguments.batch_size > dataset.num_train:
        raise InputError(
            f"--batch-size {arguments.batch_size} is more than the {dataset.num_train} training examples: "
            "give a smaller one"
        )
    placement = Placement(arguments.shard)
    if arguments.batch_size % placement.num_devices:
        raise InputError(
            f"--batch-size {arguments.batch_size} cannot be shared evenly by {placement.num_devices} "
            "devices: give a multiple of that"
        )
    contestants = build_contestants(arguments)
    previous: Record | None = processes.by_leader(lambda: prepare_folder(arguments))
    data = {"name": dataset.name, **dataset.description, "fingerprint": dataset.fingerprint()}
    check_same_data(arguments.out, previous, data)
    extended_at = lengths_before(arguments, previous)
    if previous is not None:
        check_can_go_on(arguments, previous)
    if extended_at:
        contestants = build_contestants(arguments, extended_at)
        check_checkpoints(arguments.out / CHECKPOINTS, contestants, extended_at[-1])
    record: Record = {
        "status": "running",
        "title": f"{arguments.model} on {arguments.data}, {arguments.steps} steps, seed {arguments.seed}",
        "arguments": command_line.as_record(arguments),
        "data": data,
        "seeds": {"initial_weights": arguments.seed, "order_of_data": arguments.seed},
        "target": arguments.target,
        "extended_at": extended_at,
        **environment(),
    }
    if previous is not None and previous.get("status") == "finished" and not is_extended(arguments, previous):
        record = previous
    same = {name: getattr(arguments, name) for name in Plan._fields if hasattr(arguments, name)}
    return Plan(
        problem=Problem(model, dataset, placement),
        contestants=contestants,
        explanation=explain_all(arguments),
        record=record,
        extended_at=extended_at,
        **same,
    )


def check_can_go_on(arguments: argparse.Namespace, previous: Record) -> None:
    """Raise ``InputError`` for what a finished run cannot do any more."""
    if previous.get("status") != "finished":
        return
    results = previous.get("results", {}).values()
    if is_extended(arguments, previous) and all(result["diverged"] is not None for result in results):
        raise InputError(
            f"--resume: the run in {arguments.out} has diverged, and more steps would train nothing: train "
            "anew with --overwrite and another learning rate"
        )
    logs = arguments.out / TENSORBOARD
    if arguments.tensorboard and not is_extended(arguments, previous) and not logs.exists():
        raise InputError(
            f"--tensorboard: the run in {arguments.out} has finished without it, and logs are written as it "
            "trains: leave it out"
        )


def check_checkpoints(folder: Path, names: Iterable[str], step: int) -> None:
    """Raise ``InputError`` where a run that has reached ``step`` would begin again, without a checkpoint."""
    for name in names:
        if not any((folder / name).glob("*")):
            raise InputError(
                f"--resume: {folder / name} holds no checkpoint of a run that has reached step {step}: bring "
                "it back, or train anew with --overwrite"
            )


def check_same_data(folder: Path, previous: Record | None, data: Record) -> None:
    """Raise ``InputError`` if a run is to go on with other examples than it began with."""
    before = {} if previous is None else previous.get("data", {})
    if before.get("fingerprint", data["fingerprint"]) != data["fingerprint"]:
        raise InputError(
            f"--resume: the run in {folder} learned other examples, read from {before.get('source')}, than "
            f"{data['source']} holds now: give the same data, or start a new run"
        )


def is_extended(arguments: argparse.Namespace, previous: Record) -> bool:
    """Whether a finished run is to have more steps."""
    more: bool = arguments.steps > previous.get("arguments", {}).get("steps", arguments.steps)
    return more and previous.get("status") == "finished"


def lengths_before(arguments: argparse.Namespace, previous: Record | None) -> list[int]:
    """Return the lengths that a run had before each of its extensions, this one included."""
    if previous is None:
        return []
    lengths: list[int] = [*previous.get("extended_at", [])]
    return [*lengths, previous["arguments"]["steps"]] if is_extended(arguments, previous) else lengths


def build_contestants(
    arguments: argparse.Namespace, extended_at: Sequence[int] = ()
) -> dict[str, Contestant]:
    """Build the optimisers that the arguments ask for, keyed as in :class:`Plan`."""
    contestants = {}
    for name, one in command_line.metrics(arguments).items():
        schedule = schedule_for(one.optimizer, one.learning_rate, one.steps, extended_at)
        metric = build_metric(command_line.metric_options(one), schedule)
        label = one.optimizer if arguments.compare is None else f"{name}, {one.optimizer}"
        contestants[name] = Contestant(label, one.learning_rate, schedule, metric)
    if arguments.baseline != "none":
        rate = arguments.baseline_learning_rate
        schedule = schedule_for(arguments.baseline, rate, arguments.steps, extended_at)
        options = command_line.baseline_options(arguments)
        baseline = build_baseline(arguments.baseline, schedule, options, peak=rate)
        contestants["baseline"] = Contestant(arguments.baseline, rate, schedule, baseline)
    return contestants


def explain_all(arguments: argparse.Namespace) -> str:
    """Say what E is; of several metrics a line each."""
    said = {
        name: explain(command_line.metric_options(one))
        for name, one in command_line.metrics(arguments).items()
    }
    if arguments.compare is None:
        return said["metric"]
    return "\n".join(f"{name}: {text.splitlines()[0]}" for name, text in said.items())


def prepare_folder(arguments: argparse.Namespace) -> Record | None:
    """Make the folder of the run fit to write to.

    Returns:
      The record of the run to resume, or None for a new run.

    Raises:
      InputError: if the folder cannot be written to, or holds something that the arguments do not allow to
        be continued or replaced.
    """
    folder: Path = arguments.out
    previous = None
    if arguments.resume:
        previous = read_record(folder / RECORD)
        now = command_line.as_record(arguments)
        stored = previous.get("arguments", {})
        other = [
            name
            for name, value in now.items()
            if name not in command_line.FREE_ON_RESUME
            and stored.get(name) != value
            and not (name == "steps" and is_extended(arguments, previous))
        ]
        if other:
            options = ", ".join(f"--{name.replace('_', '-')} {stored.get(name)}" for name in other)
            more = ", or more once it has finished" if other == ["steps"] else ""
            raise InputError(f"--resume: the run in {folder} has {options}: give the same{more}")
    try:
        if not arguments.resume and folder.exists() and any(folder.iterdir()):
            if not arguments.overwrite:
                raise InputError(f"--out {folder} is not empty: add --resume or --overwrite, or name another")
            if not is_run(folder / RECORD):
                raise InputError(
                    f"--overwrite: {folder} holds no readable run of this program: empty it, or name another"
                )
            for name in (RECORD, *PICTURES, ENERGY):
                (folder / name).unlink(missing_ok=True)
            for name in (CHECKPOINTS, TENSORBOARD):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be written to ({error.strerror or error}): name another folder"
        ) from error
    return previous

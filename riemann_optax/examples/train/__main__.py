"""Train a Flax model under a Riemannian metric, beside a baseline on the same batches.

    python -m riemann_optax.examples.train
    python -m riemann_optax.examples.train --data text --tensorboard
    python -m riemann_optax.examples.train --phi help

Two processes that share the batches, to be started side by side, one with --process 0 and one with 1:

    python -m riemann_optax.examples.train --out runs/2 --coordinator localhost:8476 --processes 2 --process 0

Both optimisers start from the same weights, see the same batches and follow the same schedule (linear
warm-up over 5% of the steps, then cosine decay). The held-out part is scored once, at the very end.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
from rich.console import Console

from riemann_optax.examples import datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.schedule import warmup_cosine
from riemann_optax.examples.train import arguments as command_line
from riemann_optax.examples.train import pictures, processes
from riemann_optax.examples.train.checkpoint import Checkpoints
from riemann_optax.examples.train.display import Display
from riemann_optax.examples.train.extra_arguments import supply_for
from riemann_optax.examples.train.loop import Problem, Run, Supply, evaluation_parameters, start, train
from riemann_optax.examples.train.optimizers import build_baseline, build_metric
from riemann_optax.examples.train.placement import Placement
from riemann_optax.examples.train.record import (
    Record,
    environment,
    print_table,
    read_record,
    summarise,
    write_record,
)
from riemann_optax.examples.train.tensorboard import Log

_RECORD, _CHECKPOINTS, _TENSORBOARD = "record.json", "checkpoints", "tensorboard"
_PICTURES = ("curves.png", "metric.png")


class Interrupted(KeyboardInterrupt):
    """The user has stopped a run; the message says how to continue it."""


class Contestant(NamedTuple):
    """An optimiser of a run: the metric or the baseline."""

    label: str
    learning_rate: float
    schedule: optax.Schedule
    transformation: optax.GradientTransformationExtraArgs
    supply: Supply | None = None


def build_contestants(arguments: argparse.Namespace) -> dict[str, Contestant]:
    """Build the optimisers that the arguments ask for, keyed ``"metric"`` and ``"baseline"``."""
    rate = arguments.learning_rate
    schedule = warmup_cosine(rate, arguments.steps)
    metric = build_metric(command_line.metric_options(arguments), schedule)
    contestants = {"metric": Contestant(arguments.optimizer, rate, schedule, metric)}
    if arguments.baseline != "none":
        rate = arguments.baseline_learning_rate
        schedule = warmup_cosine(rate, arguments.steps)
        options = command_line.baseline_options(arguments)
        baseline = build_baseline(arguments.baseline, schedule, options)
        contestants["baseline"] = Contestant(arguments.baseline, rate, schedule, baseline)
    return contestants


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
        previous = read_record(folder / _RECORD)
        now = command_line.as_record(arguments)
        for name in now.keys() - set(command_line.FREE_ON_RESUME):
            before = previous.get("arguments", {}).get(name)
            if before != now[name]:
                option = "--" + name.replace("_", "-")
                raise InputError(f"--resume: the run in {folder} has {option} {before}: give the same")
    try:
        if not arguments.resume and folder.exists() and any(folder.iterdir()):
            if not arguments.overwrite:
                raise InputError(f"--out {folder} is not empty: add --resume or --overwrite, or name another")
            for name in (_RECORD, *_PICTURES):
                (folder / name).unlink(missing_ok=True)
            for name in (_CHECKPOINTS, _TENSORBOARD):
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


def train_one(
    name: str, contestant: Contestant, problem: Problem, arguments: argparse.Namespace, display: Display
) -> Run:
    """Train one optimiser to the end, from its last checkpoint if there is one."""
    folder: Path = arguments.out
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder / _CHECKPOINTS / name))
        run = checkpoints.restore(start(problem, contestant.transformation))
        display.begin(contestant.label, arguments.steps)
        logs = arguments.tensorboard and processes.is_leader()
        log = stack.enter_context(Log(folder / _TENSORBOARD / name, run)) if logs else None
        going = train(
            run,
            problem,
            contestant.transformation,
            contestant.schedule,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            evaluate_every=arguments.evaluate_every,
            supply=contestant.supply,
        )
        for _ in going:
            display.show(run)
            if log is not None:
                log.write(run)
            if run.step % arguments.checkpoint_every == 0:
                checkpoints.save(run)
        checkpoints.save(run)
    return run


def train_all(arguments: argparse.Namespace, console: Console) -> Record:
    """Train every optimiser, score the held-out part, and write record and pictures.

    Of several processes all train, and the leader writes.

    Returns:
      The record, as it is written.
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
    supply = supply_for(arguments.phi, model)
    contestants["metric"] = contestants["metric"]._replace(supply=supply)
    previous: Record | None = processes.by_leader(lambda: prepare_folder(arguments))
    path = arguments.out / _RECORD
    if previous is not None and previous.get("status") == "finished":
        return previous
    record: Record = {
        "status": "running",
        "title": f"{arguments.model} on {arguments.data}, {arguments.steps} steps, seed {arguments.seed}",
        "arguments": command_line.as_record(arguments),
        "data": {"name": dataset.name, **dataset.description},
        "seeds": {"initial_weights": arguments.seed, "order_of_data": arguments.seed},
        "target": arguments.target,
        **environment(),
    }
    leader = processes.is_leader()
    if leader:
        write_record(record, path)
    problem = Problem(model, dataset, placement)
    with Display(console, quiet=arguments.quiet or not leader) as display:
        try:
            runs = {
                name: train_one(name, contestant, problem, arguments, display)
                for name, contestant in contestants.items()
            }
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"add --resume --out {arguments.out} to go on from the last checkpoint"
            ) from error
    results: dict[str, Any] = {}
    for name, run in runs.items():
        heldout = problem.evaluate("heldout", evaluation_parameters(run.training))
        summary = summarise(run, heldout, contestants[name].learning_rate, arguments.target)
        results[name] = {"label": contestants[name].label, **summary}
    histories = {name: run.history for name, run in runs.items()}
    record |= {"status": "finished", "results": results, "histories": histories}
    if not leader:
        return record
    labels = {name: contestant.label for name, contestant in contestants.items()}
    curves, metric = (arguments.out / name for name in _PICTURES)
    pictures.draw_curves(histories, labels, arguments.target, record["title"], curves)
    pictures.draw_metric(histories["metric"], f"The metric E of each layer: {record['title']}", metric)
    write_record(record, path)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer's command line and return its exit status."""
    console = Console()
    try:
        arguments = command_line.parse(argv)
        processes.connect(command_line.cluster(arguments))
        record = train_all(arguments, console)
        if processes.is_leader():
            print_table(record, console)
            files = ", ".join((*_PICTURES, _RECORD))
            console.print(f"written to {arguments.out}: {files}", soft_wrap=True, highlight=False)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who read the output has gone, as `| head` does: be quiet, also when Python flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: the run stopped, for a file could not be written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print(f"interrupted: {interruption}".rstrip(": "), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train a Flax model under a Riemannian metric, beside a baseline on the same batches.

    python -m riemann_optax.examples.train
    python -m riemann_optax.examples.train --data text --tensorboard
    python -m riemann_optax.examples.train --phi help
    python -m riemann_optax.examples.train --phi my_module:my_phi
    python -m riemann_optax.examples.train --compare activity maintenance_energy secant_curvature
    python -m riemann_optax.examples.train --out runs/1 --resume --steps 1200 --energy

Two processes that share the batches, to be started side by side, one with --process 0 and one with 1:

    python -m riemann_optax.examples.train --out runs/2 --coordinator localhost:8476 --processes 2 --process 0

All optimisers start from the same weights, see the same batches and follow the same schedule: linear warm-up
over 5% of the steps, then cosine decay. A schedule-free one has a warm-up of 100 steps alone, and is scored
at its average. The held-out part is scored once, at the very end.

A finished run is extended by --resume and more --steps than it had. The rate warms up again over 5% of the
added steps and decays to 0 over the rest; that of a schedule-free optimiser stays as it is. The held-out part
is then scored again.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train import arguments as command_line
from riemann_optax.examples.train import pictures, processes
from riemann_optax.examples.train.checkpoint import Checkpoints
from riemann_optax.examples.train.display import Display
from riemann_optax.examples.train.loop import Run, evaluation_parameters, start, train
from riemann_optax.examples.train.optimizers import EXTENDED
from riemann_optax.examples.train.plan import (
    CHECKPOINTS,
    ENERGY,
    PICTURES,
    RECORD,
    TENSORBOARD,
    Plan,
    prepare,
)
from riemann_optax.examples.train.record import Record, print_table, summarise, write_record
from riemann_optax.examples.train.tensorboard import Log


class Interrupted(KeyboardInterrupt):
    """The user has stopped a run; the message says how to continue it."""


def train_one(name: str, plan: Plan, display: Display) -> Run:
    """Train one optimiser to the end, from its last checkpoint if there is one."""
    contestant = plan.contestants[name]
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(plan.out / CHECKPOINTS / name))
        run = checkpoints.restore(start(plan.problem, contestant.transformation))
        display.begin(contestant.label, plan.steps)
        logs = plan.tensorboard and processes.is_leader()
        log = stack.enter_context(Log(plan.out / TENSORBOARD / name, run)) if logs else None
        going = train(
            run,
            plan.problem,
            contestant.transformation,
            contestant.schedule,
            steps=plan.steps,
            batch_size=plan.batch_size,
            seed=plan.seed,
            evaluate_every=plan.evaluate_every,
        )
        for _ in going:
            display.show(run)
            if log is not None:
                log.write(run)
            if run.step % plan.checkpoint_every == 0:
                checkpoints.save(run)
        checkpoints.save(run)
    return run


def train_all(plan: Plan, console: Console) -> dict[str, Run]:
    """Train every optimiser of a plan. Of several processes all train, and the leader shows it."""
    leader = processes.is_leader()
    if leader:
        write_record(plan.record, plan.out / RECORD)
    with Display(console, quiet=plan.quiet or not leader) as display:
        try:
            return {name: train_one(name, plan, display) for name in plan.contestants}
        except KeyboardInterrupt as error:
            raise Interrupted(f"add --resume --out {plan.out} to go on from the last checkpoint") from error


def finish(plan: Plan, runs: dict[str, Run]) -> Record:
    """Score the held-out part, and write the record; of several processes, the leader does.

    Returns:
      The record, as it is written.
    """
    results: dict[str, Any] = {}
    for name, run in runs.items():
        contestant = plan.contestants[name]
        heldout = plan.problem.evaluate("heldout", evaluation_parameters(run.training))
        summary = summarise(run, heldout, contestant.learning_rate, plan.target)
        results[name] = {"label": contestant.label, **summary}
    histories = {name: run.history for name, run in runs.items()}
    record = plan.record | {"status": "finished", "results": results, "histories": histories}
    if processes.is_leader():
        write_record(record, plan.out / RECORD)
    return record


def draw(plan: Plan, record: Record) -> list[str]:
    """Draw what a finished run has recorded, and return the names of the files."""
    histories, title = record["histories"], record["title"]
    labels = {name: result["label"] for name, result in record["results"].items()}
    curves, metric = (plan.out / name for name in PICTURES)
    pictures.draw_curves(histories, labels, plan.target, title, curves)
    of_metric = f"The metric E of each layer: {title}"
    if "metric" in histories:
        pictures.draw_metric(histories["metric"], of_metric, plan.explanation, metric)
    else:
        pictures.draw_metrics(histories, of_metric, plan.explanation, metric)
    # A picture of the energy of an earlier part of this run would else be left as it was.
    if not plan.energy and not (plan.out / ENERGY).exists():
        return [*PICTURES]
    pictures.draw_energy(histories, labels, title, plan.out / ENERGY)
    return [*PICTURES, ENERGY]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer's command line and return its exit status."""
    console = Console()
    try:
        arguments = command_line.parse(argv)
        processes.connect(command_line.cluster(arguments))
        plan = prepare(arguments)
        record = plan.record
        if record["status"] != "finished":
            if plan.extended_at and processes.is_leader():
                console.print(
                    f"from step {plan.extended_at[-1]} to {plan.steps}: {EXTENDED}",
                    soft_wrap=True,
                    highlight=False,
                )
            record = finish(plan, train_all(plan, console))
        if processes.is_leader():
            # In a narrow terminal lines wrap, which beats names and numbers that are cut.
            console.width = max(console.width, 33 + 19 * len(record["results"]))
            print_table(record, console)
            files = ", ".join((*draw(plan, record), RECORD))
            console.print(f"written to {plan.out}: {files}", soft_wrap=True, highlight=False)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who read the output has gone, as `| head` does: be quiet, also when Python flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: stopped: could not write a file: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print(f"interrupted: {interruption}".rstrip(": "), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

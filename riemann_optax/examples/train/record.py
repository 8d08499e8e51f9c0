"""The results of a run as a table for people and as a record for programs."""

import json
import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train.loop import Run
from riemann_optax.examples.train.optimizers import state_bytes

_PACKAGES = ("riemann-optax", "jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy", "scikit-learn")

Record = dict[str, Any]


def steps_to_target(history: dict[str, Any], target: float | None) -> int | None:
    """Return the first validated step whose validation loss is at most the target, None if there is none.

    Examples:
      >>> rows = [{"step": 0, "loss": 2.3}, {"step": 10, "loss": 0.4}, {"step": 20, "loss": 0.5}]
      >>> steps_to_target({"validation": rows}, 0.5)
      10
    """
    if target is None:
        return None
    return next((row["step"] for row in history["validation"] if row["loss"] <= target), None)


def summarise(run: Run, heldout: dict[str, float], learning_rate: float, target: float | None) -> Record:
    """Return the figures of one finished run.

    Args:
      run: the run.
      heldout: its ``loss`` and ``accuracy`` on the held-out part.
      learning_rate: the peak of its schedule.
      target: the validation loss to reach, or None.

    Returns:
      The figures by name; times in seconds, energy as the sum of ``|dw|`` in units of the weights.
    """
    final, history = run.history["validation"][-1], run.history
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(run.training.parameters))
    return {
        "learning_rate": learning_rate,
        "steps": run.step,
        "diverged": history["diverged"],
        "validation_loss": final["loss"],
        "validation_accuracy": final["accuracy"],
        "heldout_loss": heldout["loss"],
        "heldout_accuracy": heldout["accuracy"],
        "steps_to_target": steps_to_target(history, target),
        "seconds": history["seconds"],
        "compile_seconds": history["compile_seconds"],
        "num_parameters": num_parameters,
        "state_bytes_per_parameter": state_bytes(run.training.optimizer_state) / num_parameters,
        "energy": final["energy"],
    }


def print_table(record: Record, console: Console) -> None:
    """Print the results of a finished record, one column per optimiser."""
    target, results = record["target"], record["results"]
    table = Table(title=record["title"], title_justify="left", title_style="bold")
    table.add_column("")
    for result in results.values():
        table.add_column(result["label"], justify="right", overflow="fold")

    def row(name: str, *cells: str) -> None:
        table.add_row(name, *cells)

    def values(key: str, form: str) -> list[str]:
        # A record keeps what is not finite as null.
        return ["-" if r[key] is None else format(r[key], form) for r in results.values()]

    row("peak learning rate", *values("learning_rate", ".3g"))
    row("validation loss", *values("validation_loss", ".4f"))
    row("validation accuracy", *values("validation_accuracy", ".2%"))
    row("held-out loss", *values("heldout_loss", ".4f"))
    row("held-out accuracy", *values("heldout_accuracy", ".2%"))
    if target is not None:
        reached = [
            f"not in {result['steps']} steps" if cell == "-" else cell
            for cell, result in zip(values("steps_to_target", "d"), results.values(), strict=True)
        ]
        row(f"steps to validation loss {target:g}", *reached)
    row("seconds of training", *values("seconds", ".1f"))
    row("seconds of compilation", *values("compile_seconds", ".1f"))
    row("state bytes per parameter", *values("state_bytes_per_parameter", ".2f"))
    row("energy spent, sum |dw|", *values("energy", ".1f"))
    if any(result["diverged"] is not None for result in results.values()):
        row("loss no longer finite at step", *values("diverged", "d"))
    console.print(table)


def environment() -> Record:
    """Return the versions and the device a run was made with."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "device": jax.devices()[0].device_kind, "backend": jax.default_backend()}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def write_record(record: Record, path: Path) -> None:
    """Write a record as JSON, all or nothing; what is not finite becomes null.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_record({"arguments": {"alpha": float("nan")}}, Path(folder) / "record.json")
      ...     read_record(Path(folder) / "record.json")
      {'arguments': {'alpha': None}}
    """
    unfinished = path.with_suffix(".json.unfinished")
    unfinished.write_text(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")
    os.replace(unfinished, path)


def read_record(path: Path) -> Record:
    """Read a record that :func:`write_record` wrote.

    Raises:
      InputError: if there is none, or it is damaged.
    """
    record = _read(path)
    if record is None:
        raise InputError(
            f"--resume: {path.parent} holds no readable run ({path.name}): leave out --resume to start one"
        )
    return record


def is_run(path: Path) -> bool:
    """Whether there is a record of a run, so that its folder may be emptied."""
    return _read(path) is not None


def _read(path: Path) -> Record | None:
    """Return the record of a run; None where there is none that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and _is_of_a_run(record) else None


def _is_of_a_run(record: Record) -> bool:
    """Whether a record has what the trainer reads of a run, each of its kind."""
    kinds = {"arguments": dict, "data": dict, "extended_at": list, "results": dict, "histories": dict}
    if not all(isinstance(record.get(name, kind()), kind) for name, kind in kinds.items()):
        return False
    complete = {"title", "target", "results", "histories"} <= record.keys()
    return bool(record.get("arguments")) and (complete or record.get("status") != "finished")

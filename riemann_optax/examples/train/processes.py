"""Several processes that train together, by JAX's own distributed runtime.

Every process runs the same program. One of them, the leader, does what is to be done once: it prepares the
folder, shows progress and writes records and pictures. Checkpoints are Orbax's: all processes call it, and it
writes each array once.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from riemann_optax.examples.errors import InputError

# After this many seconds without all processes, JAX ends those that wait.
_PATIENCE = 120


class Cluster(NamedTuple):
    """Where the processes of a run meet.

    Attributes:
      coordinator: ``host:port`` of process 0, or ``"auto"`` for what JAX finds in its surroundings (Slurm,
        a cloud's metadata, Kubernetes); None for a single process.
      processes: how many there are; None for ``"auto"``.
      process: the number of this one, from 0; None for ``"auto"``.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def connect(cluster: Cluster) -> None:
    """Join the other processes; must come before JAX looks for devices. Of a single process: do nothing.

    Raises:
      InputError: if they cannot meet at that address, or JAX finds no surroundings that it knows.
    """
    if cluster.coordinator is None:
        return
    automatic = cluster.coordinator == "auto"
    try:
        jax.distributed.initialize(
            coordinator_address=None if automatic else cluster.coordinator,
            num_processes=cluster.processes,
            process_id=cluster.process,
            initialization_timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        remedy = "give HOST:PORT, --processes and --process" if automatic else "give another HOST:PORT"
        raise InputError(
            f"--coordinator {cluster.coordinator}: could not connect ({reason}): {remedy}"
        ) from error


def is_leader() -> bool:
    """Return whether this is the process that does what is to be done once."""
    return jax.process_index() == 0


def by_leader(function: Callable[[], Any]) -> Any:
    """Let the leader alone call ``function``, and return its result in every process.

    Args:
      function: returns something that JSON can hold.

    Returns:
      What it returned.

    Raises:
      InputError: in every process, if it raised one in the leader.

    Examples:
      >>> by_leader(lambda: {"step": 10})
      {'step': 10}
    """
    if jax.process_count() == 1:
        return function()
    outcome: dict[str, Any] = {}
    failure: InputError | None = None
    if is_leader():
        try:
            outcome = {"result": function()}
        except InputError as error:
            failure, outcome = error, {"error": str(error)}
    message = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    # All must bring arrays of one shape, and only the leader knows how long the message is.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(message.size)))
    padded = np.resize(message, size)
    outcome = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))
    if "error" in outcome:
        raise InputError(outcome["error"]) from failure
    return outcome["result"]

"""Checkpoints of a run by Orbax: weights, optimiser state and measurements, written atomically."""

from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from riemann_optax.examples.errors import InputError
from riemann_optax.examples.loop import Run, Training

_KEPT = 3


class Checkpoints:
    """The checkpoints of one optimiser's run, of which the last few are kept; use it in a ``with`` block.

    Args:
        folder: where they are written, one folder per step; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Written before the call returns: the next step takes over the buffers, and a run interrupted right
        # after must find the checkpoint.
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Self:
        """Open the folder."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the folder."""
        self._manager.close()

    def save(self, run: Run) -> None:
        """Write ``run`` under its step, unless that is written already."""
        if self._manager.latest_step() == run.step:
            return
        items = ocp.args.Composite(
            training=ocp.args.StandardSave(_without_empty(run.training)),
            history=ocp.args.JsonSave(run.history),
        )
        self._manager.save(run.step, args=items)

    def restore(self, fresh: Run) -> Run:
        """Return the latest checkpoint, or ``fresh`` if there is none.

        Args:
            fresh: a run of no steps by the same model and optimiser, whose structure is expected.

        Returns:
            The run to continue.

        Raises:
            InputError: if the checkpoint is damaged or belongs to another model or optimiser.
        """
        step = self._manager.latest_step()
        if step is None:
            return fresh
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_empty(fresh.training))
        items = ocp.args.Composite(
            training=ocp.args.StandardRestore(abstract), history=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"--resume: the checkpoint {self.folder / str(step)} cannot be read: remove that folder to "
                "go on from the one before"
            ) from error
        training = jax.tree.map(
            lambda initial, saved: initial if saved is None else saved,
            fresh.training,
            Training(**restored["training"]),
        )
        return Run(training, step, restored["history"])


def _without_empty(training: Training) -> Any:
    # Orbax refuses arrays of no elements, which have nothing to restore.
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, training)._asdict()

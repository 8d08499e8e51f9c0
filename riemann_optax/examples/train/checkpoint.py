"""Checkpoints of a run by Orbax: weights, optimiser state and measurements, written atomically."""

from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

import riemann_optax as ro
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train.loop import Run, Training

_KEPT = 3


class Checkpoints:
    """The checkpoints of one optimiser's run, of which the last few are kept; use it in a ``with`` block.

    Of several processes every one makes the same calls, and Orbax sees to it that each array is written once.

    Args:
      folder: where they are written, one folder per step; made if it does not exist.

    Raises:
      InputError: if the folder cannot hold checkpoints.
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
            training=ocp.args.StandardSave(_filled(run.training._asdict())),
            manifest=ocp.args.JsonSave(ro.checkpoint.manifest(run.training)),
            history=ocp.args.JsonSave(run.history),
        )
        self._manager.save(run.step, args=items)

    def restore(self, fresh: Run) -> Run:
        """Return the latest checkpoint, or ``fresh`` if there is none.

        Args:
          fresh: a run of no steps by the same model and optimiser, whose structure and placement on devices
            the result has; the checkpoint may have been written on others.

        Returns:
          The run to continue.

        Raises:
          InputError: if the checkpoint is damaged, or belongs to another model, optimiser or release.
        """
        step = self._manager.latest_step()
        if step is None:
            return fresh
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), fresh.training
        )
        json = self._read(step, manifest=ocp.args.JsonRestore(), history=ocp.args.JsonRestore())
        try:
            ro.checkpoint.check(json["manifest"], target)
        except ValueError as error:
            raise InputError(f"--resume: {self.folder / str(step)}: {error}") from error
        kept = self._read(step, training=ocp.args.StandardRestore(_filled(target._asdict())))["training"]
        training = jax.tree.map(
            lambda first, restored: first if restored is None else restored, fresh.training, Training(**kept)
        )
        return Run(training, step, json["history"])

    def _read(self, step: int, **items: Any) -> Any:
        folder = self.folder / str(step)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except KeyError as error:
            raise InputError(
                f"--resume: {folder} is no whole checkpoint, or one of an older release or another program "
                f"({' '.join(str(error).split())}): move it away to go on from the one before"
            ) from error
        except (ValueError, TypeError, OSError, RecursionError) as error:
            raise InputError(
                f"--resume: the checkpoint {folder} is damaged: move it away to go on from the one before"
            ) from error


def _filled(tree: Any) -> Any:
    """Return a tree with None for arrays of no values, which Orbax does not write."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)

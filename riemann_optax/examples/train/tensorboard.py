"""TensorBoard logs of a run, by tensorboardX."""

from pathlib import Path
from typing import Self

from tensorboardX import SummaryWriter

from riemann_optax.examples.train.loop import Run


class Log:
    """Writes what a run has measured since the last call; use it in a ``with`` block.

    Args:
      folder: where the event files go.
      run: the run, whose measurements so far are taken as written.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        # Events after the checkpoint that a run resumes from are replaced by the ones to come.
        self._writer = SummaryWriter(str(folder), purge_step=run.step + 1 if run.step else None)
        self._written = {name: len(run.history[name]) for name in ("training", "validation", "metric")}

    def __enter__(self) -> Self:
        """Open the log."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Flush and close the log."""
        self._writer.close()

    def write(self, run: Run) -> None:
        """Write the measurements that are new."""
        for part in ("training", "validation"):
            for row in run.history[part][self._written[part] :]:
                for score in ("loss", "accuracy"):
                    self._writer.add_scalar(f"{score}/{part}", row[score], row["step"])
        for row in run.history["metric"][self._written["metric"] :]:
            for index, layer in enumerate(run.history["layers"]):
                for statistic in ("metric_min", "metric_mean", "metric_max"):
                    self._writer.add_scalar(f"{statistic}/{layer}", row[statistic][index], row["step"])
        self._written = {name: len(run.history[name]) for name in self._written}

"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from riemann_optax.examples.train.loop import Run


def describe(run: Run) -> str:
    """Return the last loss and accuracy of a run, and the spread of its effective rates, if any."""
    last = run.history["training"][-1]
    text = f"loss {last['loss']:.4f}  accuracy {last['accuracy']:.3f}"
    if run.history["metric"]:
        row = run.history["metric"][-1]
        slowest, fastest = (
            row["learning_rate"] * rate for rate in (min(row["rate_min"]), max(row["rate_max"]))
        )
        text += f"  rates {slowest:.0e} to {fastest:.0e}"
    return text


class Display:
    """Shows the progress of runs one after another; use it in a ``with`` block.

    Args:
      console: where to show it.
      quiet: whether to show nothing at all.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._bar_shown = console.is_terminal and not quiet
        self._lines_shown = not console.is_terminal and not quiet
        self._task: TaskID | None = None
        self._label, self._steps, self._shown = "", 0, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[scores]}"),
            console=console,
            expand=True,
        )

    def __enter__(self) -> Self:
        """Start the bar."""
        if self._bar_shown:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the bar and leave it on the screen."""
        if self._bar_shown:
            self._progress.stop()

    def begin(self, label: str, steps: int) -> None:
        """Announce a run of so many steps."""
        self._label, self._steps, self._shown = label, steps, 0
        self._task = self._progress.add_task(label, total=steps, scores="compiling")

    def show(self, run: Run) -> None:
        """Show where a run stands; where there is no terminal, about ten times a run."""
        if self._task is not None:
            self._progress.update(self._task, completed=run.step, scores=describe(run))
        tenth = 10 * run.step // self._steps
        if self._lines_shown and tenth > self._shown:
            self._shown = tenth
            line = f"{self._label}  step {run.step}/{self._steps}  {describe(run)}"
            self._console.print(line, soft_wrap=True, highlight=False)

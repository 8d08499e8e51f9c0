"""Pictures of a finished run: learning curves, and each layer's metric over time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from riemann_optax import plot

# Dark and solid against light and dashed, so that the two can be told apart in grey.
_STYLES: dict[str, Any] = {
    "metric": {"color": "#123f6d", "linestyle": "-"},
    "baseline": {"color": "#e08214", "linestyle": "--"},
}
_MOST_PANELS = 16


def _style(name: str, histories: dict[str, Any]) -> dict[str, Any]:
    """Return colour and line of an optimiser; of several metrics each has a colour, and the baseline none."""
    if "metric" in histories:
        return dict(_STYLES[name])
    if name == "baseline":
        return {"color": "black", "linestyle": "--"}
    return {"color": f"C{list(histories).index(name)}", "linestyle": "-"}


def _shown(names: list[str]) -> list[int]:
    """Return which parameter arrays have a place in a picture: of many the matrices alone."""
    matrices = [index for index, name in enumerate(names) if name.endswith(("kernel", "embedding"))]
    return matrices if len(names) > _MOST_PANELS and matrices else list(range(len(names)))


History = dict[str, Any]


def _columns(rows: list[dict[str, Any]], *names: str) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray([row[name] for row in rows], dtype=float) for name in names)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_scores(axes: Axes, histories: dict[str, History], labels: dict[str, str], score: str) -> None:
    for name, history in histories.items():
        style = _style(name, histories)
        steps, values = _columns(history["training"], "step", score)
        axes.plot(steps, values, **{**style, "linestyle": "-"}, alpha=0.3, linewidth=1)
        steps, values = _columns(history["validation"], "step", score)
        axes.plot(steps, values, **style, linewidth=2, label=labels[name])


def draw_curves(
    histories: dict[str, History], labels: dict[str, str], target: float | None, title: str, path: Path
) -> None:
    """Draw loss, accuracy and the spread of the effective rates against the step.

    Args:
      histories: the :attr:`.loop.Run.history` of ``"metric"``, or of several by phi, and, if it was trained,
        of ``"baseline"``.
      labels: what to call them.
      target: the validation loss that counts as reached, drawn as a line; or None.
      title: the heading.
      path: the PNG to write.
    """
    figure = Figure(figsize=(13, 4), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=12)
    loss_axes, accuracy_axes, rate_axes = figure.subplots(1, 3)
    _draw_scores(loss_axes, histories, labels, "loss")
    losses = [row["loss"] for history in histories.values() for row in history["validation"]]
    if max(losses) > 10 * min(losses):
        loss_axes.set_yscale("log")
    if target is not None:
        loss_axes.axhline(target, color="black", linewidth=0.8, linestyle=":", label=f"target {target:g}")
    loss_axes.legend(frameon=False, fontsize=9)
    _finish(loss_axes, "Loss: validation (bold), training (faint)")
    loss_axes.set_ylabel("cross-entropy (nats)")

    _draw_scores(accuracy_axes, histories, labels, "accuracy")
    # The climb from chance takes few steps and many percent: leave most of it out.
    reached = [row["accuracy"] for history in histories.values() for row in history["validation"][1:]]
    low, high = float(np.quantile(reached, 0.1)), max(reached)
    margin = max(0.02, (high - low) / 2)
    accuracy_axes.set_ylim(max(0.0, low - margin), min(1.0, high + margin) + 0.005)
    _finish(accuracy_axes, "Accuracy: validation (bold), training (faint)")

    drawn = {name: history["metric"] for name, history in histories.items() if history["metric"]}
    for name, rows in drawn.items():
        steps, rates, low_rates, mean_rates, high_rates = _columns(
            rows, "step", "learning_rate", "rate_min", "rate_mean", "rate_max"
        )
        color = _style(name, histories)["color"]
        of = "" if len(drawn) == 1 else f", {name}"
        slowest, fastest = rates * low_rates.min(axis=1), rates * high_rates.max(axis=1)
        rate_axes.fill_between(
            steps, slowest, fastest, color=color, alpha=0.2, linewidth=0, label=f"all weights{of}"
        )
        rate_axes.plot(steps, rates[:, None] * mean_rates, color=color, linewidth=1, alpha=0.8)
        rate_axes.plot([], [], color=color, linewidth=1, label=f"mean of each layer{of}")
        rate_axes.set_yscale("log")
        rate_axes.legend(frameon=False, fontsize=9)
    _finish(rate_axes, "Effective learning rates, rate / E")
    for axes in (loss_axes, accuracy_axes, rate_axes):
        axes.set_xlabel("step")
    figure.savefig(path)


def draw_metric(history: History, title: str, explanation: str, path: Path) -> None:
    """Draw the smallest, the mean and the largest E of each layer against the step.

    Of a model with many parameter arrays only the matrices (kernels and embeddings) get a panel; the record
    of the run has all of them.

    Args:
      history: the :attr:`.loop.Run.history` of the metric optimiser.
      title: the heading.
      explanation: what E is, written below the panels.
      path: the PNG to write.
    """
    names = history["layers"]
    shown = _shown(names)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.2 * columns + 0.6, 2.3 * rows + 0.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    steps, low, mean, high = _columns(history["metric"], "step", "metric_min", "metric_mean", "metric_max")
    for panel, axes in enumerate(panels.flat):
        if panel >= len(shown):
            axes.set_visible(False)
            continue
        index = shown[panel]
        axes.fill_between(
            steps, low[:, index], high[:, index], color="#9db8d2", linewidth=0, label="smallest to largest"
        )
        axes.plot(steps, mean[:, index], color="#123f6d", linewidth=1.6, label="mean")
        axes.set_yscale("log")
        _finish(axes, names[index])
        if panel + columns >= len(shown):
            axes.xaxis.set_tick_params(labelbottom=True)
        if panel % columns == 0:
            axes.set_ylabel("E (divides the gradient)")
    figure.supxlabel(f"step\n\n{explanation}", fontsize=10)
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def draw_metrics(histories: dict[str, History], title: str, explanation: str, path: Path) -> None:
    """Draw E of several metrics side by side, in each panel a line for each layer.

    Each panel has an axis of its own: the scales of E differ, and only their spread can be compared.

    Args:
      histories: the :attr:`.loop.Run.history` by phi; one without a metric is left out.
      title: the heading.
      explanation: what E is, written below the panels.
      path: the PNG to write.
    """
    drawn = {name: history for name, history in histories.items() if history["metric"]}
    figure = Figure(figsize=(4.2 * len(drawn) + 0.6, 4.6), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=12)
    legend: tuple[Any, Any] = [], []
    for (name, history), axes in zip(
        drawn.items(), figure.subplots(1, len(drawn), squeeze=False).flat, strict=True
    ):
        rows, names = history["metric"], history["layers"]
        flat = [
            {
                f"E_{part}/{names[index]}": row[f"metric_{part}"][index]
                for index in _shown(names)
                for part in ("min", "mean", "max")
            }
            for row in rows
        ]
        _finish(axes, name)
        if not np.isfinite([row["metric_mean"] for row in rows]).any():
            continue  # it diverged at once: an empty panel
        plot.metric(flat, [row["step"] for row in rows], axes=axes)
        axes.get_legend().remove()  # the same in all panels
        legend = axes.get_legend_handles_labels()
    figure.legend(*legend, loc="outside right upper", frameon=False, fontsize=8)
    figure.supxlabel(explanation, fontsize=8)
    figure.savefig(path)

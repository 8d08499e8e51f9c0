"""Pictures of a finished run: learning curves, and each layer's metric over time."""

import math
import textwrap
from contextlib import ContextDecorator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from riemann_optax import plot

# The colours of the metric and of AdamW in all pictures of the project.
_METRIC, _BASELINE = "#d55e00", "#0072b2"
_STYLES: dict[str, Any] = {
    "metric": {"color": _METRIC, "linestyle": "-"},
    "baseline": {"color": _BASELINE, "linestyle": "--"},
}
_MOST_PANELS = 16
_FEW_ROWS = 10  # of validation
_LETTERS = 90  # of a line below the panels
_TITLE_LETTERS = 26  # of the title of one panel of three


def _style(name: str, histories: dict[str, Any]) -> dict[str, Any]:
    """Return colour and line of an optimiser; of several metrics each has a colour, and the baseline none."""
    if "metric" in histories:
        return dict(_STYLES[name])
    if name == "baseline":
        return {"color": "0.4", "linestyle": "--"}
    number = list(histories).index(name)
    turns, colour = divmod(number, len(mpl.rcParams["axes.prop_cycle"]))
    return {"color": f"C{colour}", "linestyle": ("-", "-.", ":")[min(turns, 2)]}


def _shown(names: list[str]) -> list[int]:
    """Return which parameter arrays have a place in a picture: of many the matrices alone."""
    matrices = [index for index, name in enumerate(names) if name.endswith(("kernel", "embedding"))]
    return matrices if len(names) > _MOST_PANELS and matrices else list(range(len(names)))


History = dict[str, Any]


def _columns(rows: list[dict[str, Any]], *names: str) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray([row[name] for row in rows], dtype=float) for name in names)


def _styled() -> ContextDecorator:
    """Return the context, which is a decorator too, in which pictures are drawn."""
    settings: Any = dict(plot.STYLE)  # its type has all names of settings, which differ between releases
    return mpl.rc_context(settings)


def _lines(text: str) -> str:
    """Break lines that are too long for a picture; what several metrics say stands there once."""
    return "\n".join(textwrap.fill(line, _LETTERS) for line in dict.fromkeys(text.splitlines()))


def _marker(values: np.ndarray) -> str | None:
    """Return a marker for a single point, which makes no line."""
    return "." if len(values) == 1 else None


def _title_of_a_layer(name: str) -> str:
    """Return a name in two lines where it is wider than its panel."""
    if len(name) <= _TITLE_LETTERS or "/" not in name:
        return name
    parts = name.split("/")
    cuts = ["/".join(parts[:cut]) + "/\n" + "/".join(parts[cut:]) for cut in range(1, len(parts))]
    return min(cuts, key=lambda lines: max(map(len, lines.split("\n"))))


def _finish(axes: Axes, title: str, fontsize: float = 10.5) -> None:
    axes.set_title(title, fontsize=fontsize)
    axes.grid(alpha=0.25, linewidth=0.6)


def _named(histories: dict[str, History], labels: dict[str, str]) -> dict[str, str]:
    """Return the labels; that of a run that diverged says so, as its line ends early or is not there."""
    ends = {name: history.get("diverged") for name, history in histories.items()}
    return {
        name: label if ends.get(name) is None else f"{label}, diverged by step {ends[name]}"
        for name, label in labels.items()
    }


def _draw_scores(axes: Axes, histories: dict[str, History], labels: dict[str, str], score: str) -> None:
    for name, history in histories.items():
        style = _style(name, histories)
        steps, values = _columns(history["training"], "step", score)
        axes.plot(
            steps, values, **{**style, "linestyle": "-"}, alpha=0.35, linewidth=1, marker=_marker(values)
        )
        steps, values = _columns(history["validation"], "step", score)
        axes.plot(steps, values, **style, linewidth=2, label=labels[name], marker=_marker(values))


@_styled()
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
    figure = Figure(figsize=(6.5, 8.5))
    figure.suptitle(title)
    loss_axes, accuracy_axes, rate_axes = figure.subplots(3, 1, sharex=True)
    labels = _named(histories, labels)
    _draw_scores(loss_axes, histories, labels, "loss")
    # In a record what is not finite is None.
    losses = np.concatenate([_columns(history["validation"], "loss")[0] for history in histories.values()])
    finite = losses[np.isfinite(losses)]
    if finite.size and finite.max() > 10 * finite.min():
        loss_axes.set_yscale("log")
    if target is not None:
        loss_axes.axhline(target, color="0.4", linewidth=1, linestyle=":", label=f"target {target:g}")
    _finish(loss_axes, "loss: validation (bold), training (faint)")
    loss_axes.set_ylabel("cross-entropy (nats)")

    _draw_scores(accuracy_axes, histories, labels, "accuracy")
    # The climb from chance takes few steps and many percent: leave most of it out, unless it is all there is.
    seen = [history["validation"][1:] for history in histories.values()]
    reached = [row["accuracy"] for rows in seen for row in rows]
    ends = [row["accuracy"] for history in histories.values() for row in history["training"][-1:]]
    few = max(map(len, seen)) < _FEW_ROWS
    low, high = min([0.0 if few else float(np.quantile(reached, 0.1)), *ends]), max(reached + ends)
    margin = max(0.02, (high - low) / 2)
    accuracy_axes.set_ylim(max(0.0, low - margin), min(1.0, high + margin) + 0.005)
    _finish(accuracy_axes, "accuracy: validation (bold), training (faint)")
    accuracy_axes.set_ylabel("share of examples")

    for name, history in histories.items():
        if not history["metric"]:
            continue
        steps, rates, low_rates, high_rates, means = _columns(
            history["metric"], "step", "learning_rate", "rate_min", "rate_max", "metric_mean"
        )
        color = _style(name, histories)["color"]
        slowest, fastest = rates * low_rates.min(axis=1), rates * high_rates.max(axis=1)
        rate_axes.fill_between(steps, slowest, fastest, color=color, alpha=0.2, linewidth=0)
        rate_axes.plot(
            steps, rates[:, None] / means, color=color, linewidth=1, alpha=0.8, marker=_marker(steps)
        )
        rate_axes.set_yscale("log")
    _finish(rate_axes, "effective learning rates: at the mean E of each layer (lines), all weights (band)")
    rate_axes.set(xlabel="step", ylabel="learning rate / E")
    for axes in (loss_axes, accuracy_axes):
        plot.name_lines(axes)
    figure.savefig(path)


@_styled()
def draw_energy(histories: dict[str, History], labels: dict[str, str], title: str, path: Path) -> None:
    """Draw the accuracy against the steps, and beside it against the energy spent until then.

    Args:
      histories: as of :func:`draw_curves`, or as a record has them.
      labels: what to call them.
      title: the heading.
      path: the PNG to write.
    """
    figure = Figure(figsize=(8.5, 3.4))
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    labels = _named(histories, labels)
    for axes, spent, words in zip(panels, ("step", "energy"), ("step", "energy, sum |dw|"), strict=True):
        for name, history in histories.items():
            # Before the first step there is no energy, and the accuracy is that of chance.
            amounts, values = _columns(history["validation"][1:], spent, "accuracy")
            style = _style(name, histories) | {"marker": _marker(amounts)}
            axes.plot(amounts, values, **style, linewidth=2, label=labels[name])
        axes.set_xlim(left=0)
        axes.set_xlabel(words)
        _finish(axes, f"validation accuracy against the {'steps' if spent == 'step' else spent}")
    panels[0].set_ylabel("share of examples")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(labels), 3)
    )
    figure.savefig(path)


@_styled()
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
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(6.5, 1.8 * rows + 1.2))
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    steps, low, mean, high = _columns(history["metric"], "step", "metric_min", "metric_mean", "metric_max")
    for panel, axes in enumerate(panels.flat):
        if panel >= len(shown):
            axes.set_visible(False)
            continue
        index = shown[panel]
        axes.fill_between(steps, low[:, index], high[:, index], color=_METRIC, alpha=0.2, linewidth=0)
        axes.plot(steps, mean[:, index], color=_METRIC, marker=_marker(steps))
        axes.set_yscale("log")
        _finish(axes, _title_of_a_layer(names[index]), fontsize=9)
        if panel + columns >= len(shown):
            axes.xaxis.set_tick_params(labelbottom=True)
        if panel % columns == 0:
            axes.set_ylabel("E")
    part = (
        "" if len(shown) == len(names) else " Kernels and embeddings; the record of the run has all arrays."
    )
    words = _lines(f"Line: the mean; band: smallest to largest.{part}\n{explanation}")
    figure.supxlabel(f"step\n\n{words}", fontsize=9)
    figure.savefig(path)


@_styled()
def draw_metrics(histories: dict[str, History], title: str, explanation: str, path: Path) -> None:
    """Draw E of several metrics one below the other, in each panel a line for each layer.

    Each panel has an axis of its own: the scales of E differ, and only their spread can be compared.

    Args:
      histories: the :attr:`.loop.Run.history` by phi; one without a metric is left out.
      title: the heading.
      explanation: what E is, written below the panels.
      path: the PNG to write.
    """
    drawn = {name: history for name, history in histories.items() if history["metric"]}
    figure = Figure(figsize=(6.5, 2.9 * len(drawn) + 0.9))
    figure.suptitle(title)
    panels = figure.subplots(len(drawn), 1, squeeze=False, sharex=True)[:, 0]
    named = []
    for (name, history), axes in zip(drawn.items(), panels, strict=True):
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
        axes.get_legend().remove()
        named.append(axes)
    for axes in named:
        plot.name_lines(axes, fontsize=8)
    figure.supxlabel(_lines(explanation), fontsize=9)
    figure.savefig(path)

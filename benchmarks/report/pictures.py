"""The pictures of the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.report.suite import Suite, profile
from benchmarks.shared.statistics import expected_best
from benchmarks.shared.style import ADAMW, METRIC, styled
from benchmarks.time_to_target.methods import (
    DEFAULT_BETAS,
    EIGENBASIS,
    FACTORED,
    METHODS,
    MOMENTUM,
    MUON,
    NADAMW,
    OURS,
    SOAP,
    TUNED_ADAMW,
)
from benchmarks.time_to_target.search import MISS
from benchmarks.time_to_target.summary import trials
from benchmarks.time_to_target.targets import NAMES
from riemann_optax.plot import name_lines

# Few lines have a colour, one that the colour-blind can tell apart; ours are solid and thick. The other peers
# are the grey background.
GREY = "#c8c8c8"
COLOURS = {
    MOMENTUM: GREY,
    NADAMW: GREY,
    "RMSprop with Nesterov": GREY,
    MUON: GREY,
    "Lion": GREY,
    DEFAULT_BETAS: "#56b4e9",
    TUNED_ADAMW: ADAMW,
    "schedule-free AdamW": "#e69f00",
    SOAP: "#009e73",
    OURS: METRIC,
    FACTORED: "#cc79a7",
    EIGENBASIS: "#000000",
}
BACKGROUND = "other peers"


def _style(name: str) -> dict[str, Any]:
    ours = METHODS[name].role == "ours"
    return {
        "color": COLOURS[name],
        "linewidth": 2.0 if ours else 1.2,
        "linestyle": "-" if ours or COLOURS[name] == GREY else "--",
        "label": name if COLOURS[name] != GREY else BACKGROUND,
    }


def _finish(figure: Any, title: str, path: Path, columns: int = 0) -> None:
    figure.suptitle(title)
    if columns:
        named = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(
            list(named.values()),
            list(named),
            loc="outside lower center",
            ncols=columns,
            fontsize=9,
            columnspacing=1,
        )
    figure.savefig(path)
    plt.close(figure)


@styled()
def draw_profiles(suite: Suite, path: Path) -> None:
    """Draw performance profiles up to 4 times the best, for both targets."""
    factors = np.linspace(1, 4, 121)
    figure, axes = plt.subplots(2, 1, figsize=(6.5, 6.6), sharex=True)
    for axis, target in zip(axes, NAMES, strict=True):
        names = [name for name in COLOURS if name in suite.everywhere(target)]
        for name, shares in profile(suite, target, names, factors).items():
            style = _style(name)
            if style["label"] == BACKGROUND:
                style["label"] = name
            axis.plot(factors, shares, **style)
        axis.set(title=f"the {target} target", xlim=(1, 4), ylim=(0, 1.02))
        axis.set_ylabel("share of runs there")
        name_lines(axis, fontsize=9)
        for text in axis.texts:
            if text.get_color() == GREY:
                text.set_color("0.5")
    axes[-1].set_xlabel("steps, as a multiple of the task's best")
    _finish(figure, "How many runs arrive, and how soon: higher is better", path)


def draw_by_trials(suite: Suite, path: Path) -> None:
    """Draw the steps to the far target that the best of k trials is expected to need."""
    title = "Steps needed after so many trials of tuning: lower is better"
    draw_tasks(suite, path, _by_trials, title, "trials of tuning", "steps to the far target, tuning seeds")


def _by_trials(axis: Any, suite: Suite, task: str, name: str) -> None:
    budget = suite.budget(task)
    scores = np.array([t.score("far", budget)[0] for t in trials(suite.records[task])[name]])
    counts = np.arange(1, min(len(scores), 34) + 1)
    axis.loglog(counts, [expected_best(scores, k) for k in counts], **_style(name))


def draw_sensitivity(suite: Suite, path: Path) -> None:
    """Draw how steps to the near target depend on the rate, at the first point of each method."""
    title = "What a wrong learning rate costs: flatter is better"
    labels = (
        "learning rate / best rate",
        "steps to the near target / fewest steps",
    )
    draw_tasks(suite, path, _sensitivity, title, *labels)


def _sensitivity(axis: Any, suite: Suite, task: str, name: str) -> None:
    budget, point = suite.budget(task), dict(METHODS[name].points[0])
    scores = {
        t.exponent: t.score("near", budget)[0] for t in trials(suite.records[task])[name] if t.point == point
    }
    exponents = np.array(sorted(scores))
    values = np.array([scores[k] for k in exponents])
    best = exponents[np.argmin(values)]
    values = np.where(values >= MISS * budget, np.nan, values / values.min())
    axis.plot(2.0 ** (exponents - best), values, marker=".", markersize=4, **_style(name))
    axis.set(xscale="log", yscale="log", xlim=(1 / 64, 64), ylim=(0.95, 6))


def draw_energy(suite: Suite, path: Path) -> None:
    """Draw the loss against the energy spent on changing weights, median over the fresh seeds."""
    title = "Loss by energy spent on changes: further left is cheaper"
    draw_tasks(
        suite,
        path,
        _energy,
        title,
        "energy: sum of |dw|, in units of weight",
        "training loss",
    )


def _energy(axis: Any, suite: Suite, task: str, name: str) -> None:
    curve = suite.rows["far"][task][name].curve
    # Before the first change the energy is 0, which has no place here; what diverges would hide all others.
    shown = (curve["energy"] > 0) & (curve["loss"] < 2 * curve["loss"][0])
    axis.plot(curve["energy"][shown], curve["loss"][shown], **_style(name))
    axis.set(xscale="log", yscale="log")


@styled()
def draw_tasks(
    suite: Suite,
    path: Path,
    draw: Callable[[Any, Suite, str, str], None],
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw one panel per task with one line per method."""
    columns = 3
    lines = -(-len(suite.tasks) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6.5, 2.1 * lines + 1.3), squeeze=False)
    names = [name for name in COLOURS if name in suite.everywhere("far")]
    for axis, task in zip(axes.flat, suite.tasks, strict=False):
        for name in names:
            draw(axis, suite, task, name)
        axis.set_title(task.replace("_", " "))
    for axis in axes.flat[len(suite.tasks) :]:
        axis.remove()
    last = len(suite.tasks) - 1
    axes.flat[last - last % columns + min(1, last % columns)].set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize=10)
    _finish(figure, title, path, columns=3)


PICTURES: dict[str, Callable[[Suite, Path], None]] = {
    "report_profiles.png": draw_profiles,
    "report_trials.png": draw_by_trials,
    "report_rates.png": draw_sensitivity,
    "report_energy.png": draw_energy,
}

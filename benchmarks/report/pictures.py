"""The pictures of the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.report.suite import Suite, profile
from benchmarks.shared.statistics import expected_best
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

# Colours that can be told apart, also by those who see fewer of them; ours are the solid lines.
COLOURS = {
    OURS: "#d55e00",
    FACTORED: "#cc79a7",
    EIGENBASIS: "#882255",
    MOMENTUM: "#999999",
    DEFAULT_BETAS: "#56b4e9",
    TUNED_ADAMW: "#0072b2",
    NADAMW: "#009e73",
    "RMSprop with Nesterov": "#e69f00",
    MUON: "#000000",
    SOAP: "#117733",
    "schedule-free AdamW": "#aa9900",
    "Lion": "#6699cc",
}


def _style(name: str) -> dict[str, Any]:
    ours = METHODS[name].role == "ours"
    return {
        "color": COLOURS[name],
        "linewidth": 2.2 if ours else 1.3,
        "linestyle": "-" if ours else "--",
        "label": name,
    }


def _finish(figure: Any, axes: np.ndarray, path: Path) -> None:
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_profiles(suite: Suite, path: Path) -> None:
    """Draw performance profiles up to 4 times the best, for both targets."""
    factors = np.linspace(1, 4, 121)
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    for axis, target in zip(axes, NAMES, strict=True):
        names = [name for name in COLOURS if name in suite.everywhere(target)]
        for name, shares in profile(suite, target, names, factors).items():
            axis.plot(factors, shares, **_style(name))
        axis.set(title=f"the {target} target", xlabel="steps, over those of the task's best", ylim=(0, 1.02))
    axes[0].set_ylabel("share of runs that have reached it")
    _finish(figure, axes, path)


def draw_by_trials(suite: Suite, path: Path) -> None:
    """Draw the steps to the far target that the best of k trials is expected to need."""
    draw_tasks(suite, path, _by_trials, "trials", "steps to the far target, tuning seeds")


def _by_trials(axis: Any, suite: Suite, task: str, name: str) -> None:
    budget = suite.budget(task)
    scores = np.array([t.score("far", budget)[0] for t in trials(suite.records[task])[name]])
    counts = np.arange(1, min(len(scores), 34) + 1)
    axis.plot(counts, [expected_best(scores, k) for k in counts], **_style(name))
    axis.set(yscale="log", xscale="log")


def draw_sensitivity(suite: Suite, path: Path) -> None:
    """Draw how steps to the near target depend on the rate, at the first point of each method."""
    draw_tasks(suite, path, _sensitivity, "rate, over the best", "steps to the near target, over the best")


def _sensitivity(axis: Any, suite: Suite, task: str, name: str) -> None:
    budget, point = suite.budget(task), dict(METHODS[name].points[0])
    scores = {
        t.exponent: t.score("near", budget)[0] for t in trials(suite.records[task])[name] if t.point == point
    }
    exponents = np.array(sorted(scores))
    values = np.array([scores[k] for k in exponents])
    best = exponents[np.argmin(values)]
    values = np.where(values >= MISS * budget, np.nan, values / values.min())
    axis.plot(2.0 ** (exponents - best), values, marker=".", **_style(name))
    axis.set(xscale="log", yscale="log", xlim=(1 / 64, 64), ylim=(0.95, 6))


def draw_energy(suite: Suite, path: Path) -> None:
    """Draw the loss against the energy spent on changing weights, median over the fresh seeds."""
    draw_tasks(suite, path, _energy, "energy, sum |dw|", "followed loss")


def _energy(axis: Any, suite: Suite, task: str, name: str) -> None:
    curve = suite.rows["far"][task][name].curve
    # Before the first change the energy is 0, which has no place here; what diverges would hide all others.
    shown = (curve["energy"] > 0) & (curve["loss"] < 2 * curve["loss"][0])
    axis.plot(curve["energy"][shown], curve["loss"][shown], **_style(name))
    axis.set(xscale="log", yscale="log")


def draw_tasks(
    suite: Suite, path: Path, draw: Callable[[Any, Suite, str, str], None], xlabel: str, ylabel: str
) -> None:
    """Draw one panel per task with one line per method."""
    columns = 3
    lines = -(-len(suite.tasks) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(11, 3.1 * lines + 1), squeeze=False, layout="constrained"
    )
    names = [name for name in COLOURS if name in suite.everywhere("far")]
    for axis, task in zip(axes.flat, suite.tasks, strict=False):
        for name in names:
            draw(axis, suite, task, name)
        axis.set_title(task.replace("_", " "))
    for axis in axes.flat[len(suite.tasks) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize="medium")
    _finish(figure, axes, path)


PICTURES: dict[str, Callable[[Suite, Path], None]] = {
    "report_profiles.png": draw_profiles,
    "report_trials.png": draw_by_trials,
    "report_rates.png": draw_sensitivity,
    "report_energy.png": draw_energy,
}

"""Pictures of a metric, from what was recorded of it, and the style of this project's pictures.

Needs matplotlib: ``pip install 'riemann-optax[examples]'``. ``riemann_optax`` imports this module only when
``riemann_optax.plot`` is asked for.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

try:
    from cycler import cycler
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "riemann_optax.plot needs matplotlib, which is not installed: pip install 'riemann-optax[examples]'."
    ) from error

__all__ = ["STYLE", "metric", "name_lines"]

# Okabe and Ito's colours, which people with any colour vision can tell apart, without the yellow: on white it
# is too light for a line.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#e69f00", "#56b4e9")

# A page shows a picture about 600 pixels wide. A figure 6.5 inches wide then has 92 pixels an inch, and its
# smallest text, of 9 points, is 11.5 pixels high.
STYLE: Mapping[str, Any] = {
    "axes.formatter.min_exponent": 4,  # 0.6 and not 6 x 10^-1
    "axes.prop_cycle": cycler(color=_COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "contour.linewidth": 0.7,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.figsize": (6.5, 3.6),
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
"""Settings of matplotlib for pictures that can be read 600 pixels wide, in colours for all colour vision:
``pyplot.rcParams.update(riemann_optax.plot.STYLE)``. The notebooks and the reports use it.
"""

_NAMED = 12  # lines with a legend
# One after the other, each with all colours; and what they are called.
_LINES = {"-": "", "--": " (dashed)", ":": " (dotted)", "-.": " (dash-dotted)"}
_PARTS = ("min", "mean", "max")
# After any prefix; but the E of MSE_mean belongs to a name of its own.
_NAMES = re.compile(r"(.*?)(?<![A-Z])E_(min|mean|max)/(.*)", re.DOTALL)


def metric(
    history: Sequence[Mapping[str, float]],
    steps: Sequence[float] | None = None,
    *,
    axes: Axes | None = None,
) -> Axes:
    """Draw ``E`` over the steps: for each leaf or group its mean as a line, from smallest to largest a band.

    The axis of ``E`` is logarithmic. Where a row lacks a name, or ``E`` is not finite, the line has a gap.
    Up to twelve lines have a legend; of more the title says to draw groups (``groups`` of
    :func:`metric_scalars`).

    Args:
      history: what :func:`riemann_optax.metric_scalars` returned, one dictionary for each step at which it
        was called; other scalars in them are left out.
      steps: the numbers of those steps, as many as there are dictionaries; None counts from 0.
      axes: where to draw, axes of matplotlib; None makes a figure.

    Returns:
      The axes; ``axes.figure.savefig("metric.png")`` writes a file.

    Raises:
      ImportError: at ``riemann_optax.plot`` itself, without matplotlib.
      TypeError: where ``history`` is one dictionary, or ``axes`` are no axes of matplotlib.
      ValueError: where ``history`` has no ``E_mean``, or ``steps`` has another length.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> tx = ro.riemannian_sgd(0.1, phi=ro.phi.maintenance_energy(), alpha=1.0, record=True)
      >>> params = {"w": jnp.array([0.0, 3.0])}
      >>> state, history = tx.init(params), []
      >>> for step in range(3):
      ...     _, state = tx.update(params, state, params)
      ...     history.append(ro.metric_scalars(state, params))
      >>> axes = ro.plot.metric(history)
      >>> [line.get_label() for line in axes.lines], axes.lines[0].get_ydata()
      (['w'], array([2.5, 2.5, 2.5]))
    """
    if isinstance(history, Mapping):
        raise TypeError(
            "history must be a list of dictionaries, one for each step, got one dictionary: give [scalars]."
        )
    history = list(history)
    for row in history:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"history must be a list of dictionaries, got a {type(row).__name__} in it: give what "
                "metric_scalars(state, params) returns."
            )
    numbers = range(len(history)) if steps is None else np.ravel(steps)
    if len(numbers) != len(history):
        raise ValueError(
            f"steps must have as many numbers as history has dictionaries, got {len(numbers)} and "
            f"{len(history)}."
        )
    curves = _curves(history)
    if not curves:
        raise ValueError(
            "history must have E_mean of a leaf or a group: give the dictionaries of metric_scalars, of an "
            "optimiser with record_metric() between the stages (record=True of the aliases)."
        )
    if axes is not None:
        _check_axes("metric", axes)
    if axes is None:
        axes = pyplot.subplots(layout="constrained")[1]
    alpha = min(0.12, 0.4 / len(curves))  # many bands on each other would hide the lines
    cycle = pyplot.rcParams["axes.prop_cycle"]
    styles = [None] if "linestyle" in cycle.keys else list(_LINES)  # None: as the user's own cycle says
    for index, (name, parts) in enumerate(curves.items()):
        label, marker = name or "the only leaf", "." if len(history) == 1 else None
        style = styles[index // len(cycle) % len(styles)]
        line = axes.plot(numbers, parts["mean"], label=label, marker=marker, linestyle=style)[0]
        axes.fill_between(
            numbers, parts["min"], parts["max"], color=line.get_color(), alpha=alpha, linewidth=0
        )
    axes.set(xlabel="step", ylabel="E", yscale="log")
    if len(curves) <= _NAMED:
        axes.legend()
    else:
        axes.set_title(
            f"{len(curves)} arrays; for names join them: metric_scalars(groups=...)", fontsize="small"
        )
    return axes


def _check_axes(name: str, axes: Any) -> None:
    if not isinstance(axes, Axes):
        raise TypeError(
            f"{name}: axes must be axes of matplotlib, got {type(axes).__name__}: give one, such as the "
            "second value of pyplot.subplots()."
        )


def name_lines(axes: Axes, *, fontsize: float = 10.0) -> None:
    """Write the label of each line at its right end, in its colour; call it last, when the limits are set.

    Names that would overlap are moved apart. Of lines in one colour those that are not solid say what they
    are. The reader finds a name where the line is, and needs no legend.

    Args:
      axes: axes of matplotlib whose lines have labels; a line without one, or without a finite value inside
        the limits, gets no name.
      fontsize: size of the names in points; names one above the other are 1.3 times this apart.

    Raises:
      ImportError: at ``riemann_optax.plot`` itself, without matplotlib.
      TypeError: where ``axes`` are no axes of matplotlib.

    Examples:
      >>> import riemann_optax as ro
      >>> from matplotlib import pyplot
      >>> figure, axes = pyplot.subplots()
      >>> _ = axes.plot([0, 1], [2.0, 1.0], label="AdamW"), axes.plot([0, 1], [2.0, 1.0], label="metric")
      >>> ro.plot.name_lines(axes)
      >>> [text.get_text() for text in axes.texts]
      ['AdamW', 'metric']
    """
    _check_axes("name_lines", axes)
    figure = cast("Figure", axes.get_figure(root=True))
    figure.draw_without_rendering()  # so that the height of the axes is known
    box, points = axes.get_position(), fontsize / 72
    apart = 1.3 * points / (box.height * figure.get_figheight())
    letter = 0.6 * points / (box.width * figure.get_figwidth())
    ends = []
    for line in axes.lines:
        to_axes = line.get_transform() - axes.transAxes
        numbers = np.column_stack(line.get_data(orig=False))  # also of dates and of words
        places = to_axes.transform(numbers.astype(float))
        places = places[(np.isfinite(places) & (places > -0.001) & (places < 1.001)).all(axis=1)]
        if len(places) and not str(line.get_label()).startswith("_"):
            ends.append((*places[-1], line))
    used = Counter(to_rgba(line.get_color()) for *_, line in ends)
    ends.sort(key=lambda end: end[0])
    columns: list[list[Any]] = []  # of names that may be in each other's way
    free = -np.inf  # right of all names so far
    for end in ends:
        if not columns or end[0] > free:
            columns.append([])
        columns[-1].append(end)
        free = max(free, end[0] + letter * (len(str(end[2].get_label())) + 1))
    for column in columns:
        column.sort(key=lambda end: end[1])
        for height, (x, _, line) in zip(_spread([end[1] for end in column], apart), column, strict=True):
            label, colour = str(line.get_label()), line.get_color()
            if used[to_rgba(colour)] > 1:
                label += _LINES.get(str(line.get_linestyle()), "")
            axes.text(
                x + 0.02,
                height,
                label,
                color=colour,
                fontsize=fontsize,
                va="center",
                transform=axes.transAxes,
            )


def _spread(heights: list[float], apart: float) -> list[float]:
    """Move sorted heights ``apart``, inside 0 to 1; those that collide keep their mean."""
    groups: list[list[float]] = []  # each stands without a gap, around the mean of its heights
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], apart) < _bottom(groups[-2], apart) + apart * len(
            groups[-2]
        ):
            last = groups.pop()
            groups[-1] += last
    moved = [_bottom(group, apart) + apart * index for group in groups for index in range(len(group))]
    moved = [max(height, apart * (below + 0.5)) for below, height in enumerate(moved)]
    return [min(height, 1 - apart * (above + 0.5)) for above, height in enumerate(reversed(moved))][::-1]


def _bottom(group: list[float], apart: float) -> float:
    return float(np.mean(group)) - apart * (len(group) - 1) / 2


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return smallest, mean and largest ``E`` over the rows by the name of what they are of."""
    curves: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(history):
        for key, value in row.items():
            found = _NAMES.fullmatch(key) if isinstance(key, str) else None
            if found and _is_finite(key, value):
                name, part = found[1] + found[3], found[2]
                parts = curves.setdefault(name, {p: np.full(len(history), np.nan) for p in _PARTS})
                parts[part][index] = value
    return {name: parts for name, parts in curves.items() if np.isfinite(parts["mean"]).any()}


def _is_finite(key: str, value: Any) -> bool:
    """Return whether a value can be drawn; None is what a record in JSON has in the place of NaN."""
    try:
        return value is not None and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):  # of complex numbers, of arrays of several
        raise TypeError(f"history must have numbers, got {value!r} as {key!r}.") from None

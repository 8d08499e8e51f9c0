"""Pictures of a metric, from what was recorded of it.

Needs matplotlib: ``pip install 'riemann-optax[examples]'``. ``riemann_optax`` imports this module only when
``riemann_optax.plot`` is asked for.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
except ImportError as error:
    raise ImportError(
        "riemann_optax.plot needs matplotlib, which is not installed: pip install 'riemann-optax[examples]'."
    ) from error

_PARTS = ("min", "mean", "max")
_NAMES = re.compile(r"(.*?)E_(min|mean|max)/(.*)", re.DOTALL)


def metric(
    history: Sequence[Mapping[str, float]],
    steps: Sequence[float] | None = None,
    *,
    axes: Axes | None = None,
) -> Axes:
    """Draw ``E`` over the steps: for each leaf or group its mean as a line, from smallest to largest a band.

    The axis of ``E`` is logarithmic. Where a row lacks a name, or ``E`` is not finite, the line has a gap.

    Args:
      history: what :func:`riemann_optax.metric_scalars` returned, one dictionary for each step at which it
        was called; other scalars in them are left out.
      steps: the numbers of those steps, as many as there are dictionaries; None counts from 0.
      axes: where to draw, axes of matplotlib; None makes a figure.

    Returns:
      The axes; ``axes.figure.savefig("metric.png")`` writes a file.

    Raises:
      ImportError: at ``riemann_optax.plot`` itself, without matplotlib.
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
    numbers = range(len(history)) if steps is None else steps
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
    if axes is None:
        axes = pyplot.subplots(layout="constrained")[1]
    for name, parts in curves.items():
        line = axes.plot(numbers, parts["mean"], label=name or "the only leaf")[0]
        axes.fill_between(
            numbers, parts["min"], parts["max"], color=line.get_color(), alpha=0.12, linewidth=0
        )
    axes.set(xlabel="step", ylabel="E", yscale="log")
    axes.legend()
    return axes


def _curves(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return smallest, mean and largest ``E`` over the rows by the name of what they are of."""
    curves: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(history):
        for key, value in row.items():
            found = _NAMES.fullmatch(key)
            if found and np.isfinite(value):
                name, part = found[1] + found[3], found[2]
                parts = curves.setdefault(name, {p: np.full(len(history), np.nan) for p in _PARTS})
                parts[part][index] = value
    return {name: parts for name, parts in curves.items() if np.isfinite(parts["mean"]).any()}

"""The paper's two statements that a search cannot show: the flow itself, and the spectrum at the minimum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich import box
from rich.table import Table

import riemann_optax as ro
from benchmarks.figure1.paths import TARGET
from benchmarks.figure1.rows import Row
from benchmarks.figure1.surfaces import Surface
from riemann_optax import flow

# Whose metric the spectrum table shows: where it has arrived, at its best rate.
SHOWN = ("activity", "secant curvature", "Hutchinson curvature", "maintenance energy")

LONG = 1e7  # more time than any flow needs to the target, where it stops

FLOW_LABELS = {"Eq. 1": "flow, Eq. 1", "Eq. 2": "flow, Eq. 2"}
FLOW_STYLES = {
    "Eq. 1": {"color": "0.45", "linestyle": "-", "linewidth": 4.5, "alpha": 0.45},
    "Eq. 2": {"color": "0.1", "linestyle": (0, (1, 1.2)), "linewidth": 4.5, "alpha": 0.45},
}

NOTE = """\
At the minimum, for the metric each method has on arrival: condition number of the Hessian without and with
the metric, the largest stable rate, the method's own best rate as a share of it, and the slowest mode's
factor per step at that rate, while the metric stays. Best rates are those of whole paths: near the limit they
owe their few steps to the path, not to the minimum."""


def curvature_field(surface: Surface, alpha: float) -> ro.fields.Coupled:
    """Return the field ``E = 1 + alpha * abs(H_ii(w))``: the curvature phis as functions of the weights."""

    def metric(weights: jax.Array) -> jax.Array:
        return 1 + alpha * jnp.abs(jnp.diagonal(jax.hessian(surface)(weights)))

    return ro.fields.Coupled(metric)


@jax.jit
def flow_lines(surface: Surface, alpha: float) -> dict[str, jax.Array]:
    """Solve Eq. 1, and Eq. 2 under the curvature field, down to the target; lines ``f[points, 2]``."""
    stop = TARGET * surface(surface.start)
    lines = {}
    for name, field in (("Eq. 1", None), ("Eq. 2", curvature_field(surface, alpha))):
        solution = flow.gradient_flow(surface, surface.start, field, LONG, stop_loss=stop)
        times = solution.ts[-1] * jnp.linspace(0, 1, 300) ** 3  # closer at the start: the steep mode is short
        lines[name] = jax.vmap(solution.evaluate)(times)
    return lines


class Outlook(NamedTuple):
    """What a method's metric makes of the minimum.

    Attributes:
      method: name.
      role: of its metric; None without one.
      spectrum: at the minimum.
      rate: the method's best learning rate.
    """

    method: str
    role: str | None
    spectrum: ro.Spectrum
    rate: float


def metric_on_arrival(
    transformation: optax.GradientTransformation, surface: Surface, steps: int
) -> jax.Array:
    """Run, and return the metric ``f[2]`` of the update that would follow."""
    transformation = optax.with_extra_args_support(transformation)

    def step(_: int, carry):
        weights, state = carry
        updates, state = transformation.update(jax.grad(surface)(weights), state, weights, obj_fn=surface)
        return optax.apply_updates(weights, updates), state

    start = surface.start
    weights, state = jax.lax.fori_loop(0, steps, step, (start, transformation.init(start)))
    return ro.metric_at(transformation, jax.grad(surface)(weights), state, weights, obj_fn=surface)


def outlooks(surfaces: dict[str, Surface], rows: list[Row]) -> dict[str, list[Outlook]]:
    """Return the rows of each surface's table: plain SGD and the metrics named in ``SHOWN``."""
    found: dict[str, list[Outlook]] = {name: [] for name in surfaces}
    for method in {row.method: None for row in rows}:
        plain = method.name == "SGD"
        if not plain and not (method.name in SHOWN and method.role == "metric"):
            continue

        @jax.jit  # once for all surfaces
        def metric_of(rate, second, surface, steps, method=method):
            return metric_on_arrival(method.build(rate, second, jax.random.key(0)), surface, steps)

        for row in rows:
            if row.method != method or row.best is None:
                continue
            surface, best = surfaces[row.surface], row.best
            metric = None
            if not plain:
                metric = metric_of(best.rate, best.second, surface, int(best.statistics.steps))
            spectrum = ro.preconditioned_spectrum(surface, surface.minimum, metric)
            found[row.surface].append(Outlook(method.name, method.role, spectrum, best.rate))
    return found


def spectrum_table(title: str, outlook: list[Outlook]) -> Table:
    """Lay out the outlooks of one surface."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("at the minimum", no_wrap=True)
    for header in ("condition", "with metric", "largest stable rate", "rate / largest", "contraction"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, role, spectrum, rate in outlook:
        table.add_row(
            f"{name} ({role})" if role else name,
            f"{spectrum.euclidean_condition_number:.3g}",
            f"{spectrum.condition_number:.3g}",
            f"{spectrum.largest_stable_rate:.3g}",
            f"{rate / spectrum.largest_stable_rate:.2f}",
            f"{spectrum.contraction(rate):.3f}",
        )
    return table

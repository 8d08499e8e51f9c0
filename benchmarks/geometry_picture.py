"""Draw Euler, geodesic and mirror steps against the gradient flow: ``python -m benchmarks.geometry_picture``.

One convex quadratic loss in the plane under the multiplicative geometry ``E = 1/abs(w)``. At a small rate all
three follow the flow, which never leaves the quadrant it starts in. At a large one only the mirror step,
exponentiated gradient, stays in it too: the geodesic crosses 0, and is then drawn back to it from the wrong
side, where the metric grows without bound; Euler's step leaves the picture.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import riemann_optax as ro
from benchmarks.shared.command import RESULTS, parse_with_folder
from benchmarks.shared.style import LANDMARK, METRIC, styled
from riemann_optax import flow

HESSIAN = np.array([[2.5, 0.5], [0.5, 1.1]])
MINIMUM = np.array([0.7, 1.4])
START = np.array([2.6, 0.7])
RATES = (0.12, 0.6)
MESSAGES = {0.12: "all steps follow the gradient flow", 0.6: "Euler and the geodesic leave it"}
STEPS = 12
FAR = 4.0  # a path is not followed beyond this
FIELD = ro.fields.Multiplicative()
# Told apart without colour by line and marker.
STYLES = {
    "euler": ("Euler", {"color": "#0072b2", "linestyle": ":", "marker": "^", "markersize": 6}),
    "geodesic": ("geodesic", {"color": "#009e73", "linestyle": "--", "marker": "s", "markersize": 6}),
    "mirror": ("mirror", {"color": METRIC, "linestyle": "-", "marker": "o", "markersize": 5}),
}


def loss(weights: jax.Array) -> jax.Array:
    """Return the loss ``f[]`` of weights ``f[2]``."""
    error = weights - MINIMUM
    return error @ HESSIAN @ error / 2


def steps(kind: str, rate: float) -> np.ndarray:
    """Return the weights ``f[steps + 1, 2]`` that an optimiser with this retraction passes through."""
    tx = optax.chain(
        ro.attach_field(FIELD),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(rate),
        ro.retract(FIELD, kind),
    )
    weights = jnp.asarray(START)
    state, path = tx.init(weights), [START]
    while len(path) <= STEPS and np.abs(path[-1]).max() < FAR:
        updates, state = tx.update(jax.grad(loss)(weights), state, weights)
        weights = optax.apply_updates(weights, updates)
        path.append(np.asarray(weights))
    return np.stack(path)


def draw_panel(axes: Axes, curve: np.ndarray, paths: dict[str, np.ndarray], rate: float) -> None:
    """Draw the flow and the steps at one rate over the level lines of the loss."""
    first, second = np.meshgrid(np.linspace(-1.0, 3.1, 161), np.linspace(0.3, 2.0, 161))
    heights = np.asarray(jax.vmap(jax.vmap(loss))(jnp.stack([first, second], axis=-1)))
    axes.contour(first, second, heights, levels=np.geomspace(0.01, 8.0, 14), colors="0.82", linewidths=0.7)
    axes.axvline(0.0, color="0.55", linewidth=0.8)
    axes.plot(curve[:, 0], curve[:, 1], color="0.35", linewidth=5, alpha=0.45)
    for kind, (_, style) in STYLES.items():
        axes.plot(paths[kind][:, 0], paths[kind][:, 1], linewidth=1.3, **style)
    for name, point, marker, shift in (("start", START, "D", (-6, 10)), ("minimum", MINIMUM, "*", (12, 4))):
        axes.plot(*point, marker=marker, markersize=10, **LANDMARK)
        axes.annotate(name, point, xytext=shift, textcoords="offset points")
    axes.set_aspect("equal")
    axes.set_xlim(first.min(), first.max())
    axes.set_ylim(second.min(), second.max())
    axes.set_title(f"{STEPS} steps at rate {rate:g}: {MESSAGES[rate]}")
    axes.set_ylabel("weight 2")


@styled()
def draw(path: Path) -> dict[tuple[str, float], np.ndarray]:
    """Write the picture; return the paths it shows, by kind and rate."""
    solution = flow.gradient_flow(loss, jnp.asarray(START), FIELD, 20.0)
    curve = np.asarray(jax.vmap(solution.evaluate)(jnp.geomspace(1e-3, 20.0, 400)))
    paths = {(kind, rate): steps(kind, rate) for rate in RATES for kind in STYLES}
    figure = Figure(figsize=(6.5, 6.4))
    for axes, rate in zip(figure.subplots(len(RATES), 1, sharex=True), RATES, strict=True):
        draw_panel(axes, curve, {kind: paths[kind, rate] for kind in STYLES}, rate)
    axes.set_xlabel("weight 1")
    # Each line is named where it is by itself: the steps in the lower panel, the flow where it is bent.
    for kind, place, align in (
        ("euler", (-0.95, 0.69), "left"),
        ("geodesic", (-0.06, 1.45), "right"),
        ("mirror", (0.3, 1.0), "right"),
    ):
        label, style = STYLES[kind]
        axes.text(*place, label, color=style["color"], ha=align, va="bottom")
    for panel in figure.axes:
        panel.text(1.05, 0.95, "gradient flow (Eq. 2)", color="0.3", va="bottom")
    figure.suptitle("Under E = 1/|w| only the mirror step keeps every sign")
    figure.savefig(path)
    return paths


def main(arguments: list[str]) -> int:
    """Draw the picture and say where each path went."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry_picture", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for geometry.png")
    options = parse_with_folder(parser, arguments)
    with jax.enable_x64(True):
        for (kind, rate), path in draw(options.out / "geometry.png").items():
            signs = int(np.sum(np.diff(np.sign(path), axis=0) != 0))
            print(
                f"rate {rate:g}, {STYLES[kind][0]}: {signs} changes of sign, after {len(path) - 1} steps "
                f"at {np.array2string(path[-1], precision=4)} with loss {float(loss(path[-1])):.2e}"
            )
    print(f"Written: {options.out / 'geometry.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

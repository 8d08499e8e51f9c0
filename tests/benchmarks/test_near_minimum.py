"""The flow lines and the spectrum table of the paper's figure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from benchmarks.figure1.near_minimum import Outlook, flow_lines, metric_on_arrival, spectrum_table
from benchmarks.figure1.paths import TARGET
from benchmarks.figure1.surfaces import paper_surfaces

SURFACES = paper_surfaces(50.0, 17.0)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", SURFACES)
def test_flow_lines_run_downhill_from_the_start_to_the_target(name):
    surface = SURFACES[name]
    for line in flow_lines(surface, 10.0).values():
        losses = np.asarray(jax.vmap(surface)(line))
        np.testing.assert_allclose(line[0], surface.start, rtol=1e-12)
        np.testing.assert_allclose(losses[-1] / losses[0], TARGET, rtol=1e-3)
        assert (np.diff(losses) < 0).all()


def test_flow_lines_of_the_quadratic_are_power_curves():
    """Each coordinate falls exponentially: the steep one as the shallow one to a power."""
    lines = flow_lines(SURFACES["axis-aligned"], 10.0)
    for line, power in ((lines["Eq. 1"], 50.0), (lines["Eq. 2"], (50 / 501) / (1 / 11))):
        shallow, steep = np.asarray(line).T - np.array([[3.0], [-2.0]])
        np.testing.assert_allclose(steep, (shallow / shallow[0]) ** power, atol=1e-6)


def test_metric_on_arrival_and_its_row():
    surface = SURFACES["axis-aligned"]
    tx = optax.chain(
        ro.compute_metric(ro.phi.hutchinson_curvature(decay=0.5), alpha=10.0),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(8.0),
    )
    metric = metric_on_arrival(tx, surface, 5)
    np.testing.assert_allclose(metric, [11.0, 501.0], rtol=1e-9)
    spectrum = ro.preconditioned_spectrum(surface, jnp.asarray(surface.minimum), metric)
    table = spectrum_table("title", [Outlook("curvature", "metric", spectrum, 8.0)])
    cells = [next(iter(column.cells)) for column in table.columns]
    # Eigenvalues 1/11 and 50/501.
    largest = 2 * 501 / 50
    assert cells == [
        "curvature (metric)",
        "50",
        "1.1",
        f"{largest:.3g}",
        f"{8 / largest:.2f}",
        f"{1 - 8 / 11:.3f}",
    ]

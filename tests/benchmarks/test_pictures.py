"""The committed pictures: drawn by the report from records, in one style, at one size."""

import json
import struct

import jax
import numpy as np
import pytest

from benchmarks.figure1.picture import LABELS
from benchmarks.figure1.recorded import recorded_paths
from benchmarks.figure1.surfaces import paper_surfaces
from benchmarks.report import pictures, redrawn
from benchmarks.shared.command import RESULTS
from riemann_optax.plot import STYLE

COMMITTED = sorted(path.name for path in RESULTS.glob("*.png"))


def test_the_report_draws_every_picture(tmp_path):
    """One that is not committed is one that has no records yet."""
    drawn = {**pictures.PICTURES, **redrawn.PICTURES}
    assert set(COMMITTED) <= set(drawn)
    for name in set(drawn) - set(COMMITTED):
        drawn[name](RESULTS, tmp_path / name)
        assert not (tmp_path / name).exists(), "python -m benchmarks.report"


@pytest.mark.parametrize("name", COMMITTED)
def test_a_picture_is_as_wide_as_the_style_says(name):
    """Its text is then readable where a page shows it 600 pixels wide."""
    (width,) = struct.unpack(">I", (RESULTS / name).read_bytes()[16:20])
    assert width == STYLE["figure.figsize"][0] * STYLE["savefig.dpi"]


@pytest.mark.parametrize("name", ["axis-aligned", "turned", "non-quadratic"])
def test_the_paths_run_again_take_the_recorded_steps(name):
    record, surface = json.loads((RESULTS / "figure1.json").read_text()), paper_surfaces()[name]
    recorded = {(row["method"], row["role"]): row for row in record["rows"] if row["surface"] == name}
    paths = recorded_paths(record, name, surface, LABELS)
    assert set(paths) == set(LABELS)
    for key, path in paths.items():
        best = recorded[key]["best"]
        assert len(path) - 1 == best["steps"]
        with jax.enable_x64(True):
            losses = np.array([float(surface(point)) for point in path[[0, -2, -1]]])
        assert losses[2] <= 1e-8 * losses[0] < losses[1]
        length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
        assert np.linalg.norm(path[-1] - path[0]) / length == pytest.approx(best["straightness"], rel=1e-6)


def test_the_quick_pictures_come_from_the_records(tmp_path):
    for name in ("step_cost.png", "language_model.png", "drop_in.png"):
        redrawn.PICTURES[name](RESULTS, tmp_path / name)
        assert (tmp_path / name).read_bytes()[16:24] == (RESULTS / name).read_bytes()[16:24]

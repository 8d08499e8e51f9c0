"""The pictures of the other benchmarks, drawn again from their records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import geometry_picture
from benchmarks.drop_in import picture as drop_in_picture
from benchmarks.drop_in.runs import ADAMW, OURS
from benchmarks.drop_in.shapes import SHAPES
from benchmarks.eigenbasis import report as eigenbasis
from benchmarks.figure1 import picture as figure1
from benchmarks.figure1.recorded import recorded_paths
from benchmarks.figure1.surfaces import paper_surfaces
from benchmarks.report import readme_picture, robustness
from benchmarks.report.drop_in import recorded
from benchmarks.robustness import picture as robustness_picture
from benchmarks.shared.records import Records
from benchmarks.step_cost import report as step_cost


def _read(results: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / name).read_text())
    return found


def draw_figure1(results: Path, path: Path) -> None:
    """Draw the paper's figure; the recorded best paths run again."""
    record, surfaces = _read(results, "figure1.json"), paper_surfaces()
    with jax.enable_x64(True):
        paths = {n: recorded_paths(record, n, surface, figure1.LABELS) for n, surface in surfaces.items()}
        figure1.draw(path, surfaces, paths)


def draw_geometry(results: Path, path: Path) -> None:
    """Draw the steps of the geometry picture, which has no record: its paths are run in a second."""
    with jax.enable_x64(True):
        geometry_picture.draw(path)


def draw_drop_in(results: Path, path: Path) -> None:
    """Draw loss over rate of every shape that is recorded in full."""
    records = Records(results / "drop_in.jsonl")
    found = {label: recorded(records, shape, (ADAMW, OURS)) for label, shape in SHAPES.items()}
    drop_in_picture.draw(path, {label: runs for label, runs in found.items() if runs})


def draw_language_model(results: Path, path: Path) -> None:
    """Draw the curves of the language model."""
    eigenbasis.draw(_read(results, "language_model.json")["rows"], path)


def draw_step_cost(results: Path, path: Path) -> None:
    """Draw the time of an update."""
    record = _read(results, "step_cost.json")
    step_cost.draw(record["costs"], record["device"], path)


def draw_robustness(results: Path, path: Path) -> None:
    """Draw the disturbances, where all of them are recorded."""
    found = robustness.recorded(results / "robustness.jsonl")
    if found:
        robustness_picture.draw(path, found)


PICTURES: dict[str, Callable[[Path, Path], None]] = {
    "figure1.png": draw_figure1,
    "geometry.png": draw_geometry,
    "drop_in.png": draw_drop_in,
    "language_model.png": draw_language_model,
    "step_cost.png": draw_step_cost,
    "robustness.png": draw_robustness,
    readme_picture.NAME: lambda results, path: readme_picture.draw(results / "figure1.json", path),
}

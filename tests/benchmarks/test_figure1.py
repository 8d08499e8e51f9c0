"""The paper's figure: its surfaces, its statistics, its search, and the command end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.figure1.__main__ import main
from benchmarks.figure1.methods import Method
from benchmarks.figure1.paths import (
    PathStatistics,
    follow,
    path_statistics,
    sign_changes,
    steps_to_settle,
    steps_to_target,
    straightness,
)
from benchmarks.figure1.search import Grid, Runner, best_point, edges, search, second_value
from benchmarks.figure1.surfaces import paper_surfaces
from benchmarks.shared.statistics import quartiles

KAPPA = 50.0
ANGLE = 17.0
SURFACES = paper_surfaces(KAPPA, ANGLE)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


# The surfaces.


@pytest.mark.parametrize("name", SURFACES)
def test_minimum(name):
    surface = SURFACES[name]
    np.testing.assert_allclose(surface.minimum, [3.0, -2.0])
    np.testing.assert_allclose(surface(surface.minimum), 0.0, atol=1e-15)
    np.testing.assert_allclose(jax.grad(surface)(surface.minimum), 0.0, atol=1e-14)


@pytest.mark.parametrize("name", SURFACES)
def test_hessian_at_the_minimum(name):
    surface = SURFACES[name]
    turn = np.deg2rad(surface.angle)
    shallow, steep = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    expected = np.outer(shallow, shallow) + KAPPA * np.outer(steep, steep)
    np.testing.assert_allclose(jax.hessian(surface)(surface.minimum), expected, rtol=1e-12, atol=1e-12)


def test_only_one_surface_is_turned():
    assert [surface.angle for surface in SURFACES.values()] == [0.0, ANGLE, 0.0]


@pytest.mark.parametrize("name", SURFACES)
def test_start_is_two_left_and_one_above(name):
    surface = SURFACES[name]
    np.testing.assert_allclose(surface.coordinates(surface.start), [-2.0, 1.0], rtol=1e-12)


def test_quadratics_are_the_papers():
    aligned, turned = SURFACES["axis-aligned"], SURFACES["turned"]
    weights = jnp.array([0.3, -1.1])
    expected = ((0.3 - 3) ** 2 + KAPPA * (-1.1 + 2) ** 2) / 2
    np.testing.assert_allclose(aligned(weights), expected, rtol=1e-12)
    np.testing.assert_allclose(aligned.start, [1.0, -1.0])
    moved = turned.minimum + turned.rotation @ (weights - turned.minimum)
    np.testing.assert_allclose(turned(moved), expected, rtol=1e-12)


def test_curvature_of_the_third_surface_varies():
    surface = SURFACES["non-quadratic"]
    expected = np.diag([1 / np.cosh(2) ** 2, KAPPA / np.cosh(1) ** 2])
    np.testing.assert_allclose(jax.hessian(surface)(surface.start), expected, rtol=1e-10)
    assert jnp.isfinite(surface(jnp.array([1e4, -1e4])))


# The statistics, against paths worked out by hand.


def test_steps_to_target():
    assert steps_to_target(jnp.array([1.0, 1e-3, 1e-8, 1.0])) == 2
    assert steps_to_target(jnp.array([1.0, 1e-3, 2e-8])) == jnp.inf
    assert steps_to_target(jnp.array([10.0, jnp.nan, 1e-7])) == 2


def test_steps_to_settle():
    assert steps_to_settle(jnp.array([1.0, 1e-9, 1e-3, 1e-9, 0.0])) == 3
    assert steps_to_settle(jnp.array([1.0, 1e-9, 1e-3])) == jnp.inf
    assert steps_to_settle(jnp.array([1.0, 1e-9, jnp.nan])) == jnp.inf


def test_straightness():
    corner = jnp.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [9.0, 9.0]])
    np.testing.assert_allclose(straightness(corner, jnp.array(2)), 5 / 7)
    np.testing.assert_allclose(straightness(corner, jnp.array(1)), 1.0)


def test_sign_changes():
    positions = jnp.array([1.0, -1.0, -2.0, 0.0, 1.0, 0.0, 2.0, -1.0])
    assert [int(sign_changes(positions, jnp.array(last))) for last in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]


def test_sign_changes_ignore_rounding():
    assert sign_changes(jnp.array([1.0, -1e-15, 1e-15, -1e-15]), jnp.array(3)) == 0


def test_statistics_end_at_the_arrival():
    surface = SURFACES["turned"]
    coordinates = jnp.array([[-2.0, 1.0], [-1.0, -1.0], [0.0, 0.0], [-5.0, -5.0]])
    path = jax.vmap(lambda x: surface.minimum + surface.rotation @ x)(coordinates)
    statistics = path_statistics(surface, path, jax.vmap(surface)(path))
    assert statistics.steps == 2
    assert statistics.settled == jnp.inf
    assert statistics.sign_changes == 1
    np.testing.assert_allclose(statistics.straightness, np.sqrt(5) / (np.sqrt(5) + np.sqrt(2)))


# Runs, against closed forms.


@pytest.mark.parametrize("name", ["axis-aligned", "turned"])
@pytest.mark.parametrize("rate", [0.01, 0.02, 2 / (1 + KAPPA), 0.0395])
def test_sgd_takes_the_steps_of_the_closed_form(name, rate):
    # Along the axis of curvature h the position shrinks by 1 - rate * h a step: the slower axis decides.
    steps = np.arange(1001)
    losses = ((1 - rate) ** (2 * steps) * 4 + KAPPA * (1 - rate * KAPPA) ** (2 * steps)) / 2
    expected = int(np.argmax(losses <= 1e-8 * losses[0]))
    _, measured = follow(optax.sgd(rate), SURFACES[name], 1000)
    assert expected > 0
    assert steps_to_target(measured) == expected
    slowest = max(abs(1 - rate), abs(1 - rate * KAPPA))
    np.testing.assert_allclose(measured[expected] / measured[expected - 1], slowest**2, rtol=1e-2)


def test_sgd_beyond_the_stable_rate_misses():
    surface = SURFACES["axis-aligned"]
    statistics = path_statistics(surface, *follow(optax.sgd(2.01 / KAPPA), surface, 1000))
    assert statistics.steps == jnp.inf
    assert statistics.settled == jnp.inf


def test_phis_that_ask_for_the_loss_get_it():
    def update(gradients, state, params=None, *, obj_fn, **extra_args):
        return jax.tree.map(lambda w: -0.1 * w, jax.grad(obj_fn)(params)), state

    asking = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    surface = SURFACES["turned"]
    path, _ = follow(asking, surface, 5)
    expected, _ = follow(optax.sgd(0.1), surface, 5)
    np.testing.assert_allclose(path, expected)


# The search.


def statistics_of(steps, straightness=1.0, lowest=0.0):
    return PathStatistics(steps, steps, straightness, 0, lowest)


def test_best_point_is_the_straightest_of_the_fastest():
    trials = {
        (0, 0): statistics_of(5.0, 0.99),
        (1, 0): statistics_of(3.0, 0.5),
        (2, 0): statistics_of(3.0, 0.9),
        (3, 0): statistics_of(np.inf),
    }
    assert best_point(trials) == (2, 0)
    assert best_point({(0, 0): statistics_of(np.inf)}) is None


def test_edges_need_the_fewest_steps_alone():
    grid = Grid(rates=(0, 2), seconds=(0, 1))
    trials = {(i, k): statistics_of(9.0) for i in range(3) for k in range(2)}
    assert edges(trials, grid, has_second=True) == set()
    trials[2, 0] = statistics_of(8.0)
    assert edges(trials, grid, has_second=True) == {"high rate", "low second"}
    assert edges(trials, grid, has_second=False) == {"high rate"}


def test_edges_go_by_the_loss_where_nothing_arrived():
    grid = Grid(rates=(0, 2), seconds=(0, 0))
    trials = {(i, 0): statistics_of(np.inf, lowest=0.5) for i in range(3)}
    assert edges(trials, grid, has_second=False) == set()
    trials[0, 0] = statistics_of(np.inf, lowest=0.1)
    assert edges(trials, grid, has_second=False) == {"low rate"}


def test_all_methods_with_a_second_dimension_have_equally_many_trials():
    grid = Grid().widened({"high second", "low rate"})
    alpha, beta = (Method("", lambda *_: optax.sgd(1.0), second=second) for second in ("alpha", "beta"))
    assert len(grid.points(alpha)) == len(grid.points(beta)) == (85 + 12) * (25 + 4)
    assert second_value(alpha, 4) == pytest.approx(10.0)
    assert second_value(beta, 0) == pytest.approx(0.5)


def test_search_widens_for_all_until_the_best_is_inside():
    sgd = Method("SGD", lambda rate, _, key: optax.sgd(rate))
    slowed = Method("slowed", lambda rate, _, key: optax.sgd(rate / 1000))
    surface = {"axis-aligned": SURFACES["axis-aligned"]}
    results, grid, _ = search([sgd, slowed], surface, Grid(rates=(-36, 0), rate_stride=3, steps=400))
    best = {method.name: best_point(trials) for (_, method), trials in results.items()}
    assert grid.rates == (-36, 24)
    assert len({len(trials) for trials in results.values()}) == 1
    assert best["slowed"][0] == best["SGD"][0] + 36


def test_a_run_alone_is_the_run_among_many():
    method = Method("momentum", lambda rate, beta, key: optax.sgd(rate, momentum=beta), second="beta")
    grid = Grid(rates=(-24, -12), seconds=(0, 8), rate_stride=3, second_stride=4, steps=300)
    runner, surface = Runner(method, grid), SURFACES["turned"]
    trials = runner.search(surface, grid.points(method))
    point = best_point(trials)
    assert trials.keys() == grid.points(method)
    assert len(runner.path(point, surface)) - 1 == trials[point].steps


def test_quartiles_of_runs():
    assert quartiles([1.0, 2.0, 3.0, 4.0, np.inf]) == (2.0, 3.0, 4.0)


# The command.


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure1")
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.figure1", "--quick", "--out", str(folder)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, folder


@pytest.fixture(scope="module")
def rows(quick_run):
    content = json.loads((quick_run[1] / "figure1.json").read_text())
    return {(row["surface"], row["method"], row["role"]): row for row in content["rows"]}


def test_command_writes_a_record_and_a_picture(quick_run):
    _, folder = quick_run
    content = json.loads((folder / "figure1.json").read_text())
    assert {"command", "versions", "grid", "surfaces", "rows", "sentences"} <= content.keys()
    assert content["claim_holds"] is True
    assert (folder / "figure1.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(path.name for path in folder.iterdir()) == ["figure1.json", "figure1.png"]


def test_command_prints_a_table_for_each_surface(quick_run):
    printed, _ = quick_run
    for name in (*SURFACES, "SGD", "momentum", "Adam", "presynaptic release", "inverse"):
        assert name in printed
    assert "\u2026" not in printed  # nothing was cut off


def test_record_has_every_method_on_every_surface(rows):
    kinds = {surface: {key[1:] for key in rows if key[0] == surface} for surface in SURFACES}
    assert kinds["axis-aligned"] == kinds["turned"] == kinds["non-quadratic"]
    roles = {name: {role for other, role in kinds["turned"] if other == name} for name, _ in kinds["turned"]}
    assert roles["SGD"] == {None}
    assert roles["secant curvature"] == roles["maintenance energy"] == {"metric", "inverse_metric"}
    assert len({row["trials"] for row in rows.values()}) == 2  # with a second dimension and without


@pytest.mark.parametrize("phi", ["secant curvature", "Hutchinson curvature"])
def test_curvature_draws_the_papers_figure(rows, phi):
    best = rows["axis-aligned", phi, "metric"]["best"]
    assert best["steps"] <= 8
    assert best["straightness"] >= 0.95
    assert best["sign_changes"] <= 1
    assert best["settled"] == best["steps"]
    assert all(steps <= 8 for steps in rows["axis-aligned", phi, "metric"]["steps_from_fresh_starts"])


@pytest.mark.parametrize("phi", ["secant curvature", "Hutchinson curvature"])
def test_the_other_reading_needs_the_reciprocal(rows, phi):
    sgd = rows["axis-aligned", "SGD", None]["best"]["steps"]
    assert rows["axis-aligned", phi, "inverse_metric"]["best_like_figure"] is None
    assert rows["axis-aligned", f"1 / {phi}", "inverse_metric"]["best_like_figure"]["steps"] < sgd / 10
    assert rows["axis-aligned", f"1 / {phi}", "metric"]["best_like_figure"] is None


def test_turning_changes_nothing_for_methods_without_axes(rows):
    for name in ("SGD", "momentum", "Nesterov"):
        aligned, turned = (
            rows[surface, name, None]["best"]["steps"] for surface in ("axis-aligned", "turned")
        )
        assert aligned == turned


def test_no_diagonal_metric_straightens_the_turned_valley(rows):
    aligned, turned = (
        rows[name, "secant curvature", "metric"]["best"] for name in ("axis-aligned", "turned")
    )
    assert turned["steps"] > 10 * aligned["steps"]
    assert turned["straightness"] < 0.95


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kappa", "0.5"], "--kappa must be a number of at least 1"),
        (["--kappa", "nan"], "--kappa must be a number of at least 1"),
        (["--angle", "inf"], "--angle must be a finite number of degrees"),
    ],
)
def test_bad_arguments_are_one_line(arguments, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "taken")])
    assert stopped.value.code == 2
    assert "--out must be a folder that can be written" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "a file, not a folder"

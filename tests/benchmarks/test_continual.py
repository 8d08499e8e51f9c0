"""Continual learning: trials, lanes and streams by hand, a small run that goes on, and the tables."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

import riemann_optax as ro
from benchmarks.continual import __main__ as command
from benchmarks.continual import chains, online, published, regression, streams, summary
from benchmarks.continual.images import Images, load
from benchmarks.continual.job import Job
from benchmarks.continual.laboratory import Laboratory
from benchmarks.continual.network import permuted_once
from benchmarks.shared import tuning
from benchmarks.shared.records import Records


@pytest.mark.parametrize(("axes", "best"), [(1, 6.0), (2, 3.0), (3, -2.0)])
def test_every_method_has_as_many_trials_and_a_grid_grows_beyond_its_edge(axes, best):
    space = {str(n): tuning.Axis(1.0) for n in range(axes)}

    def run(points):
        return [sum((np.log2(value) - best) ** 2 for value in point.values()) for point in points]

    chosen, tried = tuning.search(space, 3, run)
    assert len(tried) == 3 * tuning.ROUND
    assert run([chosen])[0] < run([dict.fromkeys(space, 1.0)])[0] / 2


def test_a_diverged_trial_is_never_chosen():
    chosen, _ = tuning.search({"rate": tuning.Axis(1.0)}, 1, lambda ps: [np.nan] * 7 + [5.0])
    assert chosen == {"rate": 8.0}


def test_permutation_kept_is_the_permutation_drawn():
    key, params = jax.random.key(3), {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(4.0)}
    phi = ro.phi.maintenance_energy()
    values = [
        control.update(params, control.init(params), params)[0]
        for control in (permuted_once(phi, key), ro.phi.permuted(phi, key=key))
    ]
    jax.tree.map(np.testing.assert_array_equal, *values)


def test_layers_of_the_vector_and_back():
    params = jnp.arange(111.0)
    np.testing.assert_array_equal(regression.join(regression.split(params)), params)


def test_all_slow_bits_are_drawn_anew_or_one_is_flipped():
    own, _, _ = regression.draw_own(jnp.asarray(0))
    for flip in (True, False):
        after, inputs, targets, which = regression.next_task(own, 500, flip)
        changed = int(np.sum(np.asarray(after.slow) != np.asarray(own.slow)))
        assert changed == 1 if flip else changed > 1
        assert np.all(np.asarray(inputs)[:, :15] == np.asarray(after.slow))
        assert len(np.unique(inputs, axis=0)) == 32
        assert set(np.asarray(which)) == set(range(32))
        np.testing.assert_allclose(targets[7], own.target(inputs[7]))


def test_points_and_seeds_are_independent_lanes():
    def run(points, seeds):
        return regression.run(Job("RMSprop + shrink and perturb", points, seeds), tasks=2, steps=60)

    points = [{"rate": rate, "shrink": 1e-4, "noise": 1e-2} for rate in (0.001, 0.01)]
    both = run(points, range(5, 8))
    alone = run(points[1:], range(6, 7))
    np.testing.assert_allclose(both[1].by_seed["error"][1], alone[0].by_seed["error"][0], rtol=1e-4)
    assert both[0].by_seed["error"][1] != both[1].by_seed["error"][1]


def test_variance_doubles_and_then_the_pixels_move():
    images = Images(np.zeros((4, 64), np.float32), np.zeros(4, int), 10)
    blocks = [online.noise_block(images, jnp.asarray(0), jnp.asarray(n), 3, 0.5) for n in range(5)]
    np.testing.assert_allclose([block.spread**2 for block in blocks], [0.5, 1, 2, 2, 2], rtol=1e-6)
    moved = [bool(np.any(np.asarray(block.pixels) != np.arange(64))) for block in blocks]
    assert moved == [False, False, False, True, True]
    labels = [online.label_block(images, jnp.asarray(0), jnp.asarray(n)).labels for n in range(2)]
    assert np.any(np.asarray(labels[0]) != np.asarray(labels[1]))
    assert sorted(np.asarray(labels[0])) == list(range(10))


def test_bounded_phi_keeps_its_pattern_and_a_small_one_is_left_alone():
    phi = ro.phi.limited_mean(ro.phi.maintenance_energy(), limit=jnp.asarray(2.0))
    for scale, expected in ((1.0, [1.0, 2.0]), (10.0, [4 / 3, 8 / 3])):
        params = scale * jnp.array([1.0, 2.0])
        np.testing.assert_allclose(phi.update(params, phi.init(params), params)[0], expected, rtol=1e-6)


def test_mnist_comes_from_the_hubs_files(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)

    def encoded(picture):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    columns = {"image": [encoded(p) for p in pictures], "label": list(np.arange(20) % 10)}
    for part in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{part}-00000-of-00001.parquet")
    images = load("mnist", tmp_path)
    assert (images.inputs.shape, images.classes) == ((40, 784), 10)  # those of both parts
    np.testing.assert_allclose(images.inputs[0], pictures[0].reshape(-1) / 255, rtol=1e-6)
    scores = online.run(Job("SGD", [{"rate": 0.1}], range(1), images), blocks=1, steps=2)
    assert np.isfinite(scores[0].by_seed["loss"]).all()


def test_quick_run_goes_on_from_its_records(tmp_path, capsys, monkeypatch):
    arguments = ["--quick", "--out", str(tmp_path), "--streams", "slowly_changing"]
    command.main(arguments)
    lines = (tmp_path / "continual.quick.jsonl").read_text()
    assert "metric + pull + noise" in capsys.readouterr().out
    monkeypatch.setattr(regression, "draw_own", None)  # whatever is in the file is not run again
    command.main(arguments)
    assert (tmp_path / "continual.quick.jsonl").read_text() == lines
    found = summary.rows(Records(tmp_path / "continual.quick.jsonl", []), "slowly_changing")
    assert [row.trials for row in found] == [tuning.ROUND] * 2


# What came since the records of the regression were made: a million updates a run take hours.
NOT_YET_RUN = {
    "AdamO",
    "RMSprop, decay 0.999 + L2-Init",
    *(f"{base} + {rule}" for base in ("SGD", "RMSprop") for rule in ("ReDo", "SNR", "soft resets")),
    *(f"{base} + {rule}" for base in ("SGD", "RMSprop") for rule in ("spectral", "FIRE")),
}
REGRESSION = {"slowly_changing", "slowly_changing_flip"}
ONE_PASS = {"online_permuted", "online_label_permuted", "random_labels"}
STREAMS_NOT_YET_RUN = ONE_PASS | {"class_incremental"}  # on digits; nor all methods on MNIST


@pytest.mark.parametrize("method", sorted(name for name in NOT_YET_RUN if "RMSprop" not in name))
def test_the_newer_rivals_run_on_both_kinds_of_parameters(method):
    """On one vector and on layers, with two points side by side: another run than the plain optimiser's."""
    base = "Adam" if method == "AdamO" else "SGD"
    own = [{name: axis.centre for name, axis in regression.METHODS[method].axes.items()}]
    points = [{**own[0], "rate": rate} for rate in (0.01, 0.02)]
    rates = [{"rate": point["rate"]} for point in points]
    runs = [
        regression.run(Job(name, tried, range(2)), tasks=3, steps=120)
        for name, tried in ((method, points), (base, rates))
    ]
    errors = np.array([[scores.by_seed["error"] for scores in run] for run in runs])
    assert np.isfinite(errors).all()
    if method != "SGD + SNR":  # no unit of five has been silent for as long
        assert (errors[0] != errors[1]).any()
    images = Images(np.eye(64, dtype=np.float32), np.arange(64) % 10, 10)
    scores = online.run(Job(method, own, range(1), images), blocks=2, steps=3)
    assert np.isfinite(scores[0].by_seed["loss"]).all()


def test_every_newer_rival_has_as_many_trials():
    methods = regression.METHODS
    assert set(methods) & set(online.METHODS) >= NOT_YET_RUN
    assert all(len(tuning.first_grid(methods[name].axes)) == tuning.ROUND for name in NOT_YET_RUN)


def test_what_is_recorded_is_found_again():
    """Every point that tuning chose on the committed records has its run on fresh seeds under today's key."""
    records = Records(command.RESULTS / "continual.jsonl")
    count = len(list(records))
    for name in set(streams.STREAMS) - STREAMS_NOT_YET_RUN:
        stream = streams.STREAMS[name]
        found = Laboratory(name, stream, "digits", None, records, None)
        waiting = NOT_YET_RUN | {chains.ONE_CHAIN} if name in REGRESSION else set()
        for method in set(stream.methods) - waiting:
            found.work(method)  # without images nothing can be run
    assert len(list(records)) == count


@pytest.mark.parametrize(
    "name",
    ["label_permuted_digits", "noise_shift", "online_permuted", "online_label_permuted", "random_labels"],
)
def test_the_chain_called_ours_is_the_one_that_tuning_prefers(name):
    stream = streams.STREAMS[name]
    records = Records(command.RESULTS / "continual.jsonl")
    mnist = name in ONE_PASS
    laboratory = Laboratory(name, stream, "mnist" if mnist else "digits", None, records, None)
    tried = (published if mnist else online).CHAINS
    best = {chain: min(loss for _, loss in laboratory.tried(chain)) for chain in tried}
    assert stream.ours == min(best, key=best.get)


def entry(method, phase, values, point):
    key = {"suite": "continual", "stream": "slowly_changing", "data": "digits"}
    return {"key": {**key, "method": method, "phase": phase, "point": point}, "result": {"error": values}}


def test_rows_are_paired_with_ours_and_count_what_a_control_keeps():
    entries = [
        entry("metric + pull + noise", "fresh", [1.0, 2.0, 3.0], {"rate": 1.0}),
        entry("SGD", "fresh", [3.0, 4.0, 5.0], {"rate": 2.0}),
        entry("leaf-mean phi", "fresh", [2.0, 1.5, 5.0], {}),
        entry("permuted phi", "fresh", [None, None, 2.0], {}),
        entry("SGD", "tuning", [3.0], {"rate": 2.0}),
    ]
    by_method = {row.method: row for row in summary.rows(entries, "slowly_changing")}
    assert next(iter(by_method)) == "metric + pull + noise"
    control = by_method["leaf-mean phi"]
    differences = np.array([1.0, -0.5, 2.0])
    assert control.difference == pytest.approx(differences.mean())
    half = 4.30265273 * differences.std(ddof=1) / np.sqrt(3)  # Student's t of two degrees of freedom
    assert (control.low, control.high) == pytest.approx(
        (differences.mean() - half, differences.mean() + half)
    )
    assert (control.ours_ahead, control.seeds) == (2, 3)
    assert control.gain_kept == pytest.approx((4 - 8.5 / 3) / 2)
    assert by_method["permuted phi"].diverged == 2
    assert by_method["permuted phi"].ours_ahead == 2
    assert by_method["SGD"].trials == 1
    assert by_method["SGD"].gain_kept == 0


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command.main(["--quick", "--out", str(tmp_path / "file")])
    assert "--out must be a folder" in capsys.readouterr().err

"""Tasks that read a folder, a GPT of a million weights, searches that go on in the middle of their trials."""

import argparse
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from flax import nnx
from PIL import Image

from benchmarks.report import details, suite
from benchmarks.shared.command import RESULTS
from benchmarks.shared.records import Records
from benchmarks.time_to_target import __main__ as command
from benchmarks.time_to_target import freeze, networks, runs, tasks
from benchmarks.time_to_target.methods import METHODS, RATE_ONLY
from benchmarks.time_to_target.mnist import MNIST, OfMnist
from benchmarks.time_to_target.search import Search, Tuning
from benchmarks.time_to_target.targets import Targets
from benchmarks.time_to_target.task import SPARING, Task

TRAIN, TEST = 40, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in the layout of MNIST's, with pictures of noise; the pictures of both parts."""
    path, random = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    pictures = {"train": random.integers(0, 256, (TRAIN, 28, 28), np.uint8)}
    pictures["test"] = random.integers(0, 256, (TEST, 28, 28), np.uint8)
    for part, images in pictures.items():
        write(path / f"{part}-00000-of-00001.parquet", images)
    return path, pictures


def write(path, images):
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    labels = [number % 10 for number in range(len(images))]
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded, "label": labels}), path)


def test_the_convolutional_network_is_made_of_convolutions():
    """Against Flax's own convolution and pooling, with the same weights."""
    network = networks.LeNet(28, 10, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (3, 28, 28, 1))
    received = images
    for layer in network.convolutions:
        received = nnx.max_pool(nnx.relu(layer(received)), (2, 2), (2, 2))
    expected = network.head(nnx.relu(network.hidden(received.reshape(3, -1))))
    np.testing.assert_allclose(network(images), expected, rtol=1e-4, atol=1e-5)


def test_a_task_on_mnist_is_its_images(folder):
    """Every tenth training image is kept for validation; the followed loss, written out in NumPy."""
    path, pictures = folder
    learner = OfMnist(lambda rngs: nnx.Linear(784, 10, rngs=rngs), steps=20)
    flat = learner._replace(network=lambda rngs: Flat(rngs))
    task = flat.task(path)
    assert task.examples == TRAIN - TRAIN // 10
    params = task.init(0)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, flat.init(0)))
    for part, measured in (("train", task.followed), ("test", task.held_out)):
        labels = np.arange(len(pictures[part])) % 10
        kept = np.arange(len(labels)) % 10 != 9 if part == "train" else slice(None)
        inputs = pictures[part][kept].reshape(-1, 784) / 255.0
        logits = inputs @ np.float64(params["layer"]["kernel"]) + np.float64(params["layer"]["bias"])
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), labels[kept]]
        assert float(measured(params)) == pytest.approx(losses.mean(), rel=1e-5)


class Flat(nnx.Module):
    """A linear read-out of the pixels."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(784, 10, rngs=rngs)

    def __call__(self, images):
        return self.layer(images.reshape(len(images), -1))


@pytest.mark.parametrize("name", MNIST)
def test_the_command_runs_on_a_folder(name, folder, tmp_path, capsys):
    """Twenty steps of one optimiser; its single runs are gone once their records are complete."""
    arguments = ["--quick", "--tasks", name, "--optimizers", "SGD", "--out", str(tmp_path)]
    command.main([*arguments, "--data-dir", str(folder[0])])
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.quick.jsonl"]
    keys = [entry["key"] for entry in Records(tmp_path / f"{name}.quick.jsonl")]
    assert {key["examples"] for key in keys} == {36}
    assert "SGD" in capsys.readouterr().out
    # Records of other images are not mixed with these.
    write(folder[0] / "train-00001-of-00001.parquet", np.zeros((10, 28, 28), np.uint8))
    with pytest.raises(SystemExit, match="2"):
        command.parse([*arguments, "--data-dir", str(folder[0])])
    (folder[0] / "train-00001-of-00001.parquet").unlink()
    assert "is recorded with 36 examples and not with 45: give another --out" in capsys.readouterr().err


def test_without_a_folder_its_tasks_are_left_out_and_this_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(command.SIZES, "full", (("regression", *MNIST), ("SGD",)))
    monkeypatch.setattr(
        Search, "_run", lambda *arguments: runs.Run(np.arange(1, 26), np.ones(25), np.ones(25), 1, 1)
    )
    monkeypatch.setattr(command, "sanity", lambda search: None)
    command.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["regression.jsonl"]
    shown = capsys.readouterr().out
    assert all(f"{name} is left out: it needs --data-dir FOLDER." in shown for name in MNIST)


def test_what_cannot_be_run_is_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(command.TARGETS, "saddle")
    write(tmp_path / "train-0.parquet", np.zeros((20, 8, 8), np.uint8))
    write(tmp_path / "test-0.parquet", np.zeros((10, 8, 8), np.uint8))
    for arguments, message in (
        (["--tasks", "mnist_mlp"], "--tasks mnist_mlp needs --data-dir FOLDER"),
        (["--tasks", "saddle"], "--tasks saddle has no targets yet: run it with --freeze"),
        (["--tasks", "mnist_mlp", "--data-dir", str(tmp_path)], "give the folder of MNIST"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command.parse([*arguments, "--out", str(tmp_path / "records")])
        assert message in capsys.readouterr().err


def test_sizes_share_their_records():
    """A size is a choice of tasks and optimisers: nothing of a record's key depends on it."""
    few, all_of_them = (command.SIZES[size] for size in ("quick", "full"))
    for part, whole in zip(few, all_of_them, strict=True):
        assert set(part) < set(whole)
    assert set(RATE_ONLY) <= set(few[1])
    assert set(MNIST) | {"gpt_million", "recurrent", "tabular"} <= set(all_of_them[0])


def test_the_gpt_has_a_million_weights():
    weights = jax.eval_shape(lambda: tasks.initial("gpt_million"))
    assert sum(leaf.size for leaf in jax.tree.leaves(weights)) == pytest.approx(1.06e6, rel=0.01)


def test_the_recorded_language_model_is_the_same_task_as_ever():
    """The followed loss of its first fresh seed, untrained, as it was recorded."""
    entries = Records(RESULTS / "time_to_target" / "language_model.jsonl")
    recorded = next(e["result"]["untrained"] for e in entries if e["key"]["phase"] == "untrained")
    task = tasks.TASKS["language_model"]()
    assert runs.untrained(task, task.fresh_seeds[0]) == pytest.approx(recorded[0], rel=1e-4)


def bowl():
    """A quadratic bowl, declared slow."""

    def value(params):
        return jnp.sum(params**2) / 2

    return Task(
        steps=50,
        init=lambda seed: jnp.full(3, 2.0 + seed),
        sample=lambda key: None,
        loss=lambda params, batch: value(params),
        followed=value,
        **SPARING,
    )


FEW = Tuning((-4, -2, 0), fine_trials=4, fine_octaves=1.0, widenings=0)


class StopError(Exception):
    """The time is over."""


def test_a_slow_search_goes_on_in_the_middle_of_its_trials(tmp_path):
    """Stopped before the sixth run, in the middle of the fine trials, which one record sums up."""
    made = []

    def search(records, kept, stop_before=np.inf):
        def progress(count):
            if len(made) + 1 >= stop_before:
                raise StopError
            made.append(count)

        targets = Targets(1e-2, 1e-4)
        return Search("SGD", "bowl", bowl(), targets, records, FEW, progress, kept=kept)

    def files(name):
        return Records(tmp_path / f"{name}.jsonl"), Records(tmp_path / f"{name}.runs.jsonl", digits=None)

    with pytest.raises(StopError):
        search(*files("stopped"), stop_before=6).tune()
    assert len(made) == 5
    found = search(*files("stopped")).tune()
    assert len(made) == len(found) == 7  # none of them a second time
    unbroken = search(Records(tmp_path / "unbroken.jsonl"), None).tune()
    for one, other in zip(found, unbroken, strict=True):
        np.testing.assert_array_equal(one.final, other.final)
        np.testing.assert_array_equal(one.steps["far"], other.steps["far"])


def test_a_diverged_run_and_one_without_held_out_examples_are_read_again(tmp_path):
    run = runs.Run(np.array([1, 2]), np.array([1 / 3, np.inf]), np.array([0.5, np.nan]), np.nan, 1.5, 2.5)
    Records(tmp_path / "r.jsonl", digits=None).put({"n": 0}, run._asdict())
    again = runs.recorded(Records(tmp_path / "r.jsonl")[{"n": 0}])
    np.testing.assert_array_equal(again.loss, run.loss)
    np.testing.assert_array_equal(again.steps, run.steps)
    assert np.isnan(again.held_out)
    assert (again.seconds, again.compile_seconds) == (1.5, 2.5)


def test_freezing_takes_the_worse_and_the_better_of_two_baselines(tmp_path, monkeypatch):
    """Faked ones that reach 0.3 and 0.1 at their best; their runs are trials of the comparison as well."""
    made = []

    def fake(trainer, rate, point, seed):
        made.append(rate)
        floor = 0.3 if trainer._method.make is METHODS[freeze.MOMENTUM].make else 0.1
        loss = floor * (1 + np.log2(rate) ** 2)
        return runs.Run(np.arange(1, 51), np.full(50, loss), np.ones(50), np.nan, 1.0)

    monkeypatch.setattr(runs.Trainer, "__call__", fake)
    records = Records(tmp_path / "bowl.jsonl")
    kept = command.single_runs(argparse.Namespace(out=tmp_path, quick=False, made={"bowl": bowl()}), "bowl")
    found = freeze.frozen("bowl", bowl(), records, kept=kept)
    assert found.near == pytest.approx(0.3, rel=0.1)
    assert found.far == pytest.approx(0.1, rel=0.1)
    count = len(made)
    coarse = freeze.TUNING._replace(fine_trials=8)
    Search(freeze.MOMENTUM, "bowl", bowl(), found, records, coarse, kept=kept).trials(
        METHODS[freeze.MOMENTUM].points[0], freeze.TUNING.coarse, "tuning, coarse"
    )
    assert len(made) == count


def test_a_budget_of_minutes_stops_between_two_runs(tmp_path, capsys):
    command.main(["--quick", "--tasks", "regression", "--out", str(tmp_path), "--minutes", "0"])
    assert "0 minutes are over, before momentum on regression" in capsys.readouterr().out


def test_a_task_recorded_in_part_is_shown_by_itself(tmp_path):
    """It would empty the tables over all tasks: they show only what has been run on every one."""
    for name in ("regression", "saddle"):
        source = RESULTS / "time_to_target" / f"{name}.jsonl"
        lines = source.read_text().splitlines(keepends=True)
        if name == "saddle":
            lines = [line for line in lines if json.loads(line).get("key", {}).get("contestant") == "NAdamW"]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    found = suite.read(tmp_path)
    assert suite.in_part(found) == ["saddle"]
    assert suite.load(tmp_path).tasks == ["regression"]
    steps = found.rows["far"]["saddle"]["NAdamW"].median_steps
    (row,) = [line for line in details.of_other_tasks(tmp_path).splitlines() if line.startswith("| NAdamW |")]
    assert f"{steps:.0f} [" in row

"""The trainer, run for real on small problems."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from riemann_optax.examples import datasets, models
from riemann_optax.examples.train import __main__ as train
from riemann_optax.examples.train import arguments as command_line
from riemann_optax.examples.train import checkpoint, loop, phis, pictures, plan
from riemann_optax.optimizers import RECOMMENDED_RATES

from .trainer import SMALL, run

# Of one phi without state, and quick to compile.
QUICK = ["--phi", "maintenance_energy", "--baseline", "none", "--steps", "10"]


def read_record(folder):
    return json.loads((folder / "record.json").read_text())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def final_training(folder, *arguments):
    """The weights and optimiser state of both runs, from their last checkpoints."""
    parsed = command_line.parse([*SMALL, *arguments, "--out", str(folder)])
    dataset = datasets.load("digits")
    model = models.build("mlp", dataset, parsed.seed)
    problem = loop.Problem(model, dataset)
    result = {}
    for name, contestant in plan.build_contestants(parsed).items():
        with checkpoint.Checkpoints(folder / "checkpoints" / name) as checkpoints:
            restored = checkpoints.restore(loop.start(problem, contestant.transformation))
        assert restored.step == 40
        result[name] = restored.training
    return result


def assert_same_bits(first, second):
    def compare(one, other):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()

    jax.tree.map(compare, first, second)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert run("--tensorboard", out=folder) == 0
    return folder


def test_a_run_leaves_pictures_checkpoints_logs_and_a_record(unbroken):
    for picture in ("curves.png", "metric.png"):
        assert (unbroken / picture).read_bytes().startswith(b"\x89PNG")
    for name in ("metric", "baseline"):
        steps = {path.name for path in (unbroken / "checkpoints" / name).iterdir()}
        assert steps == {"20", "30", "40"}
        assert list((unbroken / "tensorboard" / name).glob("events.out.tfevents.*"))
    record = read_record(unbroken)
    assert record["status"] == "finished"
    assert record["arguments"]["steps"] == 40
    assert record["versions"].keys() >= {"python", "jax", "optax", "flax", "riemann-optax"}
    assert record["seeds"] == {"initial_weights": 0, "order_of_data": 0}


def test_accuracy_against_energy_is_drawn_on_request(unbroken, capsys, monkeypatch):
    """Also of a run that has finished, from its record; nothing is trained again."""
    assert not (unbroken / "energy.png").exists()
    drawn = []
    save = pictures.Figure.savefig
    monkeypatch.setattr(pictures.Figure, "savefig", lambda f, path: (drawn.append(f), save(f, path)))
    assert run("--resume", "--energy", out=unbroken) == 0
    assert "energy.png" in capsys.readouterr().out
    assert (unbroken / "energy.png").read_bytes().startswith(b"\x89PNG")
    by_step, by_energy = drawn[-1].axes
    for name, line in zip(("metric", "baseline"), by_energy.lines, strict=True):
        rows = read_record(unbroken)["histories"][name]["validation"][1:]
        np.testing.assert_allclose(line.get_xdata(), [row["energy"] for row in rows])
        np.testing.assert_allclose(line.get_ydata(), [row["accuracy"] for row in rows])
        assert (np.diff(line.get_xdata()) > 0).all()
    assert by_step.lines[0].get_xdata()[-1] == 40


def test_the_record_holds_what_the_table_shows(unbroken):
    record = read_record(unbroken)
    results = record["results"]
    assert [result["label"] for result in results.values()] == ["riemannian_adamw", "adamw"]
    for name, result in results.items():
        history = record["histories"][name]
        assert [row["step"] for row in history["validation"]] == [0, 10, 20, 30, 40]
        assert result["validation_loss"] == history["validation"][-1]["loss"]
        assert result["validation_loss"] < 0.7 * history["validation"][0]["loss"]
        assert result["heldout_accuracy"] > 0.5
        # One float32 value per weight, and some per row and column; AdamW has two, and scalars.
        low, high = {"riemannian_adamw": (4.0, 4.2), "adamw": (8.0, 8.1)}[result["label"]]
        assert low <= result["state_bytes_per_parameter"] < high
        energies = [row["energy"] for row in history["validation"]]
        assert energies[0] == 0
        assert energies == sorted(energies)
    metric_rows = record["histories"]["metric"]["metric"]
    assert [row["step"] for row in metric_rows] == [10, 20, 30, 40]
    layers = record["histories"]["metric"]["layers"]
    assert layers[:2] == ["head/bias", "head/kernel"]
    for row in metric_rows:
        assert len(row["metric_min"]) == len(layers)
        assert all(
            0 < low <= mean <= high
            for low, mean, high in zip(row["metric_min"], row["metric_mean"], row["metric_max"], strict=True)
        )
    assert record["histories"]["baseline"]["metric"] == []


def test_both_start_from_the_same_weights_and_see_the_same_batches(unbroken):
    histories = read_record(unbroken)["histories"]
    assert histories["metric"]["validation"][0] == histories["baseline"]["validation"][0]


def test_a_run_broken_off_twice_ends_on_the_same_bits(unbroken, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    save = checkpoint.Checkpoints.save

    def break_off_at(name, step):
        def interrupted(self, current):
            save(self, current)
            if (self.folder.name, current.step) == (name, step):
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint.Checkpoints, "save", interrupted)

    break_off_at("metric", 20)
    assert run(out=folder) == 130
    message = f"interrupted: add --resume --out {folder} to go on from the last checkpoint\n"
    assert capsys.readouterr().err == message
    assert read_record(folder)["status"] == "running"
    break_off_at("baseline", 10)
    assert run("--resume", out=folder) == 130
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    assert run("--resume", out=folder) == 0

    assert_same_bits(final_training(folder), final_training(unbroken))
    broken, whole = read_record(folder), read_record(unbroken)
    for record in (broken, whole):
        for entry in (*record["results"].values(), *record["histories"].values()):
            del entry["seconds"], entry["compile_seconds"]
    assert broken["results"] == whole["results"]
    assert broken["histories"] == whole["histories"]


def test_an_interrupted_phi_with_a_random_key_resumes_to_the_same_bits(tmp_path, monkeypatch):
    arguments = ["--phi", "hutchinson_curvature", "--baseline", "none"]
    save = checkpoint.Checkpoints.save

    def interrupted(self, current):
        save(self, current)
        if current.step == 20:
            raise KeyboardInterrupt

    assert run(*arguments, out=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", interrupted)
        assert run(*arguments, out=tmp_path / "broken") == 130
    assert run(*arguments, "--resume", out=tmp_path / "broken") == 0
    broken, whole = (final_training(tmp_path / name, *arguments) for name in ("broken", "whole"))
    assert_same_bits(broken, whole)


def test_resuming_a_finished_run_shows_its_table_and_changes_nothing(unbroken, capsys):
    before = contents(unbroken)
    assert run("--resume", out=unbroken) == 0
    assert "held-out accuracy" in capsys.readouterr().out
    assert contents(unbroken) == before


def test_resuming_with_other_arguments_is_refused(unbroken, capsys):
    before = contents(unbroken)
    assert run("--resume", "--seed", "1", out=unbroken) == 2
    assert re.fullmatch(
        r"error: --resume: the run in .* has --seed 0: give the same\n", capsys.readouterr().err
    )
    assert run("--resume", "--phi", "maintenance_energy", "--seed", "1", out=unbroken) == 2
    said = capsys.readouterr().err
    assert "--phi" in said  # all that differ are named
    assert "--seed 0" in said
    assert contents(unbroken) == before


def test_resuming_with_other_examples_is_refused(unbroken, capsys, monkeypatch):
    """A file of the same name can hold other data; a run would go on with them and its record say nothing."""
    before = contents(unbroken)
    digits = datasets.load("digits")
    train = digits.parts["train"] | {"labels": digits.parts["train"]["labels"][::-1]}
    other = dataclasses.replace(digits, parts=digits.parts | {"train": train})
    monkeypatch.setattr(datasets, "load", lambda *_, **__: other)
    assert run("--resume", out=unbroken) == 2
    assert "learned other examples, read from sklearn.datasets.load_digits" in capsys.readouterr().err
    assert contents(unbroken) == before


def test_a_folder_that_is_not_empty_is_left_alone(unbroken, capsys):
    before = contents(unbroken)
    assert run(out=unbroken) == 2
    assert "is not empty: add --resume or --overwrite" in capsys.readouterr().err
    assert contents(unbroken) == before


def test_overwriting_replaces_the_run_and_nothing_else(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    (folder / "notes.txt").write_text("mine")
    assert run(*QUICK, "--seed", "1", "--overwrite", out=folder) == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert read_record(folder)["arguments"]["seed"] == 1
    assert {path.name for path in (folder / "checkpoints" / "metric").iterdir()} == {"10"}
    assert not (folder / "checkpoints" / "baseline").exists()


@pytest.mark.parametrize("damage", ["record", "checkpoint"])
def test_a_damaged_run_is_refused_in_one_line(unbroken, tmp_path, capsys, damage):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    record = folder / "record.json"
    if damage == "record":
        record.write_text(record.read_text()[:100])
    else:
        record.write_text(record.read_text().replace('"finished"', '"running"'))
        for path in (folder / "checkpoints" / "metric" / "40" / "training").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    capsys.readouterr()
    assert run("--tensorboard", "--resume", out=folder) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: --resume: ")
    assert message.count("\n") == 1


def test_a_diverged_run_says_so_and_its_record_stays_json(tmp_path, capsys):
    assert run(*QUICK, "--learning-rate", "1e30", out=tmp_path / "run") == 0
    assert "loss no longer finite at step" in capsys.readouterr().out
    result = read_record(tmp_path / "run")["results"]["metric"]
    assert result["diverged"] == 10
    assert result["validation_loss"] is None
    assert result["steps_to_target"] is None


def test_a_diverged_run_can_be_shown_again(tmp_path, capsys):
    """Its record has null where the loss was no number."""
    arguments = [*QUICK, "--learning-rate", "1e30"]
    assert run(*arguments, out=tmp_path / "run") == 0
    assert run(*arguments, "--resume", out=tmp_path / "run") == 0
    assert capsys.readouterr().out.count("written to") == 2


def test_steps_to_target_is_the_first_validation_at_or_below_it(tmp_path, capsys):
    assert run(*QUICK, "--steps", "40", "--target", "2", out=tmp_path) == 0
    record = read_record(tmp_path)
    rows = record["histories"]["metric"]["validation"]
    reached = record["results"]["metric"]["steps_to_target"]
    assert reached == min(row["step"] for row in rows if row["loss"] <= 2)
    table = capsys.readouterr().out
    assert re.search(rf"steps to validation loss 2 +\S +{reached} ", table)


def test_a_target_that_was_not_reached_is_not_called_out_of_reach(tmp_path, capsys):
    assert run(*QUICK, "--target", "1e-9", out=tmp_path) == 0
    table = capsys.readouterr().out
    assert "not in 10 steps" in table
    assert "never" not in table


@pytest.mark.parametrize(
    ("arguments", "optimizer", "alpha", "conformal"),
    [
        ([], "riemannian_adamw", None, None),
        (["--phi", "per_neuron"], "riemannian_adamw", None, None),
        (["--optimizer", "riemannian_sgd"], "riemannian_sgd", None, None),
        (["--optimizer", "riemannian_schedule_free"], "riemannian_schedule_free", None, None),
        (["--phi", "online_ewc"], "riemannian_sgd", 1.0, "none"),
        (["--phi", "utility_gate"], "riemannian_sgd", 0.5, "none"),
        (["--role", "inverse_metric"], "riemannian_sgd", None, "none"),
    ],
)
def test_the_optimiser_and_its_rate_follow_from_phi_and_data(arguments, optimizer, alpha, conformal):
    parsed = command_line.parse([*SMALL, *arguments])
    assert (parsed.optimizer, parsed.alpha, parsed.conformal) == (optimizer, alpha, conformal)
    for data, model in (("digits", "convnet"), ("text", "transformer")):
        problem = command_line.parse([*arguments, "--data", data, "--model", model])
        drop_in = data == "text" and optimizer != "riemannian_sgd"
        assert problem.learning_rate == (
            problem.baseline_learning_rate if drop_in else RECOMMENDED_RATES[optimizer]
        )


def test_the_schedule_free_command_ends_at_its_full_rate_and_scores_the_average(tmp_path):
    arguments = ["--optimizer", "riemannian_schedule_free", "--baseline", "none", "--steps", "110"]
    assert run(*arguments, "--learning-rate", "0.01", out=tmp_path) == 0
    record = read_record(tmp_path)
    rates = [row["learning_rate"] for row in record["histories"]["metric"]["metric"]]
    np.testing.assert_allclose(rates, 0.01 * np.minimum(1, np.arange(10, 111, 10) / 100), rtol=1e-6)
    assert record["results"]["metric"]["heldout_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--weight-decay", "0.1"], {"weight_decay": 0.1}),
        (["--baseline", "sgd"], {"momentum": 0.9, "nesterov": True}),
        (["--baseline", "sgd", "--momentum", "0.8"], {"momentum": 0.8, "nesterov": True}),
        (["--baseline", "sgd", "--momentum", "0"], {}),
        (
            ["--baseline-option", "b2=0.95", "--baseline-option", "weight_decay=0"],
            {"b2": 0.95, "weight_decay": 0},
        ),
        (["--baseline", "sgd", "--baseline-option", "nesterov=false"], {"momentum": 0.9, "nesterov": False}),
        (["--baseline", "lion", "--baseline-learning-rate", "0.1"], {}),
    ],
)
def test_the_baseline_shares_what_it_can_with_the_metric_unless_told_otherwise(arguments, options):
    assert command_line.baseline_options(command_line.parse([*SMALL, *arguments])) == options


@pytest.mark.parametrize("asked", ["help", "help:activity"])
def test_the_list_of_phis_needs_nothing_else(capsys, asked):
    with pytest.raises(SystemExit) as caught:
        train.main(["--phi", asked])
    assert caught.value.code == 0
    named = re.findall(r"^  (\w+) ", capsys.readouterr().out, flags=re.MULTILINE)
    # Several times where it answers several questions.
    assert set(named) == (set(phis.PHIS) if asked == "help" else {"activity"})


def start_process(folder, *arguments, **environment):
    command = [sys.executable, "-m", "riemann_optax.examples.train", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_a_transformer_is_trained_on_text_and_shown_without_escape_codes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(b"All work and no play makes Jack a dull boy.\n" * 40)
    arguments = ["--data", "text", "--text-file", "text.txt", "--steps", "20", "--batch-size", "4"]
    assert train.main([*arguments, "--baseline", "none"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert re.search(r"step 20/20  loss \d\.\d+  accuracy 0\.\d+  rates \S+ to \S+", captured.out)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"text-transformer-\d{8}-\d{6}", folder.name)
    assert read_record(folder)["status"] == "finished"


def test_the_command_fails_fast_without_the_hub(tmp_path):
    process = start_process(tmp_path, "--data", "mnist", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert process.returncode == 2
    assert process.stdout == ""
    assert re.fullmatch(r"error: --data mnist cannot be fetched .* give --data-dir FOLDER\n", process.stderr)
    assert not (tmp_path / "runs").exists()

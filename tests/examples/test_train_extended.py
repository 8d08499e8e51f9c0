"""A finished run that gets more steps: its schedule, and the same bits as a run that knew them all along."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from riemann_optax.examples.train import arguments, checkpoint, loop, plan
from riemann_optax.examples.train.optimizers import EXTENDED, schedule_for

from .trainer import SMALL, run

# Of one phi without state, and quick to compile.
QUICK = ["--phi", "maintenance_energy", "--baseline", "none"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run(*QUICK, "--steps", "20", out=folder) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def record(folder):
    return json.loads((folder / "record.json").read_text())


def rates(name, steps, extended_at):
    schedule = schedule_for(name, 2.0, steps, extended_at)
    return np.array([schedule(count) for count in range(steps)])


def test_the_schedule_of_each_round_is_that_of_a_run_of_its_own():
    def cosine(steps):
        warmup = max(1, steps // 20)
        return [
            2 * min((n + 1) / warmup, (1 + math.cos(math.pi * max(0, n - warmup) / (steps - warmup))) / 2)
            for n in range(steps)
        ]

    expected = cosine(60) + cosine(40) + cosine(100)
    np.testing.assert_allclose(rates("adamw", 200, [60, 100]), expected, atol=1e-6)


def test_a_schedule_free_optimiser_stays_at_its_rate():
    np.testing.assert_array_equal(
        rates("riemannian_schedule_free", 300, [200]), rates("riemannian_schedule_free", 300, [])
    )


def final_training(folder, *options, name="metric"):
    parsed = arguments.parse([*SMALL, *QUICK, *options, "--out", str(folder)])
    prepared = plan.prepare(arguments.parse([*SMALL, *QUICK, *options, "--resume", "--out", str(folder)]))
    assert prepared.steps == parsed.steps
    fresh = loop.start(prepared.problem, prepared.contestants[name].transformation)
    with checkpoint.Checkpoints(folder / "checkpoints" / name) as checkpoints:
        return checkpoints.restore(fresh)


@pytest.mark.parametrize("interrupted", [False, True], ids=["at once", "interrupted"])
def test_an_extended_run_is_one_with_that_schedule_to_the_same_bits(copied, monkeypatch, capsys, interrupted):
    if interrupted:
        save = checkpoint.Checkpoints.save

        def stops(self, current):
            save(self, current)
            if current.step == 30 and self.folder.name == "metric":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.Checkpoints, "save", stops)
            assert run(*QUICK, "--steps", "40", "--resume", out=copied) == 130
        assert record(copied)["extended_at"] == [20]
    capsys.readouterr()
    assert run(*QUICK, "--steps", "40", "--resume", out=copied) == 0
    assert f"from step 20 to 40: {EXTENDED}\n" in capsys.readouterr().out
    assert record(copied)["status"] == "finished"
    assert record(copied)["arguments"]["steps"] == 40
    assert record(copied)["extended_at"] == [20]
    extended = final_training(copied, "--steps", "40")
    assert extended.step == 40
    assert [row["step"] for row in extended.history["training"]] == [10, 20, 30, 40]

    parsed = arguments.parse([*SMALL, *QUICK, "--steps", "40", "--out", str(copied)])
    parsed.out = copied / "other"
    prepared = plan.prepare(parsed)
    contestant = plan.build_contestants(parsed, [20])["metric"]
    unbroken = loop.start(prepared.problem, contestant.transformation)
    for _ in loop.train(
        unbroken,
        prepared.problem,
        contestant.transformation,
        contestant.schedule,
        steps=40,
        batch_size=parsed.batch_size,
        seed=parsed.seed,
        evaluate_every=parsed.evaluate_every,
    ):
        pass
    jax.tree.map(np.testing.assert_array_equal, extended.training, unbroken.training)


def test_it_can_be_extended_again_and_not_shortened(copied, capsys):
    assert run(*QUICK, "--steps", "30", "--resume", out=copied) == 0
    assert run(*QUICK, "--steps", "50", "--resume", out=copied) == 0
    assert record(copied)["extended_at"] == [20, 30]
    capsys.readouterr()
    assert run(*QUICK, "--steps", "30", "--resume", out=copied) == 2
    assert "has --steps 50: give the same, or more once it has finished\n" in capsys.readouterr().err


def test_a_run_without_its_checkpoints_is_not_trained_anew_in_silence(copied, capsys):
    shutil.rmtree(copied / "checkpoints")
    before = record(copied)
    assert run(*QUICK, "--steps", "40", "--resume", out=copied) == 2
    assert "holds no checkpoint of a run that has reached step 20: bring it back" in capsys.readouterr().err
    assert record(copied)["histories"] == before["histories"]


def test_a_run_that_has_not_finished_gets_no_more_steps(copied, capsys):
    path = copied / "record.json"
    path.write_text(json.dumps(record(copied) | {"status": "running"}))
    assert run(*QUICK, "--steps", "40", "--resume", out=copied) == 2
    assert "has --steps 20: give the same, or more once it has finished\n" in capsys.readouterr().err


def test_a_picture_of_the_energy_goes_on_with_the_run(copied, capsys):
    assert run(*QUICK, "--steps", "20", "--resume", "--energy", out=copied) == 0
    before = (copied / "energy.png").read_bytes()
    capsys.readouterr()
    assert run(*QUICK, "--steps", "40", "--resume", out=copied) == 0
    assert "energy.png" in capsys.readouterr().out
    assert (copied / "energy.png").read_bytes() != before


def test_a_finished_run_draws_its_pictures_again_and_logs_nothing(copied, capsys):
    (copied / "curves.png").unlink()
    assert run(*QUICK, "--steps", "20", "--resume", out=copied) == 0
    assert (copied / "curves.png").exists()
    capsys.readouterr()
    assert run(*QUICK, "--steps", "20", "--resume", "--tensorboard", out=copied) == 2
    assert "has finished without it" in capsys.readouterr().err


def test_a_run_that_has_diverged_is_not_extended(tmp_path, capsys):
    diverging = [*QUICK, "--learning-rate", "1e30"]
    assert run(*diverging, "--steps", "11", out=tmp_path / "run") == 0
    capsys.readouterr()
    assert run(*diverging, "--steps", "30", "--resume", out=tmp_path / "run") == 2
    assert "has diverged, and more steps would train nothing" in capsys.readouterr().err

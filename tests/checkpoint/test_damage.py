"""What the trainer makes of a save that was cut short, and of checkpoints that are damaged or not its own."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train.checkpoint import Checkpoints
from riemann_optax.examples.train.loop import Run, Training


def run_at(step):
    # A single array: where several are damaged, Orbax reports the first one and lets the others complain, on
    # stderr and of an event loop that is gone.
    return Run(Training({"w": jnp.full([64, 8], step)}, optax.EmptyState()), step, {"training": [step]})


def save(folder, *steps):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(run_at(step))


def restore(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(run_at(0))


# Saves step 10, then step 20 up to the very last moment, when all is written and nothing has its name yet:
# there it kills itself. Before each earlier touch of the file system it leaves a copy of what a kill would.
CUT_SHORT = """
import os, shutil, signal, sys, threading
from pathlib import Path
from tests.checkpoint.test_damage import save

folder, copies = map(Path, sys.argv[1:])
save(folder, 10)
guard = threading.RLock()
copying = False

def before_each_touch(event, arguments):
    global copying
    if event not in ("open", "os.mkdir", "os.rename") or not str(arguments[0]).startswith(f"{folder}/20"):
        return
    with guard:
        if copying:
            return
        if event == "os.rename" and str(arguments[1]) == f"{folder}/20":
            os.kill(os.getpid(), signal.SIGKILL)
        copying = True
        copy = copies / str(len(os.listdir(copies)))
        try:
            shutil.copytree(folder, copy)
        except OSError:  # another thread moved a file meanwhile: no moment that there was
            shutil.rmtree(copy)
        copying = False

sys.addaudithook(before_each_touch)
save(folder, 20)
"""


def test_a_save_that_is_killed_leaves_the_checkpoint_before_it(tmp_path):
    folder, copies = tmp_path / "folder", tmp_path / "copies"
    copies.mkdir()
    command = [sys.executable, "-c", CUT_SHORT, str(folder), str(copies)]
    process = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=120
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    (unfinished,) = folder.glob("20*")
    assert {path.name for path in unfinished.iterdir()} >= {"training", "manifest", "history"}
    moments = [folder, *copies.iterdir()]
    assert len(moments) > 10
    for moment in moments:
        restored = restore(moment)
        assert restored.step == 10
        assert restored.history == {"training": [10]}
        np.testing.assert_array_equal(restored.training.parameters["w"], 10)
    save(folder, 20)
    assert restore(folder).step == 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save(folder, 10, 20)
    return folder


def truncate(folder, pattern):
    for path in folder.rglob(pattern):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-4])


def replace(folder, item, content):
    (folder / item / "metadata").write_text(content)


def foreign(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model.pickle").write_bytes(pickle.dumps({"w": 1}))


DAMAGES = {
    "arrays cut short": (lambda folder: truncate(folder, "d/*"), "is damaged"),
    "array index cut short": (lambda folder: truncate(folder, "_METADATA"), "is damaged"),
    "history is no JSON": (lambda folder: replace(folder, "history", "{"), "is damaged"),
    "nested without end": (lambda folder: replace(folder, "manifest", "[" * 100_000), "is damaged"),
    "another manifest": (lambda folder: replace(folder, "manifest", '{"format": 1}'), "manifest is damaged"),
    "arrays gone": (lambda folder: shutil.rmtree(folder / "training"), "no whole checkpoint.*training"),
    "of an older release": (lambda folder: shutil.rmtree(folder / "manifest"), "an older release.*manifest"),
    "of another program": (foreign, "or another program"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line_and_the_one_before_is_good(whole, tmp_path, name):
    damage, message = DAMAGES[name]
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    damage(folder / "20")
    with pytest.raises(InputError, match=f"^--resume: .*/20.* {message}") as caught:
        restore(folder)
    assert "\n" not in str(caught.value)
    assert "before" in str(caught.value) or "another checkpoint" in str(caught.value)
    shutil.rmtree(folder / "20")
    assert restore(folder).step == 10


def test_a_checkpoint_of_another_model_names_the_arrays(whole):
    with Checkpoints(whole) as checkpoints, pytest.raises(InputError) as caught:
        checkpoints.restore(Run(Training({"v": jnp.zeros(3)}, optax.EmptyState())))
    message = str(caught.value)
    assert "only in the checkpoint: .parameters['w']; only here: .parameters['v']" in message
    assert "\n" not in message


def test_a_checkpoint_of_an_older_format_is_refused(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    path = folder / "20" / "manifest" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0, "release": "0.0.1"}))
    with pytest.raises(InputError, match=r"--resume: .*/20: the checkpoint has format 0 .* release 0\.0\.1"):
        restore(folder)


def test_nothing_is_read_with_pickle(whole, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle can run any code")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    np.testing.assert_array_equal(restore(whole).training.parameters["w"], 20)

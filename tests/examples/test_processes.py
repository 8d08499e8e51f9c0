"""The trainer on several devices and in several processes, against one device."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from riemann_optax.examples import datasets, models
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train import arguments as command_line
from riemann_optax.examples.train import checkpoint, loop, plan, processes
from riemann_optax.examples.train.placement import Placement

ARGUMENTS = ["--model", "mlp", "--baseline", "none", "--steps", "10", "--quiet"]
# Sums over a batch and over weights are taken in another order: float32 rounding, of which 3e-7 was seen in
# losses and 9e-7 of the largest element in state.
TOLERANCE = 3e-6


@pytest.fixture(scope="module")
def digits():
    dataset = datasets.load("digits")
    return models.build("mlp", dataset, seed=0), dataset


def start(digits, shard):
    """A problem, its optimiser and a run of no steps, as the trainer makes them from its arguments."""
    contestant = plan.build_contestants(command_line.parse(ARGUMENTS))["metric"]
    problem = loop.Problem(*digits, Placement(shard))
    return problem, contestant, loop.start(problem, contestant.transformation)


def finish(problem, contestant, run):
    options = {"steps": 10, "batch_size": 32, "seed": 0, "evaluate_every": 10}
    list(loop.train(run, problem, contestant.transformation, contestant.schedule, **options))
    return run


@pytest.fixture(scope="module")
def one_device(digits):
    return finish(*start(digits, "none"))


def assert_same_history(history, expected):
    parts = [{name: h[name] for name in ("training", "validation", "metric")} for h in (history, expected)]
    (leaves, structure), (expected_leaves, expected_structure) = map(jax.tree.flatten, parts)
    assert structure == expected_structure
    np.testing.assert_allclose(leaves, expected_leaves, rtol=TOLERANCE)


def assert_same_training(training, expected):
    arrays = zip(jax.tree.leaves(training), jax.tree.leaves(expected), strict=True)
    # The scalars are counters, and energies that the history holds as well.
    for leaf, wanted in ((leaf, wanted) for leaf, wanted in arrays if wanted.ndim):
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


# What one of two processes does: a run, and then another one into the same folder, which the leader refuses.
PROCESS = """
import sys
from riemann_optax.examples.errors import InputError
from riemann_optax.examples.train import __main__ as train, arguments, plan, processes
code = train.main(sys.argv[1:])
try:
    processes.by_leader(lambda: plan.prepare_folder(arguments.parse(sys.argv[1:])))
except InputError as error:
    print(error, file=sys.stderr)
sys.exit(code)
"""


def start_pair(*arguments):
    """Run two processes of two devices each, which meet at a port nobody uses; return what they leave."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    # Programs that run for a moment are not worth optimising.
    environment = {"JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-c", PROCESS, *ARGUMENTS, *arguments, "--coordinator", address]
    pair = [
        subprocess.Popen(
            [*command, "--processes", "2", "--process", str(number)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in pair]
    finally:  # a process that waits for the other one must not outlive the test
        for process in pair:
            process.kill()
            process.wait()
    return [(process.returncode, *output) for process, output in zip(pair, outputs, strict=True)]


def test_two_processes_train_as_one_does_and_one_restores_their_checkpoint(digits, one_device, tmp_path):
    folder = tmp_path / "run"
    for _ in range(3):
        outcomes = start_pair("--shard", "all", "--out", str(folder))
        # Somebody else may have taken the port meanwhile.
        if "Failed to start RPC server" not in outcomes[0][2]:
            break
    (code, shown, errors), (other_code, other_shown, other_errors) = outcomes
    assert (code, other_code) == (0, 0), errors + other_errors
    assert "held-out accuracy" in shown
    assert "held-out accuracy" not in other_shown
    for message in (errors, other_errors):
        assert f"--out {folder} is not empty: add --resume or --overwrite" in message
    record = json.loads((folder / "record.json").read_text())
    assert_same_history(record["histories"]["metric"], one_device.history)
    with checkpoint.Checkpoints(folder / "checkpoints" / "metric") as checkpoints:
        restored = checkpoints.restore(start(digits, "none")[-1])
    assert restored.step == 10
    assert_same_training(restored.training, one_device.training)


def test_eight_devices_train_as_one_does(digits, one_device):
    run = finish(*start(digits, "data"))
    assert_same_history(run.history, one_device.history)
    assert_same_training(run.training, one_device.training)


@pytest.mark.parametrize(("shard", "shares"), [("data", 1), ("all", 8)])
def test_each_device_holds_its_share(digits, shard, shares):
    problem, _, run = start(digits, shard)
    for path, leaf in jax.tree.leaves_with_path(run.training):
        # The bias of the last layer has ten entries, which eight devices do not divide.
        parts = shares if any(size % 8 == 0 for size in leaf.shape) else 1
        # One value per row (or column) is spread where the rows are; here one side of each matrix is.
        if 1 in leaf.shape and leaf.sharding.is_fully_replicated:
            assert ".phi.rows" in jax.tree_util.keystr(path) or ".phi.columns" in jax.tree_util.keystr(path)
            parts = 1
        assert {piece.data.size for piece in leaf.addressable_shards} == {leaf.size // parts}
    batch = problem.placement.batches({"labels": np.zeros([10, 32], np.int32)})["labels"]
    assert {piece.data.shape for piece in batch.addressable_shards} == {(10, 4)}


def test_a_port_in_use_ends_in_one_line():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"--coordinator {address}: could not connect") as caught:
            processes.connect(processes.Cluster(address, 2, 0))
    assert "\n" not in str(caught.value)

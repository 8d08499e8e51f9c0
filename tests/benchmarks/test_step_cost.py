"""The measurement itself, on arrays so small that the timings mean nothing; no timing is asserted."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks.step_cost import __main__ as command
from benchmarks.step_cost import measure, mesh, problems, targets


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("step_cost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            problems.PROBLEMS, "matrix", lambda: {"kernel": jax.ShapeDtypeStruct((32, 64), jnp.float32)}
        )
        chosen = [
            "sgd",
            "adam",
            "stateless metric",
            "averaged phi",
            "averaged phi, bf16 state",
            "factored phi",
        ]
        options = ["--rounds", "4", "--steps", "1", "--no-mesh", "--out", str(folder)]
        command.main(["--problems", "matrix", *options, "--optimizers", *chosen])
    assert (folder / "step_cost.png").stat().st_size > 10_000
    return json.loads((folder / "step_cost.json").read_text())


def test_state_bytes_are_those_of_the_arrays(record):
    """Besides counters of four bytes: values of four bytes, of two, and of one row and one column."""
    costs = {
        name: row["state_bytes_per_parameter"] * 32 * 64 for name, row in record["costs"]["matrix"].items()
    }
    counters = 8
    assert costs["sgd"] == 0
    assert costs["stateless metric"] <= counters
    assert 0 <= costs["averaged phi"] - 4 * 32 * 64 <= counters
    assert 0 <= costs["averaged phi, bf16 state"] - 2 * 32 * 64 <= counters + 4
    assert 0 <= costs["factored phi"] - 4 * (32 + 64) <= counters


def test_targets_are_recorded_with_what_was_measured(record):
    by_name = {
        (t["optimizer"], t["quantity"], t["reference"]): t
        for t in record["targets"]
        if t["problem"] == "matrix"
    }
    target = by_name["averaged phi", "seconds", "adam"]
    costs = record["costs"]["matrix"]
    assert target["measured"] == costs["averaged phi"]["seconds"] / costs["adam"]["seconds"]
    assert by_name["factored phi", "seconds", "adafactor"]["measured"] is None  # was not among the chosen


def test_a_target_without_a_reference_is_absolute():
    cost = measure.Cost(1.0, 0.0, 1.0, 12.0, 0.5)
    target = targets.Target("matrix", "sgd", "state_bytes_per_parameter", 0.4)
    assert target.measured({"matrix": {"sgd": cost}}) == 0.5
    assert target.measured({}) is None


def test_on_eight_devices_plain_jit_replicates_and_ours_does_not():
    found = mesh.measure(["adam", "averaged phi, momentum", "factored phi"])
    assert found["adam"]["state_bytes_over_ideal"] == 8
    assert found["averaged phi, momentum"] == {"collectives": {}, "state_bytes_over_ideal": 1}
    assert found["factored phi"]["collectives"] == {"all-reduce": 1}


@pytest.mark.parametrize("arguments", [["--rounds", "3"], ["--steps", "0"], ["--optimizers", "none"]])
def test_bad_arguments_are_refused_in_words(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err

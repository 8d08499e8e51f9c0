"""Records of benchmark runs: kept at once, read again to the last digit, cut lines dropped."""

import json

import numpy as np
import pytest

from benchmarks.shared.records import Records, rounded


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.jsonl"


def filled(path, count):
    """Write so many results; return the file."""
    records = Records(path, ["command"])
    for seed in range(count):
        records.get({"seed": seed}, lambda seed=seed: {"loss": seed})
    return path.read_bytes()


def never():
    raise AssertionError("made again")


def test_what_is_recorded_is_not_made_again(path):
    made = Records(path, ["command"]).get(
        {"seed": 1, "rate": 0.1}, lambda: {"loss": np.array([1 / 3, np.inf])}
    )
    again = Records(path, ["another command"])
    assert {"rate": 0.1, "seed": 1} in again
    assert again.get({"rate": 0.1, "seed": 1}, never) == made == {"loss": [0.33333, None]}


def test_a_line_cut_short_is_dropped_and_made_again(path):
    whole = filled(path, 3)
    path.write_bytes(whole[:-7])
    again = Records(path, ["command"])
    assert {"seed": 1} in again
    assert {"seed": 2} not in again
    assert path.read_bytes() == whole[:-7]  # to read is not to write: another process may be at this line
    again.get({"seed": 2}, lambda: {"loss": 2})
    assert path.read_bytes() == whole


def test_a_line_that_only_lacks_its_end_counts(path):
    whole = filled(path, 2)
    path.write_bytes(whole[:-1])
    again = Records(path, ["command"])
    again.get({"seed": 1}, never)
    again.get({"seed": 2}, lambda: {"loss": 2})
    assert path.read_bytes() == filled(path.with_name("other.jsonl"), 3)


def test_a_line_that_another_process_finishes_is_left_to_it(path):
    whole = filled(path, 3)
    path.write_bytes(whole[:-7])
    again = Records(path, ["command"])
    path.write_bytes(whole)
    again.get({"seed": 3}, lambda: {"loss": 3})
    assert {"seed": 2} in Records(path)
    assert len(Records(path)) == 4


@pytest.mark.parametrize("damage", [b"<<<<<<< ours", b"\xff{}", b"5", b"[]", b'{"key": {}}'])
def test_a_damaged_line_is_named_and_nothing_is_lost(path, damage):
    lines = filled(path, 3).split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"records\.jsonl, line 3 is no result: mend it, or take"):
        Records(path, ["command"])
    assert path.read_bytes() == before


def test_an_empty_line_holds_nothing(path):
    lines = filled(path, 3).split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"", *lines[2:]]))
    assert len(Records(path)) == 3


def test_every_result_names_what_it_was_made_with(path):
    for command in (["first"], ["second"], ["first"]):
        records = Records(path, command)
        records.get({"command": command[0], "number": len(list(records))}, dict)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    made_with = {line["environment"]: line["made_with"] for line in lines if "made_with" in line}
    results = [line for line in lines if "key" in line]
    assert [made_with[line["environment"]]["command"] for line in results] == ["first", "second", "first"]
    assert len(made_with) == 2
    assert all("jax" in entry["versions"] for entry in made_with.values())


def test_numbers_are_rounded_not_lost():
    assert rounded({"a": [1.0 / 3, np.float32(1e-30), 7], "b": np.nan, "c": "text"}) == {
        "a": [0.33333, 1e-30, 7],
        "b": None,
        "c": "text",
    }


@pytest.mark.parametrize("rest", [b"5", b"[]", b'{"a": 1}', b'{"key": {"seed": 9}}'])
def test_a_last_line_that_is_no_result_does_not_count(path, rest):
    whole = filled(path, 2)
    path.write_bytes(whole + rest)
    again = Records(path, ["command"])
    assert len(again) == 2
    again.get({"seed": 2}, lambda: {"loss": 2})
    assert path.read_bytes() == filled(path.with_name("other.jsonl"), 3)


def test_a_file_that_got_shorter_or_is_gone_is_written_on(path):
    for gone in (False, True):
        path.write_bytes(b'{"key": {"seed": 0}, "result": {"loss": 0.123')
        records = Records(path, ["command"])
        path.unlink() if gone else path.write_bytes(b"")
        records.get({"seed": 1}, lambda: {"loss": 1})
        assert [entry["key"] for entry in Records(path)] == [{"seed": 1}]

"""The reader's table of all streams: ranks, what is bold, and what a stream or a record does not have."""

import numpy as np

from benchmarks.continual.streams import STREAMS
from benchmarks.report import continual, streams

OURS = "metric + pull + noise"
CHAIN = STREAMS["online_permuted"].ours


def entry(stream, method, values, data="digits", measure=None, **others):
    key = {"suite": "continual", "stream": stream, "data": data, "method": method, "phase": "fresh"}
    result = {measure or STREAMS[stream].measure: values} | others
    return {"key": key | {"point": {}}, "result": result}


ENTRIES = [
    entry("slowly_changing", OURS, [1.0, 2.0, 3.0]),  # a standard error of .577
    entry("slowly_changing", "SGD", [1.5, 2.5, 3.5]),
    entry("slowly_changing", "Adam", [5.0, 6.0, 7.0]),
    entry("online_permuted", OURS, [70.0, 72.0], "mnist", **{"dead units": [1.0, 2.0]}),
    entry("online_permuted", "SGD", [80.0, 82.0], "mnist"),
    entry("online_permuted", CHAIN, [60.0, 62.0], "mnist"),
    entry("online_permuted", "RMSprop", [None, 90.0], "mnist"),
]


def test_ranks_follow_the_direction_of_a_measure_and_a_diverged_run_is_last():
    found = streams.every_stream(ENTRIES)
    assert list(found) == [("slowly_changing", "digits"), ("online_permuted", "mnist")]
    assert streams.ranks(found) == {OURS: [1, 2], "SGD": [2, 1], "Adam": [3], CHAIN: [3], "RMSprop": [4]}


def test_bold_is_the_best_and_what_is_within_its_standard_error():
    found = streams.every_stream(ENTRIES)
    assert streams.leaders("slowly_changing", found["slowly_changing", "digits"]) == {OURS, "SGD"}
    assert streams.leaders("online_permuted", found["online_permuted", "mnist"]) == {"SGD"}
    lines = streams.readers_table(found).splitlines()
    assert "online permuted, mnist: accuracy, last tenth, more is better" in lines[0]
    cells = {line.split(" | ")[0].strip("| "): line for line in lines[2:]}
    assert cells[OURS] == f"| {OURS} | 1.5 | 2 | **2 ± 0.58** | 71 ± 1 |"
    assert cells["SGD"] == "| SGD | 1.5 | 2 | **2.5 ± 0.58** | **81 ± 1** |"
    assert cells["Adam"] == "| Adam | 3.0 | 1 | 6 ± 0.58 | - |"
    assert cells["RMSprop"] == "| RMSprop | 4.0 | 1 | - | diverged |"
    assert list(cells)[:2] == [OURS, "SGD"]  # those of the most streams are first


def test_what_old_records_lack_is_a_dash():
    found = streams.every_stream(ENTRIES)["online_permuted", "mnist"]
    lines = continual.stream_table(found).splitlines()
    assert lines[0].endswith("| dead units |")
    by_method = {line.split(" | ")[0].strip("|* "): line.rsplit("|", 2)[1].strip() for line in lines[2:]}
    assert (by_method[OURS], by_method["SGD"]) == ("1.5", "-")
    assert "dead units" not in continual.stream_table(
        streams.every_stream(ENTRIES)["slowly_changing", "digits"]
    )


def test_the_share_that_controls_keep_needs_plain_descent():
    only_ours = [entry("online_permuted", CHAIN, [70.0, 72.0])]
    assert continual.shares(only_ours) == {}
    assert np.isfinite(continual.found_streams(only_ours)["online_permuted"][0].mean)

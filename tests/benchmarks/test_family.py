"""One setting for a family of streams: chosen by the right streams, judged in pairs."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.continual import __main__ as command
from benchmarks.continual import family
from benchmarks.continual.family import Family, judged
from benchmarks.continual.methods import BASE
from benchmarks.report.continual import family_table
from benchmarks.shared.records import Records


class Laboratory:
    """A stream whose loss at a rate is known: a parabola in its logarithm, to the base 2."""

    def __init__(self, best, tried, higher=False):
        self.best, self._tried = best, tried
        self.stream = SimpleNamespace(higher=higher, size=SimpleNamespace(seeds=range(3)))
        self.run = []

    def loss(self, point):
        value = 1.0 + (np.log2(point["rate"]) - self.best) ** 2
        return value - 100.0 if self.stream.higher else value

    def tried(self, method):
        return [({"rate": 2.0**k}, self.loss({"rate": 2.0**k})) for k in self._tried]

    def losses(self, method, points, phase="tuning"):
        assert phase == "family tuning"
        known = [point for point, _ in self.tried(method)]
        assert not [point for point in points if point in known]
        return [self.loss(point) for point in points]

    def results(self, method, phase, points, seeds):
        self.run.append((phase, points, seeds))


def test_the_point_is_the_best_in_the_geometric_mean_and_the_stream_left_out_has_no_say():
    streams = {"a": Laboratory(0, range(-3, 4)), "b": Laboratory(2, range(8), higher=True)}
    both = Family(streams)
    means = {
        k: (1 + k**2) * (1 + (k - 2) ** 2) for k in range(-3, 8)
    }  # shares of plain descent's best, which is 1 on both
    assert means[1] == min(means.values())
    assert means[1] == 4 < means[0] == means[2] == 5
    assert both.choose("SGD") == {"rate": 2.0}
    assert both.choose("SGD", left_out="a") == {"rate": 4.0}
    assert both.choose("SGD", left_out="b") == {"rate": 1.0}
    both.work("SGD")
    assert streams["a"].run == [
        ("family", [{"rate": 2.0}], range(3)),
        ("left out", [{"rate": 4.0}], range(3)),
    ]


def test_only_the_voters_nominate():
    far = Laboratory(10, [10])
    assert Family({"a": Laboratory(0, [-1, 1]), "b": far}).choose("SGD", left_out="b")["rate"] in (0.5, 2.0)
    assert Family({"a": Laboratory(0, [-1, 1]), "b": far}).nominated("SGD", "b") == [{"rate": 1024.0}]


def entry(method, values, measure="accuracy", phase="family", data="digits"):
    key = {"suite": "continual", "stream": "label_permuted_digits", "method": method, "phase": phase}
    key["data"] = data
    return {"key": key, "result": {measure: values}}


def test_who_leads_is_judged_in_pairs():
    """The first leads, and whoever is behind by no more than a standard error of the paired difference."""
    entries = [
        entry("first", [80.0, 90.0, 70.0]),
        entry("near", [79.0, 91.0, 69.5]),
        entry("second", [79.0, 89.0, 69.1]),
        entry("diverged", [None, 99.0, 99.0]),
        entry("of another phase", [99.0, 99.0, 99.0], phase="left out"),
        entry("of other images", [99.0, 99.0, 99.0], data="mnist"),
    ]
    rows = judged(entries, "label_permuted_digits", "family")
    assert [row.method for row in rows] == ["first", "near", "second"]
    assert [row.leads for row in rows] == [True, True, False]
    behind = np.array([1.0, -1.0, 0.5])
    assert rows[1].behind == pytest.approx(behind.mean())
    assert rows[1].half == pytest.approx(4.303 * behind.std(ddof=1) / np.sqrt(3), rel=1e-3)
    assert judged(entries, "noise_shift", "family") == []


def test_the_table_of_a_family_has_both_choices_of_every_stream():
    entries = [
        {
            "key": {"stream": stream, "method": method, "phase": phase, "data": "digits"},
            "result": {measure: values},
        }
        for stream, measure in (("label_permuted_digits", "accuracy"), ("noise_shift", "loss"))
        for phase in (family.TOGETHER, family.APART)
        for method, values in (("SGD", [1.0, 2.0]), ("UPGD", [3.0, 5.0]))
    ]
    laid_out = family_table(entries, "digits")
    assert laid_out.count("\n") == 3
    assert "| SGD | 1.5 ± 0.5 | 1.5 ± 0.5 | **1.5 ± 0.5** | **1.5 ± 0.5** |" in laid_out
    assert "| UPGD | **4 ± 1** | **4 ± 1** | 4 ± 1 | 4 ± 1 |" in laid_out
    assert family_table(entries[1:4], "digits") == ""


def test_the_command_runs_a_family_and_goes_on(tmp_path, capsys):
    """At toy length: every stream gets both runs, and a second call adds nothing."""
    arguments = ["--family", "digits", "--quick", "--out", str(tmp_path), "--methods", BASE]
    command.main(arguments)
    assert "one setting for all" in capsys.readouterr().out
    path = tmp_path / "continual.quick.jsonl"
    entries = list(Records(path))
    for stream in family.FAMILIES["digits"]:
        phases = [e["key"]["phase"] for e in entries if e["key"]["stream"] == stream]
        assert phases.count("family") == phases.count("left out") == 1
        assert judged(entries, stream, "family")[0].method == BASE
    size = path.stat().st_size
    command.main(arguments)
    assert path.stat().st_size == size


def test_no_stream_is_in_two_families():
    """Its records would be those of whichever ran first."""
    streams = [stream for streams in family.FAMILIES.values() for stream in streams]
    assert len(set(streams)) == len(streams)

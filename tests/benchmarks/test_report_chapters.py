"""The chapters on robustness and energy: made of records alone, empty without them, counted by hand."""

import numpy as np

from benchmarks.energy.protocols import PROTOCOLS
from benchmarks.report import energy, robustness, sceptic
from benchmarks.robustness import runs, summary
from benchmarks.robustness.disturbances import PANELS
from benchmarks.shared.records import Records


def loss(name, conditions):
    """Ours is the better by a tenth but under wrong labels, and diverges after a large shock."""
    value = 1.0 + conditions.wrong_labels
    if name == runs.DROP_IN:
        value += 0.1 if conditions.wrong_labels else -0.1
        value = np.inf if conditions.shock > 100 else value
    return value


def test_disturbances_are_counted_and_a_missing_run_is_not_made(tmp_path, monkeypatch):
    path = tmp_path / "robustness.jsonl"
    assert robustness.recorded(path) == {}
    assert robustness.chapter({}) == robustness.sentence({}) == ""
    monkeypatch.setattr(
        runs, "run", lambda name, conditions, rates, seeds: np.full((11, 12), loss(name, conditions))
    )
    summary.rows(runs.Laboratory(Records(path)))
    monkeypatch.setattr(runs, "run", None)
    found = robustness.recorded(path)
    # Undisturbed levels stand in each panel once; the last panel has alpha, which AdamW lacks. Ours loses
    # under 3 shares of wrong labels and the largest shock.
    levels = [c for key, panel in PANELS.items() if key != "alpha" for c in panel.levels.values()]
    disturbed = sum(c != robustness.CALM for c in levels)
    assert robustness.counted(found, runs.DROP_IN, runs.ADAMW) == (disturbed - 4, disturbed)
    assert f"the smaller loss under {disturbed - 4} of {disturbed}" in robustness.sentence(found)
    line = next(line for line in robustness.chapter(found).splitlines() if "| 40% |" in line)
    assert line.split(" | ")[2] == "1.400 (1.400; 10)"
    assert line.split(" | ")[5] == "1.500 (1.500; 10)"


def test_energies_stand_under_their_protocol(tmp_path):
    records = Records(tmp_path / "energy.jsonl")
    assert energy.chapter(records) == ""
    spent = {"SGD": [400.0, 600.0], "riemannian_adamw": [200.0, 300.0]}
    for method, values in spent.items():
        key = {"suite": "energy", "protocol": "modern", "data": "mnist", "method": method, "phase": "fresh"}
        key |= {"hidden": list(PROTOCOLS["modern"].hidden), "point": {"rate": 0.1}}
        others = dict.fromkeys(("maintenance", "changed", "path", "distance", "examples"), values)
        records.put(key, {"energy": values} | others)
    text = energy.chapter(records)
    assert "### rectifiers" in text
    assert "mnist, to 96%" in text
    assert energy.claims(records) == []  # no published rule among these
    key |= {"method": "competition by layer"}
    records.put(key, {"energy": [125.0, 375.0]} | others)
    (claim,) = energy.claims(records)
    assert "riemannian_adamw over competition by layer" in claim.text
    assert claim.value == 1.0
    key |= {"method": "synaptic caching, nothing fades"}
    records.put(key, {"energy": [100.0, None]} | others)  # half as much on the seed on which it arrives
    (claim,) = energy.claims(records)
    assert "riemannian_adamw over synaptic caching, nothing fades" in claim.text
    assert claim.value == 2.0
    assert claim.note == "means of 1 of 2 fresh seeds, the other misses the rest"
    rows = [line.split(" | ") for line in text.splitlines() if "rate 0.1" in line]
    assert rows[0][0] == "| riemannian_adamw"  # the cheapest first
    assert rows[1][1:3] == ["500 +- 100", "2.00 +- 0"]


def test_a_rule_at_several_widths_has_a_column_for_each(tmp_path):
    records = Records(tmp_path / "energy.jsonl")
    spent = {("SGD", 50): [30.0, 50.0], ("SGD", 1000): [60.0, None], ("synaptic caching", 50): [10.0, 20.0]}
    for (method, width), values in spent.items():
        key = {"suite": "energy", "protocol": "van_rossum_pache", "data": "digits", "method": method}
        key |= {"phase": "fresh", "hidden": [width], "point": {"rate": 0.1}}
        others = dict.fromkeys(("maintenance", "changed", "path", "distance", "examples"), values)
        records.put(key, {"energy": values} | others)
    heading, _, *lines = energy.widths_table(records).splitlines()
    assert heading == "| rule | 50 hidden units | 1,000 hidden units |"
    assert lines == ["| SGD | 40 ± 10 | 1 missed |"]  # the other rule ran at one width


def test_forms_are_named_as_a_reader_knows_them_the_shortest_run_first():
    def record(steps, losses):
        rows = [{"form": form, "validation_by_seed": values} for form, values in losses.items()]
        return {"protocol": {"length": {"width": 64, "depth": 2, "steps": steps}}, "rows": rows}

    assert sceptic.of_forms({}) == ""
    long = record(10_000, {"AdamW": [1.5, 1.7], "permuted phi in the basis": [9.0, 9.0]})
    short = record(200, {"AdamW": [2.5, 2.5], "eigenbasis, one-sided": [2.25, 2.35]})
    assert (
        "width 64, depth 2, 200 steps: `riemannian_eigenbasis` 2.300, AdamW 2.500; "
        "width 64, depth 2, 10,000 steps: AdamW 1.600. "
    ) in sceptic.of_forms({"long": long, "small": short})

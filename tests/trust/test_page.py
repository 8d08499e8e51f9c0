"""The page is what its command writes from the records, and says what is not as it should be."""

import copy

import pytest

from tests.trust import page
from tests.trust.__main__ import cases, told


@pytest.fixture(scope="module")
def records():
    return page.read()


def test_the_page_is_what_the_command_writes(records):
    assert page.PAGE.read_text() == page.write_page(records), "run python -m tests.trust"


def test_every_survivor_is_explained(records):
    for one in records["mutation"]["survivors"]:
        assert one["verdict"] in ("equivalent", "accuracy", "default", "removed"), one
        assert one["why"], one


def test_the_records_reach_what_was_asked_for(records):
    assert min(page.tried(records["inputs"], "trees")) >= 2_000
    assert all(found["as_drawn"]["share"] >= 0.85 for found in records["mutation"]["scopes"].values())
    assert records["mutation"]["controls_killed"] == 0
    parts = records["coverage"]["parts"].values()
    assert sum(part["covered_lines"] for part in parts) >= 0.95 * sum(
        part["num_statements"] for part in parts
    )


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("inputs", "cases", "test_one"), {"passed": False}, "**fail: test_one**"),
        (("refusals", "not_passed"), ["test_two"], "**fail: test_two**"),
        (
            ("long_runs", "phis", "phi.rwalk", "float32", "least"),
            -1.0,
            "**outside of the bounds: phi.rwalk, float32**",
        ),
        (("reproducible", "differences", "again", "phi.rwalk"), 0.1, "**differs by 0.1**"),
    ],
)
def test_a_failure_is_on_the_page(records, where, value, said):
    changed = copy.deepcopy(records)
    *path, last = where
    inside = changed
    for name in path:
        inside = inside[name]
    inside[last] = value
    assert said in page.write_page(changed)
    assert said not in page.write_page(records)


def test_a_report_is_read(tmp_path):
    report = tmp_path / "report.xml"
    trees = '<properties><property name="trees" value="{}"/></properties>'
    tests = {"a": trees.format(3), "b": trees.format(2) + "<failure/>", "c": "<error/>", "d": ""}
    told_of = (f'<testcase classname="m" name="{name}">{inside}</testcase>' for name, inside in tests.items())
    report.write_text(f"<testsuites><testsuite>{''.join(told_of)}</testsuite></testsuites>")
    found = cases(report)
    assert found == {
        "m::a": {"passed": True, "trees": 3},
        "m::b": {"passed": False, "trees": 2},
        "m::c": {"passed": False},
        "m::d": {"passed": True},
    }
    assert told(found) == {"tests": 4, "not_passed": ["m::b", "m::c"]}

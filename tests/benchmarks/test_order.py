"""The order of imports inside benchmarks: what all share, each question by itself, the report of them all."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# From below to above: a room may use those of the rows before its own and itself, none beside or above it.
ORDER = (
    ("shared",),
    (
        *("continual", "eigenbasis", "energy", "figure1", "geometry_picture"),
        *("phi_cost", "step_cost", "time_to_target", "trainer"),
    ),
    ("drop_in", "other_losses", "robustness"),
    ("report",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FILES = {
    ".".join(path.relative_to(BENCHMARKS.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(BENCHMARKS.rglob("*.py"))
}
MODULES = [name for name in FILES if "." in name]


def uses(name):
    """The modules of benchmarks that a module imports, outside of functions and within them."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import hides where it leads"
            # What is imported from a package is a module of it, or else a name in its __init__.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [one if one in FILES else node.module for one in inner]
        yield from (one for one in names if one in MODULES)


def room(name):
    return name.split(".")[1]


def test_every_room_has_its_place():
    assert {room(name) for name in MODULES} == set(LEVEL)


@pytest.mark.parametrize("name", MODULES)
def test_no_arrow_leads_up_or_aside(name):
    for used in uses(name):
        below = LEVEL[room(used)] < LEVEL[room(name)]
        assert below or room(used) == room(name), f"{name} must not use {used}"


def test_no_circle_inside_a_room():
    """Graphlib raises CycleError, which names the circle."""
    order = list(TopologicalSorter({name: set(uses(name)) - {name} for name in MODULES}).static_order())
    assert order.index("benchmarks.shared.records") < order.index("benchmarks.report.compose")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_one_idea(name):
    assert len(FILES[name].read_text().splitlines()) <= 400, "perhaps two ideas"

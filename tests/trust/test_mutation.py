"""The mutation check itself: what it changes, which tests it chooses, and what it makes of a child."""

import ast
import contextlib
import time

import pytest

import riemann_optax as ro
from tests.trust.forked import changed, in_child
from tests.trust.mutants import mutants
from tests.trust.mutation import selection

SOURCE = '''"""A docstring with 1 + 1."""
def scaled(value: float = 0.5) -> float:
    if not value > 0:
        raise ValueError("a" + "b")
    return jnp.sqrt(value) - 2 * value
'''


def test_signs_terms_constants_conditions_and_functions_are_changed_and_nothing_else():
    found = {(one.line, one.before, one.after) for one in mutants("file.py", SOURCE)}
    assert found == {
        (2, "0.5", "0.25"),
        (3, "not value > 0", "(value > 0)"),
        (3, "not value > 0", "(not (not value > 0))"),
        (3, "value > 0", "((value) >= (0))"),
        (3, "0", "1"),
        (5, "jnp.sqrt(value) - 2 * value", "((jnp.sqrt(value)) + (2 * value))"),
        (5, "jnp.sqrt(value) - 2 * value", "(jnp.sqrt(value))"),
        (5, "jnp.sqrt(value)", "(value)"),
        (5, "2 * value", "((2) / (value))"),
        (5, "2 * value", "(2)"),
        (5, "2 * value", "(value)"),
        (5, "2", "3"),
    }


@pytest.mark.parametrize("module", [ro.phi.activity, ro.clip_metric, ro.add_metric_noise])
def test_every_mutant_of_a_module_is_another_program(module):
    path = module.__code__.co_filename
    with open(path) as file:
        source = file.read()
    original = ast.dump(ast.parse(source))
    for mutant in mutants(path, source):
        assert ast.dump(ast.parse(mutant.apply(source))) != original, mutant


def test_quick_tests_of_the_line_come_first_and_failing_ones_never():
    mutant = next(one for one in mutants("file.py", SOURCE) if one.line == 5)
    recorded = {
        "tests": ["slow", "quick", "failing", "elsewhere", "tests/contract/test_quick"],
        "seconds": [3.0, 0.1, 0.0, 0.0, 0.1],
        "lines": {"file.py": {"5": [0, 1, 2, 4], "2": [3]}},
        "failed": ["failing"],
    }
    assert selection(recorded, mutant, SOURCE, 10.0) == ["quick", "slow", "tests/contract/test_quick"]
    assert selection(recorded, mutant, SOURCE, 1.0) == ["quick"]
    default = next(one for one in mutants("file.py", SOURCE) if one.before == "0.5")
    recorded["lines"]["file.py"].pop("2")
    assert "quick" in selection(recorded, default, SOURCE, 10.0), "a default belongs to its function's tests"


@pytest.mark.filterwarnings("ignore:.*fork")  # the children do nothing that needs a thread
def test_a_child_answers_dies_or_takes_too_long():
    assert in_child(lambda: {"outcome": "killed"}, timeout=30) == {"outcome": "killed"}
    assert in_child(lambda: 1 // 0, timeout=30)["outcome"] == "died"
    assert in_child(lambda: time.sleep(60), timeout=0.2)["outcome"] == "timeout"


def test_a_changed_file_is_restored(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("before")
    with contextlib.suppress(KeyboardInterrupt), changed(path, "after"):
        assert path.read_text() == "after"
        raise KeyboardInterrupt
    assert path.read_text() == "before"

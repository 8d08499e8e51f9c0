"""The house rules that a program can check: the order of modules, public imports, sizes of files."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "riemann_optax"
FILES = sorted(PACKAGE.rglob("*.py"))
CAN_RUN_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text()


def declared_order():
    """The list of CONTRIBUTING: each module may use those before it, none after."""
    text = re.search(r"Each of this list may use.*?: (.*?)\.\n", CONTRIBUTING, flags=re.DOTALL).group(1)
    return [name.strip("/") for name in re.findall(r"`([\w/]+)`", text)]


def room(path):
    """The module or subpackage a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The modules a file imports, outside of functions and within them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_is_in_the_declared_order():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert {name for name in rooms if not name.startswith("_")} == set(declared_order())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_house_rules(path):
    order = declared_order()
    own = room(path)
    for module in imported(path):
        assert not re.search(r"\b_src\b", module), f"{module} is private to another package"
        assert module != "__future__.annotations", "deferred annotations hide optax.ScalarOrSchedule"
        parts = module.split(".")
        if parts[0] != "riemann_optax" or len(parts) == 1 or own not in order:
            continue
        if parts[1] in order and own != "examples":
            assert order.index(parts[1]) <= order.index(own), f"{own} must not use {parts[1]}"
    assert len(path.read_text().splitlines()) <= 400, "perhaps two ideas"


@pytest.mark.parametrize("folder", ["riemann_optax", "benchmarks"])
def test_nothing_reads_what_can_run_code(folder):
    """Checkpoints, data and records are arrays and JSON: no pickle, nor a library that reads one."""
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        assert not {name.split(".")[0] for name in imported(path)} & CAN_RUN_CODE, path
        assert not re.search(r"allow_pickle=True|\beval\(|\bexec\(|torch\.load", path.read_text()), path

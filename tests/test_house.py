"""The house rules that a program can check: the order of imports, public imports, sizes of files."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "riemann_optax"
FILES = sorted(PACKAGE.rglob("*.py"))
CAN_RUN_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

# A module may import only the modules listed before it. The first list is that of the package: ground, then
# the stations of the chain and the rooms, as updates pass them. Names with an underscore are not public.
ORDER = {
    "": (
        *(
            "_version",
            "_vocabulary",
            "_state_fields",
            "_tree",
            "_declare",
            "_check",
            "_conventions",
            "_axes",
            "_annotated",
        ),
        *("_varying", "_population"),
        *("boundary", "phi", "covector", "_observe", "metric", "edits", "scaling", "eigenbasis", "anchor"),
        *("wrappers",),
        *(
            "fields",
            "geometry",
            "_shooting",
            "_stopping",
            "flow",
            "supply",
            "inspect",
            "plot",
            "sharding",
            "checkpoint",
        ),
        *("optimizers",),
        *("testing", "examples"),
    ),
    "phi": (
        *("_state", "_layers", "_factors"),
        *("activity", "momentum", "combine", "controls", "energy", "presynaptic", "uncertainty", "structure"),
        *("third_factor", "curvature", "gauss_newton", "multiplicative", "gates"),
        *("learned_rates", "variational"),
        *("gradient_importance", "path_importance", "rwalk"),
    ),
    "edits": ("_edit", "lifting", "momentum", "rescaling", "competition", "noise", "checking"),
    "eigenbasis": (
        *("orthonormal", "layout", "account", "mesh", "coordinates", "bases", "carry", "schedule"),
        *("stack", "refresh", "frame", "whitening", "task_boundary", "transform", "each_axis"),
    ),
    "anchor": ("targets", "importance", "isometry", "spectral", "pull"),
    "wrappers": (
        *("_codes", "guard", "precision", "norm_matched", "kinds", "restart"),
        *("_hidden_layers", "_renewed_state", "unit_rules", "reset", "soft_resets"),
    ),
    "fields": ("_numeric", "base", "closed_forms"),
    "optimizers": (
        "momentum",
        "rate",
        "relative",
        "schedule_free",
        "adaptive",
        "aliases",
        "eigenbasis",
        "soap",
    ),
    "geometry": ("maps", "retraction", "spectrum"),
    "inspect": ("recording", "energy", "live", "_evaluate", "_grouping", "description", "describe"),
    "supply": (
        *(
            "marks",
            "inlining",
            "places",
            "stacks",
            "sources",
            "flow",
            "nonlinearity",
            "program",
            "links",
            "recorder",
            "taps",
            "calls",
            "derived",
            "arguments",
            "companions",
            "flax_nnx",
            "flax_linen",
            "haiku_modules",
            "equinox_modules",
        ),
        *("checking", "functional", "making", "step"),
    ),
    "checkpoint": ("matching", "saving", "growing", "compressed", "transplanting"),
    "testing": ("field", "_needs", "_sharded", "phi", "examples"),
    "examples": (
        *("errors", "data", "hub", "datasets", "models", "schedule"),
        *("train", "compare", "linen_loop"),
    ),
    "examples/train": (
        *("phis", "chooser", "optimizers", "placement", "loop", "processes", "record"),
        *("checkpoint", "display", "pictures", "tensorboard", "parser", "arguments", "plan", "__main__"),
    ),
}


def imported(path):
    """The modules a file imports, outside of functions and within them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def entries(room):
    """The files and folders of a room, without its own ``__init__``."""
    found = {path.stem for path in (PACKAGE / room).iterdir() if path.suffix == ".py"}
    found |= {path.name for path in (PACKAGE / room).iterdir() if (path / "__init__.py").exists()}
    return found - {"__init__"}


def violations(room, order):
    """Each import inside a room of what its order lists later or not at all, and of the room's own roof."""
    prefix = ".".join(["riemann_optax", *Path(room).parts])
    for path in sorted((PACKAGE / room).rglob("*.py")):
        own = path.relative_to(PACKAGE / room).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imported(path):
            if module == prefix and own in order:
                continue  # "from room import entry" is also seen as room.entry
            rest = module.removeprefix(prefix + ".").split(".")[0]
            if module.startswith(prefix + ".") and rest in order and order.index(rest) > order.index(own):
                yield f"{own} must not use {rest}"


def test_every_file_has_its_place_in_the_order():
    rooms = {str(path.parent.relative_to(PACKAGE)).removeprefix(".") for path in FILES}
    assert rooms == set(ORDER)
    for room, order in ORDER.items():
        assert entries(room) == set(order), room
        assert len(order) == len(set(order)), room


def test_the_order_of_the_package_can_be_kept_in_mind():
    assert len([name for name in ORDER[""] if not name.startswith("_")]) <= 20


@pytest.mark.parametrize("room", ORDER)
def test_imports_go_one_way(room):
    assert not list(violations(room, ORDER[room]))


def test_a_violation_is_seen():
    upside_down = tuple(reversed(ORDER["geometry"]))
    assert list(violations("geometry", upside_down)) == ["retraction must not use maps"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_house_rules(path):
    for module in imported(path):
        assert not re.search(r"\b_src\b", module), f"{module} is private to another package"
        assert module != "__future__.annotations", "deferred annotations hide optax.ScalarOrSchedule"
    assert len(path.read_text().splitlines()) <= 400, "perhaps two ideas"


def test_a_wrapper_knows_no_metric():
    stages = {f"riemann_optax.{name}" for name in ("covector", "metric", "edits", "scaling")}
    for path in (PACKAGE / "wrappers").glob("*.py"):
        assert not stages & set(imported(path)), path


@pytest.mark.parametrize("folder", ["riemann_optax", "benchmarks"])
def test_nothing_reads_what_can_run_code(folder):
    """Checkpoints, data and records are arrays and JSON: no pickle, nor a library that reads one."""
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        assert not {name.split(".")[0] for name in imported(path)} & CAN_RUN_CODE, path
        assert not re.search(r"allow_pickle=True|\beval\(|\bexec\(|torch\.load", path.read_text()), path


def test_what_is_marked_slow_exists():
    root = PACKAGE.parent
    text = (root / "conftest.py").read_text()
    listed = re.search(r"^SLOW = \((.*?)^\)", text, flags=re.DOTALL | re.MULTILINE).group(1)
    for place in re.findall(r'"([^"]+)"', listed):
        assert (root / place).exists(), place

"""Each alias has one recommended rate, the same wherever a reader meets it."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest

import riemann_optax as ro
from riemann_optax.examples.train import arguments as command_line
from riemann_optax.examples.train.optimizers import OPTIMIZERS
from riemann_optax.optimizers import RECOMMENDED_RATES

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "recipes").glob("*.md")),
]
TABLE = (ROOT / "docs" / "optimisers.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# With one of these the rate has other units, and no recommendation.
CHANGES_UNITS = {
    "riemannian_sgd": {"phi", "alpha", "momentum", "conformal", "role"},
    "riemannian_adamw": {"alpha", "conformal", "role", "multiply_by_parameter_scale"},
    "riemannian_schedule_free": {"alpha", "conformal", "role"},
    "riemannian_eigenbasis": {"alpha", "conformal", "role"},
}


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def code_of(path):
    """The code cells as one program, without the line that installs on Colab."""
    return re.sub(r"^ *%.*$", "    pass", "\n".join(cells(path, "code")), flags=re.MULTILINE)


def doctest_of(function):
    return "\n".join(re.findall(r"^ *(?:>>>|\.\.\.) ?(.*)$", inspect.getdoc(function), flags=re.MULTILINE))


PROGRAMS = {
    **{
        f"{page.stem} {number}": block
        for page in PAGES
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    },
    **{path.stem: code_of(path) for path in NOTEBOOKS},
    **{f"docstring of {name}": doctest_of(getattr(ro, name)) for name in RECOMMENDED_RATES},
}


def number(node, names):
    """The number that a rate is: a literal, a name for one, or the peak of one of Optax's schedules."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Call) and "schedule" in ast.unparse(node.func) and node.args:
        peaks = [keyword.value for keyword in node.keywords if keyword.arg == "peak_value"]
        return number((peaks or node.args)[0], names)
    return None


def rates_in(program):
    """Each alias that a program calls by the letter of its recommendation, and the rate it gives it."""
    tree, names = ast.parse(program), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = number(node.value, names)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        alias, said = ast.unparse(node.func).removeprefix("ro."), {keyword.arg for keyword in node.keywords}
        if alias in OPTIMIZERS and not said & CHANGES_UNITS[alias]:
            yield alias, number(node.args[0], names)


def prose_rates(text):
    """The numbers that a text says to begin at."""
    return [float(found) for found in re.findall(r"begin at (\d+(?:\.\d+)?)", re.sub(r"\s+", " ", text))]


def test_every_alias_has_one():
    assert set(RECOMMENDED_RATES) == set(OPTIMIZERS)
    assert set(OPTIMIZERS) == {name for name in ro.__all__ if name.startswith("riemannian_")}


@pytest.mark.parametrize("alias", RECOMMENDED_RATES)
def test_its_docstring_says_it(alias):
    assert prose_rates(inspect.getdoc(getattr(ro, alias))) == [RECOMMENDED_RATES[alias]]


def test_the_table_of_the_site_says_it():
    (whole,) = (part for part in TABLE.split("\n\n") if "without a rate begin at" in part)
    lines = [line for line in whole.splitlines() if line.startswith("|")]
    rows = [[cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in lines]
    (header,) = (row for row in rows if "without a rate begin at" in row)
    column = header.index("without a rate begin at")
    said = {
        row[0].removeprefix("ro.").split("(")[0]: row[column].split(",")[0]
        for row in rows
        if row[0].startswith("ro.")
    }
    assert {alias: float(rate) for alias, rate in said.items()} == RECOMMENDED_RATES


# Programs whose point is another rate: one that a reader brings along, or one of a toy problem.
OWN_RATE = ("moving", "from_torch", "applications", "optimisers", "precision")


@pytest.mark.parametrize("name", [name for name in PROGRAMS if not name.startswith(OWN_RATE)])
def test_what_a_reader_copies_uses_it(name):
    for alias, rate in rates_in(PROGRAMS[name]):
        assert rate in (None, RECOMMENDED_RATES[alias]), f"{name}: {alias} at {rate}"


def test_pages_and_notebooks_do_show_it():
    shown = {(alias, rate) for name, program in PROGRAMS.items() for alias, rate in rates_in(program)}
    assert ("riemannian_adamw", RECOMMENDED_RATES["riemannian_adamw"]) in shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_train_at_it(path):
    code, prose = code_of(path), "\n".join(cells(path, "markdown"))
    if "ro.riemannian_adamw(" in code:
        rates = re.findall(r"^RATE = (.+?)(?:  #.*)?$", code, flags=re.MULTILINE)
        constants = {float(rate) for rate in rates if "ro.starting_rate(" not in rate}
        assert constants <= {RECOMMENDED_RATES["riemannian_adamw"]}
    assert set(prose_rates(prose)) <= set(RECOMMENDED_RATES.values())


@pytest.mark.parametrize("alias", RECOMMENDED_RATES)
@pytest.mark.parametrize(
    "problem",
    [["--model", "mlp"], ["--model", "convnet"], ["--data", "mnist", "--model", "mlp"]],
    ids=" ".join,
)
def test_the_trainer_takes_it_for_images(alias, problem):
    """On text the metric takes AdamW's rate, and with it its place: ``tests/examples/test_train.py``."""
    assert command_line.parse([*problem, "--optimizer", alias]).learning_rate == RECOMMENDED_RATES[alias]


def test_the_trainer_says_it():
    told = re.sub(r"\s+", " ", command_line.build_parser().format_help())
    for alias, rate in RECOMMENDED_RATES.items():
        assert f"{rate:g} for {alias}" in told


def test_another_rate_is_seen():
    program = (
        "rate = optax.cosine_decay_schedule(0.01, 5)\ntx = ro.riemannian_adamw(rate)\nro.riemannian_sgd(3)"
    )
    assert list(rates_in(program)) == [("riemannian_adamw", 0.01), ("riemannian_sgd", 3)]
    assert list(rates_in("ro.riemannian_sgd(3, alpha=10.0)")) == []
    assert prose_rates("begin at\n0.2 and begin at 7") == [0.2, 7.0]

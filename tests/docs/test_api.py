"""The API pages are complete, and what is missing would be seen."""

import ast
import builtins
import doctest
import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def strict(monkeypatch):
    """The checks of the build, which lie beside its settings."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import strict

    yield strict
    sys.modules.pop("strict", None)


def test_every_public_name_has_a_page_and_every_argument_a_description(strict):
    assert not list(strict.faults())


def test_an_unlisted_name_and_a_silent_argument_are_seen(strict, monkeypatch):
    def silent(first, second):
        """Do something.

        Args:
          first: a number.
        """

    known = strict.public() | {"riemann_optax.silent": silent}
    known.pop("riemann_optax.describe")
    monkeypatch.setattr(strict, "public", lambda: known)
    assert list(strict.faults()) == [
        "riemann_optax.silent is public and on no page of docs/api",
        "riemann_optax.describe is on a page of docs/api and not public",
        "riemann_optax.silent: its docstring does not describe second",
    ]


def names_without_an_import(docstring):
    """Names that the examples of a docstring use and neither import nor make."""
    examples = doctest.DocTestParser().get_examples(docstring)
    used, made = set(), set(dir(builtins))
    for node in ast.walk(ast.parse("".join(example.source for example in examples))):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                made.add(name)
            case ast.alias(name=name, asname=other):
                made.add(other or name.split(".")[0])
    return used - made


def test_an_example_can_be_copied_by_itself(strict):
    """The names of its module would be there in a doctest, and not where somebody pastes it."""
    for name, value in strict.public().items():
        assert not names_without_an_import(inspect.getdoc(value) or ""), name
    assert names_without_an_import(">>> import jax.numpy as jnp\n>>> jax.tree.map(jnp.ones, 3)") == {"jax"}


def test_a_formula_that_is_not_drawn_whole_is_seen(monkeypatch):
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from mathml import mathml

    assert mathml(r"a &= b \\ c &= d", "block").count("<mtr>") == 2
    for formula in (r"\Big\langle 1", "a & b"):
        with pytest.raises(ValueError, match="is left over"):
            mathml(formula, "inline")


def test_what_users_call_comes_before_states(strict):
    index = (ROOT / "docs" / "api" / "index.md").read_text()
    places = [index.index(f"\n{page}\n") for page in ("optimisers", "stages", "phi", "states")]
    assert places == sorted(places)
    for page in (ROOT / "docs" / "api").glob("*.rst"):
        states = [name for name in strict.listed(page.read_text()) if name.endswith("State")]
        assert not states or page.stem == "states"

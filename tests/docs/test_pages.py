"""Every Python block of README and of the site runs as it stands and prints what the page says it prints.

The blocks between two headings of the second level share their names: a section can be copied by itself.
"""

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("[ar]*/*.md")),
]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)


def sections(page):
    """Each section of a page that has code: its title and its blocks with their outputs."""
    for part in re.split(r"^(?=## )", page.read_text(), flags=re.MULTILINE):
        if blocks := BLOCK.findall(part):
            yield part.splitlines()[0].lstrip("# "), blocks


SECTIONS = [(page.relative_to(ROOT).as_posix(), *section) for page in PAGES for section in sections(page)]


@pytest.mark.parametrize(
    ("page", "title", "blocks"), SECTIONS, ids=[f"{page}: {title}" for page, title, _ in SECTIONS]
)
def test_section(page, title, blocks):
    names = {"__name__": "__main__"}
    for number, (code, output) in enumerate(blocks):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page}, {title}, block {number}", "exec"), names)
        assert printed.getvalue() == output


def test_every_section_shows_an_output():
    assert len(SECTIONS) >= 30
    for page, title, blocks in SECTIONS:
        assert any(output for _, output in blocks), (page, title)


def test_every_page_can_be_reached():
    """The strict build finds every page without a link to it; here the same for recipes."""
    index = (ROOT / "docs" / "recipes" / "index.md").read_text()
    for page in (ROOT / "docs" / "recipes").glob("*.md"):
        assert page.stem == "index" or page.stem in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_exist(page):
    """``ro.x.y`` in the text, in backticks, is a name that exists."""
    import riemann_optax as ro

    for name in re.findall(r"`ro\.([\w.]+)", page.read_text()):
        value = ro
        for part in name.rstrip(".").split("."):
            value = getattr(value, part)


def test_readme_can_be_read_in_a_few_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_blocks_are_python():
    for _, _, blocks in SECTIONS:
        for code, _ in blocks:
            ast.parse(code)

"""Every Python block of README runs as it stands in a fresh file and prints what README says it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", README.read_text(), flags=re.DOTALL)


def test_readme_has_blocks_and_each_shows_its_output():
    assert len(BLOCKS) >= 5
    assert all(output for _, output in BLOCKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block(number):
    code, output = BLOCKS[number]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"README block {number}", "exec"), {"__name__": "__main__"})
    assert printed.getvalue() == output

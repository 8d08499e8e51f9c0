"""Run the Python blocks of a page as a reader would who copies them: ``python page.py start.md``."""

import contextlib
import io
import re
import sys
from pathlib import Path

for code, output in re.findall(
    r"```python\n(.*?)```\n\n```text\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL
):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, sys.argv[1], "exec"), {"__name__": "__main__"})
    if printed.getvalue() != output:
        sys.exit(f"{code}\nprints\n{printed.getvalue()}\nand not\n{output}")

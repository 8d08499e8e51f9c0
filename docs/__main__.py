"""Build the site strictly: ``python -m docs``, then open ``site/index.html``. No server is needed."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Pages lie where their links work in the repository too; the address without a path leads to the first.
FORWARD = """<!doctype html>
<meta charset="utf-8"><title>riemann_optax</title>
<meta http-equiv="refresh" content="0; url=docs/index.html">
<a href="docs/index.html">riemann_optax</a>
"""


def main(arguments: list[str]) -> int:
    """Build; a broken link, a public name without a page or an argument without words is an error."""
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder to write")
    parser.add_argument("--builder", default="html", help="another of Sphinx's, such as linkcheck")
    options = parser.parse_args(arguments)
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        parser.error("Sphinx is not installed: pip install -e '.[docs]'")
    out = options.out.resolve()
    settings = ["-W", "--keep-going", "-n", "-q", "-b", options.builder]
    places = ["-c", str(ROOT / "docs"), "-d", str(out / ".doctrees"), str(ROOT), str(out)]
    status = build_main([*settings, *places])
    if status == 0 and options.builder == "html":
        (out / "index.html").write_text(FORWARD)
        print(f"wrote {out / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

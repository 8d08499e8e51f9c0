"""Formulas as MathML, which browsers draw themselves: a page needs no script or font from elsewhere."""

import html
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def mathml(formula: str, display: str) -> str:
    r"""Return a formula as MathML; rows that end with ``\\`` are aligned where they have an ``&``.

    Examples:
      >>> mathml(r"a &= b \\ c &= d", "block").count("<mtr>")
      2
      >>> mathml(r"\Big\langle 1", "inline")
      Traceback (most recent call last):
      ValueError: this formula cannot be drawn: \langle is left over of \Big\langle 1
    """
    rows = r"\\" in formula and r"\begin" not in formula
    drawn = convert(rf"\begin{{split}}{formula}\end{{split}}" if rows else formula, display=display)
    left_over = re.search(r"\\[A-Za-z]*|&", html.unescape(re.sub("<[^>]+>", "", drawn)))
    if left_over:
        raise ValueError(f"this formula cannot be drawn: {left_over.group()} is left over of {formula}")
    return drawn


def visit_math(translator: Any, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own, which scrolls where it is wider than the screen."""
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Offer the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

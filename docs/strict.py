"""What else makes the build fail: a public name on no page, an argument without a description."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent / "api"
# The modules that users type; what each declares public is in its ``__all__`` or has no underscore.
MODULES = (
    "riemann_optax",
    *(f"riemann_optax.{room}" for room in ("phi", "supply", "anchor", "fields", "geometry", "testing")),
    *(f"riemann_optax.{address}" for address in ("checkpoint", "sharding", "flow", "plot")),
)
DIRECTIVE = re.compile(
    r"^\.\. (?:(?:current|py:)?module:: (\S+)|(?:auto|py:)(?:function|class|exception|data):: (\S+))",
    re.MULTILINE,
)


def public() -> dict[str, Any]:
    """Return each public object under its name; one that two modules offer counts once, under the shorter."""
    found: dict[str, Any] = {}
    for module in map(importlib.import_module, MODULES):
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            if not inspect.ismodule(value) and not any(value is other for other in found.values()):
                found[f"{module.__name__}.{name}"] = value
    return found


def listed(text: str) -> list[str]:
    r"""Return the names that a page of the API documents.

    Examples:
      >>> listed(".. currentmodule:: a.b\n.. autofunction:: c")
      ['a.b.c']
    """
    module, names = "", []
    for moved, name in DIRECTIVE.findall(text):
        module = moved or module
        if name:
            names.append(f"{module}.{name}")
    return names


def documented(docstring: str, section: str) -> set[str]:
    r"""Return the names that a section of a docstring describes.

    Examples:
      >>> docstring = "One.\n\nArgs:\n  a, b: two.\n    more: no.\n  *c: rest.\n\nReturns:\n  d: no."
      >>> sorted(documented(docstring, "Args"))
      ['a', 'b', 'c']
    """
    match = re.search(rf"^{section}:\n((?:  .*\n?|\n)+)", docstring, flags=re.MULTILINE)
    if not match:
        return set()
    heads = re.findall(r"^  (?=\S)([^:]+):", match.group(1), flags=re.MULTILINE)
    return {name.strip(" *`") for head in heads for name in head.split(",")}


def undescribed(value: Any) -> set[str]:
    """Return the arguments of a function, or the fields of a state, that its docstring leaves out."""
    docstring = inspect.getdoc(value) or ""
    if inspect.isclass(value):
        fields = set(inspect.signature(value).parameters) if hasattr(value, "_fields") else set()
        return fields - documented(docstring, "Attributes") - documented(docstring, "Args")
    if not callable(value):
        return set()
    return set(inspect.signature(value).parameters) - documented(docstring, "Args")


def faults() -> Iterator[str]:
    """Yield what is missing, in words."""
    names = public()
    pages = [name for path in sorted(PAGES.glob("*.rst")) for name in listed(path.read_text())]
    for name in sorted(set(names) - set(pages)):
        yield f"{name} is public and on no page of docs/api"
    for name in sorted(set(pages) - set(names)):
        yield f"{name} is on a page of docs/api and not public"
    for name in sorted({name for name in pages if pages.count(name) > 1}):
        yield f"{name} is on two pages of docs/api"
    for name, value in names.items():
        for argument in sorted(undescribed(value)):
            yield f"{name}: its docstring does not describe {argument}"


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find ``compute_metric`` from a docstring of ``phi`` too: a public name need not be written in full."""
    if node.get("refdomain") != "py":
        return None
    domain, last = env.get_domain("py"), node["reftarget"].split(".")[-1]
    found = [name for name in domain.objects if name.split(".")[-1] == last]
    if len(found) != 1:
        return None
    return (
        domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], found[0], node, content)
        if found[0] != node["reftarget"]
        else None
    )


def report(app: Any) -> None:
    """Warn of each fault; ``-W`` makes it an error."""
    from sphinx.util import logging

    for fault in faults():
        logging.getLogger(__name__).warning(fault)


def setup(app: Any) -> dict[str, bool]:
    """Check before the pages are read, and resolve short names."""
    app.connect("builder-inited", report)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

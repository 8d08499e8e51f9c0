"""Mutants: one sign, term, constant or condition of a source file changed, as text at a place.

What cannot change what is computed is left alone: docstrings, annotations, strings, whatever is raised.
"""

import ast
from collections.abc import Callable, Iterator
from typing import NamedTuple

SWAPPED = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.Pow: "*",
    ast.FloorDiv: "/",
    ast.Mod: "*",
}
COMPARED = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
# A function by another one of the same arguments.
REPLACED = {
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "sum": "mean",
    "mean": "sum",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "logical_and": "logical_or",
    "logical_or": "logical_and",
    "exp": "expm1",
    "log": "log1p",
    "any": "all",
    "all": "any",
}
DROPPED = {"sqrt", "square", "abs", "conj", "real", "log", "exp", "stop_gradient"}
MODULES = {"jnp", "np", "jax", "lax"}


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
      file: path of the source file.
      line: where the change begins.
      start: offset of the first byte replaced.
      end: offset behind the last one.
      kind: of the change.
      before: the text replaced.
      after: the text in its place.
    """

    file: str
    line: int
    start: int
    end: int
    kind: str
    before: str
    after: str

    def apply(self, source: str) -> str:
        """Return the source with this change."""
        data = source.encode()
        return (data[: self.start] + self.after.encode() + data[self.end :]).decode()


def mutants(file: str, source: str) -> list[Mutant]:
    """Return every mutant of a source file, in the order of its text."""
    offsets = [0]
    for line in source.encode().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return offsets[node.lineno - 1] + node.col_offset, offsets[node.end_lineno - 1] + node.end_col_offset

    def text(node: ast.AST) -> str:
        start, end = span(node)
        return source.encode()[start:end].decode()

    found = []
    for node in computing(ast.parse(source)):
        for changed, kind, after in changes(node, text):
            if after != text(changed):
                found.append(Mutant(file, changed.lineno, *span(changed), kind, text(changed), after))
    return sorted(set(found), key=lambda mutant: (mutant.start, mutant.end, mutant.after))


def computing(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that can change what is computed."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from computing(child)


def changes(node: ast.AST, text: Callable[[ast.AST], str]) -> Iterator[tuple[ast.AST, str, str]]:
    """Yield every change that begins at a node: what is replaced, the kind, the new text."""
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in SWAPPED and not is_sequence(left, right):
            yield node, "operator", f"(({text(left)}) {SWAPPED[type(operator)]} ({text(right)}))"
            yield node, "term dropped", f"({text(left)})"
            if isinstance(operator, ast.Add | ast.Mult):
                yield node, "term dropped", f"({text(right)})"
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield node, "sign dropped", f"({text(operand)})"
        case ast.Constant(value=bool(value)):
            yield node, "constant", str(not value)
        case ast.Constant(value=int(value)):
            yield node, "constant", str(value + 1)
        case ast.Constant(value=float(value)):
            yield node, "constant", repr(value / 2) if value else "1.0"
        case ast.Compare(left, [operator], [right]):
            yield node, "comparison", f"(({text(left)}) {COMPARED[type(operator)]} ({text(right)}))"
        case ast.BoolOp(operator, [first, *_, last] as values):
            other = " or " if isinstance(operator, ast.And) else " and "
            yield node, "condition", f"({other.join(f'({text(value)})' for value in values)})"
            yield node, "term dropped", f"({text(first)})"
            yield node, "term dropped", f"({text(last)})"
        case ast.Call(ast.Attribute(ast.Name(module), name), [first, *_]) if module in MODULES:
            if name == "where" and len(node.args) == 3:
                yield node, "branch", f"({text(node.args[1])})"
                yield node, "branch", f"({text(node.args[2])})"
            if name in DROPPED:
                yield node, "function dropped", f"({text(first)})"
            if name in REPLACED:
                yield node, "function", text(node).replace(name, REPLACED[name], 1)
        case ast.Expr(ast.Call()):
            yield node, "statement dropped", "pass"
        case ast.If(test) | ast.IfExp(test) | ast.While(test) if not isinstance(test, ast.Compare):
            yield test, "condition", f"(not ({text(test)}))"


def is_sequence(*operands: ast.AST) -> bool:
    """Return whether an operator joins tuples, lists or texts, not numbers."""
    return any(isinstance(operand, ast.Tuple | ast.List | ast.JoinedStr) for operand in operands)

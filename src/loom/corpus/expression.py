"""Filter expressions over attributes, evaluated a column at a time.

    gopher_v2.word_count >= 50 and frac(c4_v2.lines_with_no_ending_punctuation) < 0.3

A name is `tagger.key`. Alone it is the score of the document's one span (or whether there is one, where a
truth value is asked for); a list of spans takes an aggregate: `count`, `sum`, `mean`, `max`, `min`, `first`
of the scores, `frac`, the share of the document that the spans cover, summed. `document.characters` and
`document.bytes` are always there. A comparison with a value that is absent is false.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loom.corpus.attributes import Ints, Spans
from loom.errors import LoomError
from loom.recipe import nearest

AGGREGATES = ("count", "sum", "mean", "max", "min", "first", "frac")
DOCUMENT = ("characters", "bytes")
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Columns:
    """What an expression can see: spans by (tagger, key), and the documents' sizes."""

    spans: Mapping[tuple[str, str], Spans]
    characters: Ints
    bytes: Ints


@dataclass(frozen=True)
class Expression:
    """A checked expression. `names` are the (tagger, key) pairs it reads."""

    text: str
    tree: ast.expr
    names: tuple[tuple[str, str], ...]

    def __call__(self, columns: Columns) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """One truth value a document."""
        truth: np.ndarray[Any, np.dtype[np.bool_]] = _truth(_evaluate(self.tree, columns, self.text), columns)
        return truth


def parse_tree(text: str, where: str) -> ast.expr:
    try:
        return ast.parse(text.strip().replace("\n", " "), mode="eval").body
    except SyntaxError as error:
        raise LoomError(f"{where}: {text!r} is no filter expression ({error.msg}).") from None


def parse(text: str, where: str = "the expression") -> Expression:
    """Check the form of `text`. Raises `LoomError` that quotes what is wrong."""
    tree = parse_tree(text, where)
    names: list[tuple[str, str]] = []
    _check(tree, names, text, where)
    return Expression(text, tree, tuple(dict.fromkeys(names)))


class _WrittenOut(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self.names, self.found = names, False

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.names:
            return node
        self.found = True
        return ast.parse(self.names[node.id], mode="eval").body


def written_out(text: str, names: Mapping[str, str], where: str = "the expression") -> str:
    """`text` with short names, each of a `tagger.key`, written out; as it is where it has none."""
    spelled = _WrittenOut(names)
    out = ast.unparse(spelled.visit(parse_tree(text, where)))
    return out if spelled.found else text


def _check(node: ast.AST, names: list[tuple[str, str]], text: str, where: str) -> None:
    match node:
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not() | ast.USub()):
            pass
        case ast.Compare(ops=compared) if all(type(item) in COMPARE for item in compared):
            pass
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            pass
        case ast.Constant(value=int() | float()):
            return
        case ast.Attribute(value=ast.Name(id=tagger), attr=key):
            if tagger != "document":
                names.append((tagger, key))
            elif key not in DOCUMENT:
                raise LoomError(f"{where}: document.{key} is unknown; there are document.characters, .bytes.")
            return
        case ast.Call(func=ast.Name(id=name), args=[ast.Attribute() as argument], keywords=[]):
            if name not in AGGREGATES:
                near = nearest(name, AGGREGATES)
                hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(AGGREGATES)}."
                raise LoomError(f"{where}: {name!r} in {text!r} is no aggregate. {hint}")
            _check(argument, names, text, where)
            return
        case _:
            shown = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise LoomError(
                f"{where}: {shown!r} cannot stand in a filter. Write tagger.key, or a short name that the recipe "
                f"declares under `names`, an aggregate of one "
                f"({', '.join(AGGREGATES)}), numbers, comparisons, and, or, not."
            )
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            _check(child, names, text, where)


def check_names(expression: Expression, known: Mapping[str, tuple[str, ...]], where: str) -> None:
    """Raise `LoomError` unless every name is a key that its tagger writes."""
    for tagger, key in expression.names:
        if tagger not in known:
            near = nearest(tagger, known)
            hint = f"Did you mean {near!r}?" if near else f"These run: {', '.join(known)}."
            raise LoomError(
                f"{where}: {expression.text!r} reads the tagger {tagger!r}, which is not run. {hint}"
            )
        if key not in known[tagger]:
            near = nearest(key, known[tagger])
            hint = f"Did you mean {near!r}?" if near else f"It writes {', '.join(known[tagger])}."
            raise LoomError(
                f"{where}: the tagger {tagger!r} writes no {key!r}, so it could never match. {hint}"
            )


def _evaluate(node: ast.expr, columns: Columns, text: str) -> Any:
    match node:
        case ast.BoolOp(op=joint, values=values):
            parts = [_truth(_evaluate(value, columns, text), columns) for value in values]
            out = parts[0]
            for part in parts[1:]:
                out = out & part if isinstance(joint, ast.And) else out | part
            return out
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_truth(_evaluate(operand, columns, text), columns)
        case ast.UnaryOp(operand=operand):
            return -_number(_evaluate(operand, columns, text), text)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            before = _number(_evaluate(left, columns, text), text)
            result: Any = True
            for op, right in zip(ops, comparators, strict=True):
                after = _number(_evaluate(right, columns, text), text)
                absent = np.isnan(before) | np.isnan(after)
                result = result & COMPARE[type(op)](before, after) & ~absent
                before = after
            return result
        case ast.BinOp(left=left, op=arithmetic, right=right):
            a = _number(_evaluate(left, columns, text), text)
            b = _number(_evaluate(right, columns, text), text)
            with np.errstate(divide="ignore", invalid="ignore"):
                return ARITHMETIC[type(arithmetic)](a, b)
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
        case ast.Attribute(value=ast.Name(id="document"), attr=key):
            return getattr(columns, key).astype(np.float64)
        case ast.Attribute(value=ast.Name(id=tagger), attr=key):
            return columns.spans[tagger, key]
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return aggregate(name, _evaluate(argument, columns, text), columns.characters)
    raise AssertionError("unreachable: checked when parsed")


def _truth(value: Any, columns: Columns) -> Any:
    if isinstance(value, Spans):
        return np.diff(value.offsets) > 0
    value = np.asarray(value)
    truth = value if value.dtype == bool else (value != 0) & ~np.isnan(value)
    return np.broadcast_to(truth, columns.characters.shape)


def _number(value: Any, text: str) -> Any:
    if not isinstance(value, Spans):
        return np.asarray(value, np.float64)
    counts = np.diff(value.offsets)
    if counts.size and counts.max() > 1:
        row = int(np.argmax(counts))
        raise LoomError(
            f"{text!r} compares a list of spans ({counts[row]} in one document) with a number. "
            f"Put an aggregate around the name: {', '.join(AGGREGATES)}."
        )
    out = np.full(counts.size, np.nan)
    out[counts > 0] = value.scores
    return out


def aggregate(name: str, spans: Spans, lengths: Ints) -> Any:
    """An aggregate of every document's spans, float64[n]; of none: 0 for count, sum, frac, else absent."""
    counts = np.diff(spans.offsets)
    rows = spans.rows()
    match name:
        case "count":
            return counts.astype(np.float64)
        case "sum":
            return np.bincount(rows, spans.scores, minlength=counts.size)
        case "frac":
            covered = np.bincount(rows, spans.ends - spans.starts, minlength=counts.size)
            return np.divide(covered, lengths, out=np.zeros(counts.size), where=lengths > 0)
        case "mean":
            total = np.bincount(rows, spans.scores, minlength=counts.size)
            return np.divide(total, counts, out=np.full(counts.size, np.nan), where=counts > 0)
    out = np.full(counts.size, np.nan)
    some = counts > 0
    where = spans.offsets[:-1][some]
    if where.size:
        match name:
            case "first":
                out[some] = spans.scores[where]
            case "max":
                out[some] = np.maximum.reduceat(spans.scores, where)
            case "min":
                out[some] = np.minimum.reduceat(spans.scores, where)
    return out

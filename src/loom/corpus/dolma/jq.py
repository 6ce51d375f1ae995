"""The part of jq that filters of corpora are written in.

Paths, iteration, pipes, commas, literals, arrays and objects, arithmetic, comparisons, `and`, `or`, `not`,
`//`, `?`, `if`, and the functions of `FUNCTIONS`. A filter maps a value to a list of values, as in jq.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from loom.errors import LoomError

Filter = Callable[[Any], list[Any]]
TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)
      | (?P<field>\.[A-Za-z_][A-Za-z0-9_]*)
      | (?P<op>==|!=|<=|>=|//|\.\.|[|,.\[\](){}:?<>+\-*/%;])
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    )""",
    re.VERBOSE,
)


class JqError(Exception):
    """A value the filter cannot work on, such as an index into a number."""


@cache
def compile_jq(text: str) -> Filter:
    """Compile a jq filter; one that is outside the subset is a `LoomError` that says what is."""
    parser = _Parser(text)
    found = parser.pipe()
    if parser.at < len(parser.tokens):
        raise parser.wrong()
    return found


def truthy(value: Any) -> bool:
    return value is not None and value is not False


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        at = 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            if match is None:
                raise LoomError(
                    f"{text!r} is no jq filter of the subset known here, from {text[at:][:20]!r} on."
                )
            kind = match.lastgroup or ""
            self.tokens.append((kind, match.group(kind)))
            at = match.end()

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if expected is not None and token != expected:
            raise self.wrong(f"; expected {expected!r}")
        self.at += 1
        return token

    def wrong(self, hint: str = "") -> LoomError:
        token = self.peek() or "its end"
        return LoomError(f"{self.text!r} is no jq filter of the subset known here: {token!r}{hint}.")

    def pipe(self) -> Filter:
        left = self.comma()
        while self.peek() == "|":
            self.take()
            left = _pipe(left, self.comma())
        return left

    def comma(self) -> Filter:
        left = self.alternative()
        while self.peek() == ",":
            self.take()
            left = _both(left, self.alternative())
        return left

    def alternative(self) -> Filter:
        left = self.disjunction()
        if self.peek() == "//":
            self.take()
            left = _alternative(left, self.alternative())
        return left

    def disjunction(self) -> Filter:
        left = self.conjunction()
        while self.peek() == "or":
            self.take()
            left = _logic(left, self.conjunction(), stop=True)
        return left

    def conjunction(self) -> Filter:
        left = self.comparison()
        while self.peek() == "and":
            self.take()
            left = _logic(left, self.comparison(), stop=False)
        return left

    def comparison(self) -> Filter:
        left = self.sum()
        if self.peek() in COMPARE:
            left = _binary(left, COMPARE[self.take()], self.sum())
        return left

    def sum(self) -> Filter:
        left = self.product()
        while self.peek() in ("+", "-"):
            left = _binary(left, ARITHMETIC[self.take()], self.product())
        return left

    def product(self) -> Filter:
        left = self.postfix()
        while self.peek() in ("*", "/", "%"):
            left = _binary(left, ARITHMETIC[self.take()], self.postfix())
        return left

    def postfix(self) -> Filter:
        left = self.term()
        while True:
            kind = self.tokens[self.at][0] if self.at < len(self.tokens) else ""
            token = self.peek()
            if kind == "field":
                self.take()
                left = _pipe(left, _field(token[1:]))
            elif token == "[":
                left = _pipe_with_root(left, self.suffix())
            elif token == "." and self.at + 1 < len(self.tokens) and self.tokens[self.at + 1][1] == "[":
                self.take()
            elif token == "?":
                self.take()
                left = _optional(left)
            else:
                return left

    def suffix(self) -> Callable[[Any, Any], list[Any]]:
        self.take("[")
        if self.peek() == "]":
            self.take()
            return lambda value, root: _iterate(value)
        low = None if self.peek() == ":" else self.pipe()
        if self.peek() == ":":
            self.take()
            high = None if self.peek() == "]" else self.pipe()
            self.take("]")
            return lambda value, root: [_slice(value, low and low(root)[0], high and high(root)[0])]
        self.take("]")
        assert low is not None
        return lambda value, root: [_index(value, key) for key in low(root)]

    def term(self) -> Filter:
        kind = self.tokens[self.at][0] if self.at < len(self.tokens) else ""
        token = self.take()
        match kind:
            case "string":
                text = re.sub(r'\\(["\\/])', r"\1", token[1:-1]).replace("\\n", "\n").replace("\\t", "\t")
                return lambda value: [text]
            case "number":
                number = float(token) if any(c in token for c in ".eE") else int(token)
                return lambda value: [number]
            case "field":
                return _field(token[1:])
            case "name":
                return self.call(token)
        match token:
            case "-":
                inner = self.postfix()
                return lambda value: [-_number(item) for item in inner(value)]
            case ".":
                if self.at < len(self.tokens) and self.tokens[self.at][0] == "string":
                    return _field(self.take()[1:-1])
                return lambda value: [value]
            case "..":
                return _recurse
            case "(":
                inner = self.pipe()
                self.take(")")
                return inner
            case "[":
                if self.peek() == "]":
                    self.take()
                    return lambda value: [[]]
                inner = self.pipe()
                self.take("]")
                return lambda value: [inner(value)]
            case "{":
                return self.object()
        self.at -= 1
        raise self.wrong()

    def object(self) -> Filter:
        fields: list[tuple[str, Filter]] = []
        while self.peek() != "}":
            name = self.take().strip('"')
            if self.peek() == ":":
                self.take()
                fields.append((name, self.alternative()))
            else:
                fields.append((name, _field(name)))
            if self.peek() == ",":
                self.take()
        self.take("}")
        return lambda value: [{name: made(value)[0] for name, made in fields}]

    def call(self, name: str) -> Filter:
        if name in ("true", "false", "null"):
            constant = {"true": True, "false": False, "null": None}[name]
            return lambda value: [constant]
        if name == "if":
            return self.conditional()
        arguments: list[Filter] = []
        if self.peek() == "(":
            self.take()
            arguments.append(self.pipe())
            while self.peek() == ";":
                self.take()
                arguments.append(self.pipe())
            self.take(")")
        if (name, len(arguments)) not in FUNCTIONS:
            known = ", ".join(sorted({name for name, _ in FUNCTIONS}))
            raise LoomError(
                f"{self.text!r}: the jq function {name}/{len(arguments)} is not known here; {known} are."
            )
        function = FUNCTIONS[name, len(arguments)]
        return lambda value: function(value, *arguments)

    def conditional(self) -> Filter:
        test = self.pipe()
        self.take("then")
        yes = self.pipe()
        no: Filter = lambda value: [value]  # noqa: E731
        if self.peek() == "elif":
            self.take()
            no = self.conditional()
        else:
            if self.peek() == "else":
                self.take()
                no = self.pipe()
            self.take("end")
        return lambda value: [out for c in test(value) for out in (yes if truthy(c) else no)(value)]


def _pipe(first: Filter, second: Filter) -> Filter:
    return lambda value: [out for item in first(value) for out in second(item)]


def _pipe_with_root(first: Filter, second: Callable[[Any, Any], list[Any]]) -> Filter:
    return lambda value: [out for item in first(value) for out in second(item, value)]


def _both(first: Filter, second: Filter) -> Filter:
    return lambda value: first(value) + second(value)


def _optional(inner: Filter) -> Filter:
    def run(value: Any) -> list[Any]:
        try:
            return inner(value)
        except JqError:
            return []

    return run


def _alternative(first: Filter, second: Filter) -> Filter:
    def run(value: Any) -> list[Any]:
        found = [item for item in _optional(first)(value) if truthy(item)]
        return found or second(value)

    return run


def _logic(first: Filter, second: Filter, stop: bool) -> Filter:
    def run(value: Any) -> list[Any]:
        out: list[Any] = []
        for a in first(value):
            out += [stop] if truthy(a) is stop else [truthy(b) for b in second(value)]
        return out

    return run


def _binary(first: Filter, operator: Callable[[Any, Any], Any], second: Filter) -> Filter:
    return lambda value: [operator(a, b) for b in second(value) for a in first(value)]


def _field(name: str) -> Filter:
    return lambda value: [_index(value, name)]


def _index(value: Any, key: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, dict) and isinstance(key, str):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, (int, float)):
        at = int(key)
        return value[at] if -len(value) <= at < len(value) else None
    raise JqError(f"cannot index {type(value).__name__} with {key!r}")


def _slice(value: Any, low: Any, high: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, (list, str)):
        raise JqError("only lists and text can be sliced")
    return value[low:high]


def _iterate(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return list(value)
    raise JqError(f"cannot iterate over {type(value).__name__}")


def _recurse(value: Any) -> list[Any]:
    found = [value]
    if isinstance(value, (dict, list)):
        for item in _iterate(value):
            found += _recurse(item)
    return found


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise JqError(f"{value!r} is no number")
    return value


ORDER = {type(None): 0, bool: 1, int: 3, float: 3, str: 4, list: 5, dict: 6}


def _rank(value: Any) -> Any:
    kind = ORDER[type(value)]
    match value:
        case bool():
            return (kind, value)
        case list():
            return (kind, [_rank(item) for item in value])
        case dict():
            return (kind, sorted(value), [_rank(value[key]) for key in sorted(value)])
        case None:
            return (kind,)
    return (kind, value)


def _add(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, dict) and isinstance(b, dict):
        return {**a, **b}
    if isinstance(a, str) and isinstance(b, str):
        return a + b
    if isinstance(a, list) and isinstance(b, list):
        return a + b
    return _number(a) + _number(b)


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, str) and isinstance(b, str):
        return a.split(b)
    if _number(b) == 0:
        raise JqError("division by zero")
    return _number(a) / b


def _length(value: Any) -> Any:
    if value is None:
        return 0
    if isinstance(value, (str, list, dict)):
        return len(value)
    return abs(_number(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise JqError(f"{value!r} is no text")
    return value


def _values(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise JqError(f"{type(value).__name__} is no list")
    return value


def _unique(values: list[Any]) -> list[Any]:
    ordered = sorted(values, key=_rank)
    return [item for at, item in enumerate(ordered) if not at or _rank(item) != _rank(ordered[at - 1])]


def _sum(value: Any) -> Any:
    total = None
    for item in _iterate(value):
        total = _add(total, item)
    return total


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda a, b: _rank(a) == _rank(b),
    "!=": lambda a, b: _rank(a) != _rank(b),
    "<": lambda a, b: _rank(a) < _rank(b),
    "<=": lambda a, b: _rank(a) <= _rank(b),
    ">": lambda a, b: _rank(a) > _rank(b),
    ">=": lambda a, b: _rank(a) >= _rank(b),
}
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": _add,
    "-": lambda a, b: _number(a) - _number(b),
    "*": lambda a, b: _number(a) * _number(b),
    "/": _divide,
    "%": lambda a, b: int(_number(a)) % int(_number(b)),
}
FUNCTIONS: dict[tuple[str, int], Callable[..., list[Any]]] = {
    ("length", 0): lambda v: [_length(v)],
    ("not", 0): lambda v: [not truthy(v)],
    ("add", 0): lambda v: [_sum(v)],
    ("empty", 0): lambda v: [],
    ("keys", 0): lambda v: [sorted(v) if isinstance(v, dict) else list(range(len(_values(v))))],
    ("to_entries", 0): lambda v: [[{"key": k, "value": item} for k, item in v.items()]],
    ("from_entries", 0): lambda v: [{item["key"]: item["value"] for item in _values(v)}],
    ("type", 0): lambda v: [TYPES[type(v)]],
    ("min", 0): lambda v: [min(_values(v), key=_rank, default=None)],
    ("max", 0): lambda v: [max(_values(v), key=_rank, default=None)],
    ("sort", 0): lambda v: [sorted(_values(v), key=_rank)],
    ("unique", 0): lambda v: [_unique(_values(v))],
    ("first", 0): lambda v: [_index(v, 0)],
    ("last", 0): lambda v: [_index(v, -1)],
    ("any", 0): lambda v: [any(map(truthy, _values(v)))],
    ("all", 0): lambda v: [all(map(truthy, _values(v)))],
    ("floor", 0): lambda v: [int(_number(v) // 1)],
    ("tonumber", 0): lambda v: [v if not isinstance(v, str) else float(v) if "." in v else int(v)],
    ("tostring", 0): lambda v: [v if isinstance(v, str) else _json(v)],
    ("ascii_downcase", 0): lambda v: [_text(v).lower()],
    ("map", 1): lambda v, f: [[out for item in _iterate(v) for out in f(item)]],
    ("select", 1): lambda v, f: [v for test in f(v) if truthy(test)],
    ("has", 1): lambda v, f: [
        key in v if isinstance(v, dict) else 0 <= key < len(_values(v)) for key in f(v)
    ],
    ("startswith", 1): lambda v, f: [_text(v).startswith(_text(t)) for t in f(v)],
    ("endswith", 1): lambda v, f: [_text(v).endswith(_text(t)) for t in f(v)],
    ("contains", 1): lambda v, f: [t in v if isinstance(v, str) else all(i in v for i in t) for t in f(v)],
    ("test", 1): lambda v, f: [re.search(_text(t), _text(v)) is not None for t in f(v)],
    ("split", 1): lambda v, f: [_text(v).split(_text(t)) for t in f(v)],
    ("join", 1): lambda v, f: [_text(t).join(map(str, _values(v))) for t in f(v)],
    ("any", 1): lambda v, f: [any(truthy(t) for item in _iterate(v) for t in f(item))],
    ("all", 1): lambda v, f: [all(truthy(t) for item in _iterate(v) for t in f(item))],
    ("sort_by", 1): lambda v, f: [sorted(_values(v), key=lambda item: _rank(f(item)))],
    ("min_by", 1): lambda v, f: [min(_values(v), key=lambda item: _rank(f(item)), default=None)],
    ("max_by", 1): lambda v, f: [max(_values(v), key=lambda item: _rank(f(item)), default=None)],
}  # fmt: skip
TYPES: dict[type, str] = {
    type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array",
    dict: "object",
}  # fmt: skip


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value).decode()

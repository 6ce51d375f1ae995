"""JSONPath as Dolma's mixer understands it.

Paths of names, indices, slices, `*` and `..`; `[?(...)]` tests the elements of a list but an object itself.
A comparison with a value that is absent is false, except `!=`; a bare path asks whether anything is there.
`$@.` begins a path as `$.` does. To Dolma 1 and 1.0 are different values, so that `>= 1.0` misses the 1 that
its deduper writes: `as_dolma` repeats that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from loom.errors import LoomError

Step = Callable[[list[Any]], list[Any]]
Test = Callable[[Any], bool]
TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<number>-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)
      | (?P<op>&&|\|\||==|!=|<=|>=|<|>|~=|\.\.|\[\?\(|[@$.\[\]()*,:!])
      | (?P<name>[A-Za-z_][A-Za-z0-9_\-]*|\d[A-Za-z0-9_\-]*)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Path:
    """A compiled path. `names` are the member names it mentions, in order."""

    text: str
    find: Callable[[Any], list[Any]]
    names: tuple[str, ...]


@cache
def compile_path(text: str, as_dolma: bool = True) -> Path:
    """Compile a JSONPath; an expression that is none is a `LoomError`."""
    parser = _Parser(text, _same if as_dolma else _equal)
    parser.expect("$")
    if parser.peek() == "@":
        parser.take()
    steps = parser.steps()
    parser.end()

    def find(value: Any) -> list[Any]:
        return _walk(steps, [value])

    return Path(text, find, tuple(parser.names))


def _walk(steps: list[Step], values: list[Any]) -> list[Any]:
    for step in steps:
        values = step(values)
        if not values:
            break
    return values


class _Parser:
    def __init__(self, text: str, same: Callable[[Any, Any], bool]) -> None:
        self.text, self.same = text, same
        self.tokens: list[tuple[str, str]] = []
        self.names: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            if match is None:
                raise LoomError(f"{text!r} is no JSONPath that Dolma knows, from {text[at : at + 20]!r} on.")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match.group(kind)))
            at = match.end()
        self.at = 0

    def peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at][1] if at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise LoomError(f"{self.text!r} is no JSONPath that Dolma knows: {token!r} is missing.")

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise LoomError(
                f"{self.text!r} is no JSONPath that Dolma knows: {self.peek()!r} is out of place."
            )

    def steps(self) -> list[Step]:
        steps: list[Step] = []
        while True:
            match self.peek():
                case ".":
                    self.take()
                    if self.peek() == "*":
                        self.take()
                        steps.append(_every)
                    else:
                        steps.append(self._member())
                case "..":
                    self.take()
                    name = self.take()
                    self.names.append(name)
                    steps.append(_descend(name))
                case "[?(":
                    self.take()
                    test = self._or()
                    self.expect(")")
                    self.expect("]")
                    steps.append(_filter(test))
                case "[":
                    self.take()
                    steps.append(self._bracket())
                    self.expect("]")
                case _:
                    return steps

    def _member(self) -> Step:
        name = self.take()
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_\-]*", name):
            raise LoomError(f"{self.text!r} is no JSONPath that Dolma knows: {name!r} is no name.")
        self.names.append(name)
        return _member(name)

    def _bracket(self) -> Step:
        if self.peek() == "*":
            self.take()
            return _every
        if self.kind() == "string":
            names = [_unquote(self.take())]
            while self.peek() == ",":
                self.take()
                names.append(_unquote(self.take()))
            self.names += names
            return lambda values: [found for name in names for found in _member(name)(values)]
        numbers: list[int | None] = [self._integer()]
        sliced = False
        while self.peek() in (":", ","):
            sliced = sliced or self.peek() == ":"
            self.take()
            numbers.append(self._integer())
        if sliced:
            where = slice(*numbers)
            return lambda values: [item for v in values if isinstance(v, list) for item in v[where]]
        return lambda values: [
            v[n]
            for v in values
            if isinstance(v, list)
            for n in numbers
            if n is not None and -len(v) <= n < len(v)
        ]

    def _integer(self) -> int | None:
        if self.kind() != "number":
            return None
        return int(self.take())

    def _or(self) -> Test:
        tests = [self._and()]
        while self.peek() == "||":
            self.take()
            tests.append(self._and())
        return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)

    def _and(self) -> Test:
        tests = [self._atom()]
        while self.peek() == "&&":
            self.take()
            tests.append(self._atom())
        return tests[0] if len(tests) == 1 else lambda value: all(test(value) for test in tests)

    def _atom(self) -> Test:
        if self.peek() == "!":
            self.take()
            inner = self._atom()
            return lambda value: not inner(value)
        if self.peek() == "(":
            self.take()
            inner = self._or()
            self.expect(")")
            return inner
        left = self._operand()
        operator = self.peek()
        if operator not in ("==", "!=", "<", "<=", ">", ">=", "in", "nin", "~="):
            return lambda value: bool(left(value))
        self.take()
        right = self._operand()
        compare = _comparison(operator, self.text, self.same)
        return lambda value: compare(left(value), right(value))

    def _operand(self) -> Callable[[Any], list[Any]]:
        kind, token = self.kind(), self.peek()
        if token == "@":
            self.take()
            steps = self.steps()
            return lambda value: _walk(steps, [value])
        if kind == "string":
            self.take()
            text = _unquote(token)
            return lambda value: [text]
        if kind == "number":
            self.take()
            number = float(token) if any(c in token for c in ".eE") else int(token)
            return lambda value: [number]
        if token in ("true", "false", "null"):
            self.take()
            constant = {"true": True, "false": False, "null": None}[token]
            return lambda value: [constant]
        if token == "[":
            self.take()
            items: list[Any] = []
            while self.peek() != "]":
                items += self._operand()(None)
                if self.peek() == ",":
                    self.take()
            self.expect("]")
            return lambda value: [items]
        raise LoomError(f"{self.text!r} is no JSONPath that Dolma knows: {token!r} cannot be compared.")


def _unquote(token: str) -> str:
    return re.sub(r"\\(.)", r"\1", token[1:-1])


def _member(name: str) -> Step:
    return lambda values: [v[name] for v in values if isinstance(v, dict) and name in v]


def _every(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        found += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return found


def _descend(name: str) -> Step:
    def below(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            if name in value:
                yield value[name]
            for item in value.values():
                yield from below(item)
        elif isinstance(value, list):
            for item in value:
                yield from below(item)

    return lambda values: [found for value in values for found in below(value)]


def _filter(test: Test) -> Step:
    def step(values: list[Any]) -> list[Any]:
        found: list[Any] = []
        for value in values:
            found += [item for item in value if test(item)] if isinstance(value, list) else []
            if not isinstance(value, list) and test(value):
                found.append(value)
        return found

    return step


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same(a: Any, b: Any) -> bool:
    """Equal in value and in kind: 1 is neither 1.0 nor true."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def _equal(a: Any, b: Any) -> bool:
    """Equal in value; numbers of any kind compare as numbers, true is no number."""
    if _is_number(a) and _is_number(b):
        return bool(a == b)
    return _same(a, b)


def _comparison(
    operator: str, text: str, same: Callable[[Any, Any], bool]
) -> Callable[[list[Any], list[Any]], bool]:
    def equal(a: list[Any], b: list[Any]) -> bool:
        return bool(a) and len(a) == len(b) and all(map(same, a, b))

    def ordered(a: list[Any], b: list[Any], test: Callable[[Any, Any], bool]) -> bool:
        return len(a) == len(b) == 1 and _is_number(a[0]) and _is_number(b[0]) and test(a[0], b[0])

    match operator:
        case "==":
            return equal
        case "!=":
            return lambda a, b: not equal(a, b)
        case "<":
            return lambda a, b: ordered(a, b, lambda x, y: x < y)
        case "<=":
            return lambda a, b: ordered(a, b, lambda x, y: x < y) or equal(a, b)
        case ">":
            return lambda a, b: ordered(a, b, lambda x, y: x > y)
        case ">=":
            return lambda a, b: ordered(a, b, lambda x, y: x > y) or equal(a, b)
        case "in":
            return lambda a, b: bool(a) and len(b) == 1 and all(any(same(x, y) for y in b[0]) for x in a)
        case "nin":
            return lambda a, b: len(b) == 1 and not any(same(x, y) for x in a for y in b[0])
    raise LoomError(f"{text!r}: the operator {operator!r} of JSONPath is not supported here.")

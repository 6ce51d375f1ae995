"""The sandbox that chat templates are rendered in: what a template can reach, and how much it can do.

jinja2's own keeps a template from attributes that lead elsewhere, and bounds `range`. Here every pass of every loop
and every call counts against one budget, and a product may not be larger than that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 1_000_000
"""Passes of loops and calls in one rendering, and the length of what a product makes (digits of a number)."""


class Sandbox(ImmutableSandboxedEnvironment):
    """For one rendering: its budget is spent by it. `strict` refuses a variable that is not given."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, strict: bool) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined if strict else Undefined,
            extensions=["jinja2.ext.loopcontrols"],
        )
        self.left = STEPS
        self.filters |= {"tojson": _tojson, PASSES: self._passes}
        self.globals |= {"raise_exception": _raise, "range": self._range, "strftime_now": _now}
        del self.globals["lipsum"]  # which transformers does not speak of, and which loops by itself

    def template(self, text: str) -> Template:
        """Compile `text`, with every loop's passes counted. Raises `TemplateError` for what is no template."""
        tree = self.parse(text)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, PASSES, [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def call(self, context: Context, obj: Any, /, *given: Any, **named: Any) -> Any:
        self._spend(1)
        if isinstance(obj, LoopContext):  # a recursive loop, called with what to go over next
            given = (self._passes(given[0]), *given[1:]) if given else given
        return super().call(context, obj, *given, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                _small(left.bit_length() * right)
        elif isinstance(left, int) and isinstance(right, int):
            _small(left.bit_length() + right.bit_length())
        else:
            for many, times in ((left, right), (right, left)):
                if hasattr(many, "__len__") and isinstance(times, int):
                    _small(len(many) * times)
        return super().call_binop(context, operator, left, right)

    def _range(self, *bounds: int) -> range:
        made = range(*bounds)
        self._spend(len(made))
        return made

    def _passes(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._spend(1)
            yield value

    def _spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TemplateError(f"it takes over {STEPS:,} steps")


PASSES = "count passes"  # no name that a template could write


def _small(size: int) -> None:
    if size > STEPS:
        raise TemplateError(f"a product in it is longer than {STEPS:,}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _now(form: str) -> str:
    return datetime.now().strftime(form)

"""A Python module's documentation as readable text, by `ast`, without importing anything."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")
LONG_SIGNATURE = 160
FEWEST_WORDS = 4  # a shorter first sentence says too little to recognise a function by


@dataclass(frozen=True)
class Page:
    """One documentation page: a module with its functions, or a class with its methods."""

    name: str
    text: str


@dataclass(frozen=True)
class Function:
    """A public function: its dotted name within the module, its first sentence, the page that holds it."""

    qualname: str
    summary: str
    page: str


@dataclass(frozen=True)
class Documentation:
    pages: tuple[Page, ...]
    functions: tuple[Function, ...]


def document(source: str, module: str) -> Documentation:
    """Pages and public functions of a module's source; empty if it does not parse or documents nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Documentation((), ())
    pages: list[Page] = []
    functions: dict[str, Function] = {}
    sections = [module]
    if (text := _docstring(tree)) is not None:
        sections.append(text)
    for node in _definitions(tree.body):
        if isinstance(node, ast.ClassDef):
            pages += _class_page(node, module, node.name, functions)
        elif (text := _docstring(node)) is not None:
            sections += [f"{module}.{node.name}({_signature(node)})", text]
            _add(functions, node.name, text, module)
    if len(sections) > 1:
        pages.insert(0, Page(module, "\n\n".join(sections) + "\n"))
    return Documentation(tuple(pages), tuple(functions.values()))


def _class_page(node: ast.ClassDef, module: str, qualname: str, functions: dict[str, Function]) -> list[Page]:
    name = f"{module}.{qualname}"
    sections = [f"class {name}"]
    inner: list[Page] = []
    if (text := _docstring(node)) is not None:
        sections.append(text)
    for item in _definitions(node.body):
        if isinstance(item, ast.ClassDef):
            inner += _class_page(item, module, f"{qualname}.{item.name}", functions)
        elif (text := _docstring(item)) is not None:
            sections += [f"{name}.{item.name}({_signature(item)})", text]
            _add(functions, f"{qualname}.{item.name}", text, name)
    own = [Page(name, "\n\n".join(sections) + "\n")] if len(sections) > 1 else []
    return own + inner


def _definitions(
    body: list[ast.stmt],
) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions of a body, those under `if` and `try` too."""
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node
            case ast.If():
                yield from _definitions(node.body + node.orelse)
            case ast.Try():
                yield from _definitions(node.body + node.orelse)


def _docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> str | None:
    match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            text = inspect.cleandoc(text.encode("utf-8", "replace").decode())
            return text.strip() or None
    return None


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.unparse(node.args)
    if len(text) > LONG_SIGNATURE:
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        text = ", ".join(item.arg for item in every)
    return text if len(text) <= LONG_SIGNATURE else "..."


def _add(functions: dict[str, Function], qualname: str, text: str, page: str) -> None:
    if any(part.startswith("_") for part in qualname.split(".")):
        return
    summary = first_sentence(text)
    name = qualname.rsplit(".", 1)[-1]
    if summary is not None and not summary.startswith((f"{name}(", f"{qualname}(")):
        functions.setdefault(qualname, Function(qualname, summary, page))


def first_sentence(text: str) -> str | None:
    """The first sentence of a docstring on one line, or None if it is too short or is no prose."""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    sentence = SENTENCE_END.split(paragraph, maxsplit=1)[0].rstrip()
    prose = sentence[:1].isalpha() and "->" not in sentence and not sentence.startswith(("http", ".."))
    return sentence if prose and len(sentence.split()) >= FEWEST_WORDS and len(sentence) <= 300 else None


def topics(source: str) -> tuple[Page, ...]:
    """The language reference that the interactive help carries: a dictionary of topics."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="topics")], value=ast.Dict(keys=keys, values=values)):
                return tuple(
                    Page(key.value, value.value.strip() + "\n")
                    for key, value in zip(keys, values, strict=True)
                    if isinstance(key, ast.Constant)
                    and isinstance(value, ast.Constant)
                    and isinstance(key.value, str)
                    and isinstance(value.value, str)
                )
    return ()

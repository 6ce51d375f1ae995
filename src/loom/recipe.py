"""Recipes: typed configuration. YAML in, dotted overrides on top, every mistake named.

A recipe is a frozen dataclass, nested as far as one likes. `load` reads a YAML file into one. A
mistake is a `LoomError` with the file, the dotted path, what was expected and, for a key nobody
knows, the nearest name that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from loom.errors import LoomError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; a key written twice is refused, and 3e-4 is a number as people mean it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"
    ),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            mark = key_node.start_mark
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is written twice", mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def folder() -> Path:
    """Where the recipes that come with Loom lie: in the wheel beside the code, in a checkout at its root."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def find(name: str | Path) -> Path:
    """A recipe by path, or by the name of one that comes with Loom (`tiny`, `tiny.yaml`)."""
    path = Path(name)
    shipped = folder() / path.with_suffix(".yaml").name
    return shipped if not path.exists() and path.name == str(name) and shipped.is_file() else path


def read_yaml(path: Path) -> Any:
    """A YAML file's value. Raises `LoomError` if it is missing or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        if path.parent == Path():
            known += [p.stem for p in folder().glob("*.yaml")]
        near = nearest(path.name, known)
        raise LoomError(f"There is no recipe {path}.{_suggest(near)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LoomError(f"The recipe {path} cannot be read: {error}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise LoomError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None


def load(path: str | Path, cls: type[T], overrides: Iterable[str] = ()) -> T:
    """Read `path`, or the shipped recipe of that name, into `cls`, after `overrides` such as `train.steps=200`."""
    path = find(path)
    data = read_yaml(path)
    return build(data if data is not None else {}, cls, str(path), overrides)


def build(data: Any, cls: type[T], name: str, overrides: Iterable[str] = ()) -> T:
    """Check plain data against `cls` and construct it. `name` is what messages call the source."""
    if not isinstance(data, Mapping):
        raise LoomError(f"{name} must hold keys and values, not {_shown(data)}.")
    data = _copy(data)
    for override in overrides:
        _override(data, override, cls)
    value = _convert(data, cls, name, "")
    assert isinstance(value, cls)
    return value


def to_plain(recipe: Any) -> Any:
    """A recipe as plain JSON values, every default filled in: what manifests hold."""
    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        return {f.name: to_plain(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
    if isinstance(recipe, Mapping):
        return {str(key): to_plain(value) for key, value in recipe.items()}
    if isinstance(recipe, (list, tuple)):
        return [to_plain(value) for value in recipe]
    return str(recipe) if isinstance(recipe, Path) else recipe


def dump_yaml(recipe: Any) -> str:
    """A resolved recipe as YAML, keys in the order of the fields."""
    text: str = yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True)
    return text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, if any is like it."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def _suggest(name: str | None) -> str:
    return f" Did you mean {name!r}?" if name else ""


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _override(data: dict[str, Any], override: str, cls: type) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise LoomError(f"{override!r} is not an override; write key=value, for example train.steps=200.")
    value = parse_yaml(text, f"the override {override!r}") if text else None
    parts = dotted.split(".")
    at: Any = data
    for part in parts[:-1]:
        if not isinstance(at.get(part), dict):
            at[part] = {}
        at = at[part]
    at[parts[-1]] = value


def _convert(value: Any, hint: Any, name: str, dotted: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _convert_dataclass(value, hint, name, dotted)
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, name, dotted)
    if origin is typing.Literal:
        if value in arguments:
            return value
        near = nearest(str(value), [str(item) for item in arguments])
        expected = "one of " + ", ".join(repr(item) for item in arguments)
        raise _wrong(value, expected, name, dotted, near)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, "a list", name, dotted)
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            if len(value) != len(arguments):
                raise _wrong(value, f"a list of {len(arguments)} values", name, dotted)
            hints = list(arguments)
        else:
            hints = [arguments[0]] * len(value)
        items = [
            _convert(v, h, name, f"{dotted}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True))
        ]
        return tuple(items) if origin is tuple else items
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, "keys and values", name, dotted)
        return {
            key: _convert(item, arguments[1], name, _join(dotted, str(key))) for key, item in value.items()
        }
    return _convert_scalar(value, hint, name, dotted)


def _convert_dataclass(value: Any, cls: type, name: str, dotted: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(value, "keys and values", name, dotted)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    for key in value:
        if key not in fields:
            near = nearest(str(key), fields)
            where = _join(dotted, str(key))
            known = "" if near else f" Known here: {', '.join(fields)}."
            raise LoomError(
                f"{name}: unknown key {where!r}.{_suggest(_join(dotted, near) if near else None)}{known}"
            )
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, item in fields.items():
        if key in value:
            arguments[key] = _convert(value[key], hints[key], name, _join(dotted, key))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise LoomError(f"{name}: {_join(dotted, key)!r} is missing; expected {_describe(hints[key])}.")
    try:
        return cls(**arguments)
    except ValueError as error:  # a dataclass's own check of its values
        raise LoomError(f"{name}: {dotted + ': ' if dotted else ''}{error}") from None


def _convert_union(value: Any, arguments: tuple[Any, ...], name: str, dotted: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [item for item in arguments if item is not type(None)]
    errors: list[LoomError] = []
    for choice in choices:
        try:
            return _convert(value, choice, name, dotted)
        except LoomError as error:
            errors.append(error)
            if dataclasses.is_dataclass(choice) and isinstance(value, Mapping):
                raise  # the mistake lies inside; say that one
    if len(errors) == 1:
        raise errors[0]
    raise _wrong(value, " or ".join(_describe(item) for item in choices), name, dotted)


def _convert_scalar(value: Any, hint: Any, name: str, dotted: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():  # 1e6
            return int(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is type(None) and value is None:
        return None
    raise _wrong(value, _describe(hint), name, dotted)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(item) for item in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(item) for item in arguments)
    if origin in (tuple, list):
        return "a list"
    if origin is not None or dataclasses.is_dataclass(hint):
        return "keys and values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint, "nothing" if hint is type(None) else str(hint))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(dotted: str, key: str) -> str:
    return f"{dotted}.{key}" if dotted else key


def _wrong(value: Any, expected: str, name: str, dotted: str, near: str | None = None) -> LoomError:
    return LoomError(
        f"{name}: {dotted or 'the recipe'!r} is {_shown(value)}, expected {expected}.{_suggest(near)}"
    )

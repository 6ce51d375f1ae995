"""Rows of files that other programs wrote: answers and annotations, as JSON lines or as one array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from loom.errors import LoomError
from loom.tasks.data import DAMAGED, numbered, open_lines
from loom.tasks.item import Row


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with their places: file:line of JSON lines (gz, zst), file:item of an array, from 1. Raises `LoomError` for
    a file that cannot be read, or has no rows."""
    found = _array(path)
    rows = numbered(path) if found is None else found
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        yield row
    if not count:
        raise LoomError(f"{path} has no rows: name the file that holds them.")


def _array(path: Path) -> list[tuple[str, dict[str, Any]]] | None:
    """The items of a file that is one array, else None."""
    try:
        with open_lines(path) as stream:
            start = stream.read(64).lstrip()
            if not start.startswith(b"["):
                return None
            rows: list[Any] = orjson.loads(start + stream.read())
    except (*DAMAGED, ValueError) as error:
        raise LoomError(f"{path} cannot be read: {error}. Fetch or make the file again.") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise LoomError(f"{path}:{number} is no JSON object: each item of the array has to be a row.")
    return [(f"{path}:{number}", row) for number, row in enumerate(rows, 1)]


def text_of(row: Row, name: str, place: str) -> str:
    """A field that has to be text. Raises `LoomError` with file and line."""
    if name not in row:
        raise LoomError(f"{place}: this row has no {name!r}; add it, or take the row out.")
    value = row[name]
    if not isinstance(value, str):
        shown = repr(value)[:40]
        raise LoomError(f"{place}: {name} is {shown} and has to be text; mend the row, or take it out.")
    return value

"""A file's rows with their attributes: what the mixer looks at, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from loom.corpus.batch import as_rows, check_row
from loom.corpus.documents import read, read_lines
from loom.errors import LoomError
from loom.tokens.documents import Rejected

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]  # with their numbers in the file, from 1
Found = Iterator[tuple[Any, Row]]  # a sidecar's rows: the id, and the attributes
Aside = Callable[[Rejected], None]  # takes rows that are no documents


def joined(document: Path, attributes: Sequence[str], lenient: bool, aside: Aside) -> Rows:
    """A file's rows with their attributes merged into one object.

    Rows that are no documents go to `aside`; taggers wrote no attributes for them. Ids that differ are an
    error; missing attribute rows too, and rows left over, unless `lenient` (Dolma only warns).
    """
    readers = [attribute_rows(Path(path)) for path in attributes]
    if document.name.endswith(".parquet"):
        yield from join(document, _parquet(document, aside), attributes, readers, lenient)
    else:
        yield from join_lines(
            document, enumerate(read_lines(document), 1), attributes, readers, lenient, aside
        )
    if not lenient:
        refuse_more(document, attributes, [next(reader, None) is not None for reader in readers])


def refuse_more(document: Path, attributes: Sequence[str], left: Sequence[bool]) -> None:
    """Raise `LoomError` for a sidecar that has rows left where its documents end."""
    for path, more in zip(attributes, left, strict=True):
        if more:
            raise LoomError(
                f"{path} has more rows than {document}: the documents were cut short or changed since they were "
                f"tagged. Fetch them again, or run that tagger again."
            )


def _parquet(document: Path, aside: Aside) -> Rows:
    for batch in read(document):
        for item in batch.rejected:
            aside(item)
        yield from zip(batch.lines.tolist(), as_rows(batch), strict=True)


def join_lines(
    document: Path,
    lines: Iterable[tuple[int, bytes]],
    attributes: Sequence[str],
    readers: Sequence[Found],
    lenient: bool,
    aside: Aside,
) -> Rows:
    """`joined` for some of a JSON-lines file's lines, with the sidecars' rows that belong to them."""
    yield from join(document, _parsed(document, lines, aside, lenient), attributes, readers, lenient)


def _parsed(document: Path, lines: Iterable[tuple[int, bytes]], aside: Aside, lenient: bool) -> Rows:
    for number, line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            aside(Rejected(document.name, number, f"not JSON ({error})"))
            continue
        if (reason := _why_not(row, lenient)) is not None:
            aside(Rejected(document.name, number, reason))
        else:
            yield number, row


def _why_not(row: Any, lenient: bool) -> str | None:
    """Why a row is no document, or None. If `lenient`, ids may be numbers: Dolma's mixer takes them as they are."""
    reason = check_row(row)
    if lenient and reason is not None and isinstance(row, dict) and "id" in row:
        return check_row({**row, "id": ""})
    return reason


def join(
    document: Path, rows: Rows, attributes: Sequence[str], readers: Sequence[Found], lenient: bool
) -> Rows:
    for number, row in rows:
        merged: Row = {}
        for path, reader in zip(attributes, readers, strict=True):
            found = next(reader, None)
            if found is None:
                if lenient:
                    break
                raise LoomError(
                    f"{path} has fewer rows than {document}: none for row {number:,}. It was cut short; "
                    f"run that tagger again."
                )
            identity, values = found
            if identity != row["id"]:
                raise LoomError(
                    f"{path} holds {identity!r} where {document}, row {number:,}, has {row['id']!r}. "
                    f"The attributes belong to other documents; run that tagger again."
                )
            merged.update(values)
        existing = row.get("attributes")
        if isinstance(existing, dict):
            existing.update(merged)
        elif merged or attributes:
            row["attributes"] = merged
        yield number, row


def attribute_rows(path: Path) -> Found:
    """A sidecar's rows, JSON lines or Parquet."""
    if path.name.endswith(".parquet"):
        from loom.corpus import attributes

        for ids, spans in attributes.read(path):
            for row, identity in enumerate(ids):
                yield (
                    identity,
                    {
                        key: [list(item) for item in found]
                        for key, value in spans.items()
                        if (found := value.of(row)) is not None
                    },
                )
        return
    yield from json_rows(path, read_lines(path), count(1))


def json_rows(path: Path, lines: Iterable[bytes], numbers: Iterable[int]) -> Found:
    """Lines of a JSON-lines sidecar, with their numbers in it. Raises `LoomError` for one that is none."""
    for number, line in zip(numbers, lines, strict=False):
        try:
            row = orjson.loads(line)
            identity, values = row.get("id"), row["attributes"]
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise LoomError(_broken(path, number, str(error))) from None
        if not isinstance(values, dict):
            raise LoomError(_broken(path, number, "its `attributes` are no object"))
        yield identity, values


def _broken(path: Path, number: int, why: str) -> str:
    return (
        f"{path}, row {number:,}, is no attribute row ({why}). Attributes are made, never mended: remove the file "
        f"and run the tagger again."
    )

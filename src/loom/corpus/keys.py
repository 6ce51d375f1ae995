"""Fingerprints of what only one document may have: its id, an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loom.artifact import canonical_json, digest_bytes
from loom.corpus.batch import Batch, as_rows, utf8

Prints = npt.NDArray[np.uint64]


def of_ids(batches: Sequence[Batch], source: str) -> Prints:
    """uint64[n, 2]; the same id in two sources is two ids."""
    from loom.corpus.kernels import fingerprints

    salt = salt_of(source)
    parts = [np.zeros((0, 2), np.uint64)]
    for batch in batches:
        column = batch.table.column("id").cast(pa.large_string())
        parts.append(fingerprints.documents(*utf8(column)) ^ salt)
    return np.concatenate(parts)


def salt_of(source: str) -> np.uint64:
    """What fingerprints of a source are combined with, so that those of two sources are never equal."""
    return np.uint64(int(digest_bytes(source.encode())[:16], 16))


def of_field(batches: Sequence[Batch], field: str) -> Prints:
    """uint64[n, 2] of a field such as `metadata.url`; 0 for a document without it, which is like no other.

    Without a field, uint64[0, 2].
    """
    prints = []
    for batch in batches if field else ():
        for row in as_rows(batch):
            value = _value(row, field.split("."))
            digest = digest_bytes(value) if value else "0" * 32
            prints.append((int(digest[:16], 16), int(digest[16:], 16)))
    return np.array(prints, np.uint64).reshape(-1, 2)


def _value(row: Any, path: Sequence[str]) -> bytes:
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    if row is None:
        return b""
    return row.encode() if isinstance(row, str) else canonical_json(row)

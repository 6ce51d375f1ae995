"""The mixer's usual streams by columns: what `mixing` does row by row, a block of lines at a time.

A stream whose replacements name attributes directly (`$.attributes.NAME`) and whose filter does not look at
the text goes this way. A block with anything unusual in it goes row by row after all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.corpus.documents import read_blocks
from loom.corpus.dolma import config
from loom.corpus.dolma.replace import Span

DIRECT = re.compile(r"\$@?\.attributes\.([A-Za-z_]\w*)")
HEAD = ("id", "attributes")
UNKNOWN = 7  # behind the fields of a row: whether it has others, or nulls


def eligible(stream: config.Stream, files: Sequence[str]) -> bool:
    """Whether a stream's rows can be mixed by columns, from these document and attribute files."""
    chosen = stream.filter or config.Filter()
    return (
        all(
            item.syntax == "jsonpath"
            and DIRECT.fullmatch(item.span)
            and item.replacement[:1] not in ("$", ".")
            and "{}" not in item.replacement
            for item in stream.span_replacement
        )
        and not any(re.search(r"\btext\b|\.\.", text) for text in (*chosen.include, *chosen.exclude))
        and not any(path.endswith(".parquet") for path in files)
        and not {"id", "text", "metadata"} & set(stream.output.discard_fields)
        and ("attributes" in stream.output.discard_fields or not stream.attributes)
    )


class Lines:
    """A file's lines, some at a time."""

    def __init__(self, path: Path) -> None:
        self.blocks = read_blocks(path)
        self.block = b""
        self.ends = np.zeros(0, np.int64)

    def take(self, count: int) -> bytes:
        """The next `count` lines, fewer at the end of the file."""
        while self.ends.size < count:
            more = next(self.blocks, b"")
            if not more:
                break
            self.block += more if more.endswith(b"\n") else more + b"\n"
            self.ends = np.flatnonzero(np.frombuffer(self.block, np.uint8) == 10) + 1
        count = min(count, self.ends.size)
        cut = int(self.ends[count - 1]) if count else 0
        taken, self.block = self.block[:cut], self.block[cut:]
        self.ends = self.ends[count:] - cut
        return taken


def blocks(document: Path, attributes: Sequence[str]) -> Iterator[tuple[bytes, list[bytes]]]:
    """A document file's lines in blocks, each with the lines of every attribute file that belong to it."""
    readers = [Lines(Path(path)) for path in attributes]
    for block in read_blocks(document):
        count = block.count(b"\n") + (not block.endswith(b"\n"))
        yield block, [reader.take(count) for reader in readers]


class Columns:
    """A block of documents and its attributes by columns."""

    def __init__(self, stream: config.Stream) -> None:
        from loom.corpus.kernels import json_lines

        self.stream = stream
        self.keys = list(dict.fromkeys(DIRECT.fullmatch(item.span)[1] for item in stream.span_replacement))  # type: ignore[index]
        self.fields = [
            index
            for index, name in sorted(enumerate(json_lines.FIELDS), key=lambda item: item[1])
            if name not in stream.output.discard_fields
        ]
        chosen = stream.filter or config.Filter()
        self.needs_rows = bool(chosen.include or chosen.exclude)
        self.needs_attributes = any("attributes" in text for text in (*chosen.include, *chosen.exclude))

    def read(self, block: bytes, attributes: Sequence[bytes]) -> bool:
        """Take a block in; False where it must be mixed row by row."""
        from loom.corpus.kernels import json_lines, mixing

        kinds = json_lines.KINDS
        self.data = np.frombuffer(block, np.uint8)
        self.where, states, _ = json_lines.rows(self.data, kinds, json_lines.NAMES, json_lines.NAME_STARTS)
        if (states != json_lines.GOOD).any() or self.where[:, UNKNOWN, 0].any():
            return False
        count = states.size
        found: list[tuple[Any, ...]] = []
        self.rows: list[dict[str, Any]] = [{} for _ in range(count)] if self.needs_rows else []
        names, name_starts = _names(HEAD)
        keys, key_starts = _names(self.keys)
        present = np.zeros((count, len(self.keys)), np.int64)
        for lines in attributes:
            data = np.frombuffer(lines, np.uint8)
            starts = np.concatenate([[0], np.flatnonzero(data == 10) + 1])
            if starts.size - 1 != count:
                return False
            places, good = mixing.attribute_rows(data, starts, kinds, names, name_starts, keys, key_starts)
            ids = np.ascontiguousarray(places[:, 0])
            if not good or not mixing.same_ids(self.data, np.ascontiguousarray(self.where[:, 0]), data, ids):
                return False
            for index in range(len(self.keys)):
                own = np.ascontiguousarray(places[:, 1 + index])
                present[:, index] += own[:, 0] >= 0
                *columns, good = mixing.spans(data, own)
                if not good:
                    return False
                found.append((index, *columns))
            if self.needs_attributes:
                for row, line in enumerate(lines.splitlines()):
                    self.rows[row] |= orjson.loads(line)["attributes"]
        self.found = found
        return not (present > 1).any()

    def row(self, index: int) -> dict[str, Any]:
        """What a filter may ask of a row: everything but its text."""
        from loom.corpus.kernels import json_lines

        out: dict[str, Any] = {"attributes": self.rows[index]}
        for field, name in enumerate(json_lines.FIELDS):
            low, high, escaped = self.where[index, field].tolist()
            if low < 0 or name == "text":
                continue
            raw = self.data[low:high].tobytes()
            if name == "metadata" or escaped:
                out[name] = orjson.loads(raw if name == "metadata" else b'"' + raw + b'"')
            else:
                out[name] = raw.decode()
        return out

    def edits(self) -> tuple[Any, Any, Any, Any]:
        """Spans to replace, sorted by row and start: rows, starts, ends, which replacement."""
        parts = []
        for number, item in enumerate(self.stream.span_replacement):
            key = DIRECT.fullmatch(item.span)[1]  # type: ignore[index]
            low = float("-inf") if item.min_score is None else item.min_score
            high = float("inf") if item.max_score is None else item.max_score
            for index, rows, starts, ends, scores in self.found:
                if self.keys[index] == key:
                    chosen = (low <= scores) & (scores < high)
                    which = np.full(int(chosen.sum()), number)
                    parts.append((rows[chosen], starts[chosen], ends[chosen], which))
        if not parts:
            return (np.zeros(0, np.int64),) * 4
        rows, starts, ends, which = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((starts, rows)) if len(parts) == 1 else np.lexsort((which, starts, rows))
        return rows[order], starts[order], ends[order], which[order]

    def texts(self) -> tuple[Any, Any, dict[int, tuple[str, list[Span]]]]:
        """The edited text column, and the rows it leaves alone because spans overlap: (text, spans) by row."""
        from loom.corpus.kernels import json_lines, mixing
        from loom.corpus.kernels.characters import lengths

        data, offsets, _ = json_lines.column(self.data, np.ascontiguousarray(self.where[:, 1]), False)
        rows, starts, ends, which = self.edits()
        self.extra = 0
        if not rows.size:
            return data, offsets, {}
        inside = np.concatenate([[False], rows[1:] == rows[:-1]])
        before = np.where(inside, np.concatenate([[0], ends[:-1]]), 0)
        size = lengths(data, offsets)
        wrong = np.unique(rows[(starts < before) | (starts >= ends) | (starts >= size[rows])])
        left = {}
        if wrong.size:
            for row in wrong.tolist():
                mine = rows == row
                by = [self.stream.span_replacement[number].replacement for number in which[mine].tolist()]
                text = data[offsets[row] : offsets[row + 1]].tobytes().decode()
                left[row] = (text, list(zip(starts[mine].tolist(), ends[mine].tolist(), by, strict=True)))
            good = ~np.isin(rows, wrong)
            rows, starts, ends, which = rows[good], starts[good], ends[good], which[good]
        firsts = np.searchsorted(rows, np.arange(offsets.size))
        pieces = [item.replacement.encode() for item in self.stream.span_replacement]
        piece_starts = np.cumsum([0, *map(len, pieces)])
        held = np.frombuffer(b"".join(pieces) or b"\0", np.uint8)
        self.extra = 6 * int(np.diff(piece_starts)[which].sum())
        return *mixing.replaced(data, offsets, firsts, starts, ends, which, held, piece_starts), left

    def written(self, kept: Any, data: Any, offsets: Any, metadata: Sequence[bytes]) -> Any:
        """The kept rows as JSON lines."""
        from loom.corpus.kernels import json_lines, mixing

        return mixing.documents(
            self.data,
            self.where,
            kept,
            np.array(self.fields),
            json_lines.NAMES,
            json_lines.NAME_STARTS,
            data,
            offsets,
            np.frombuffer(b"".join(metadata) or b"\0", np.uint8),
            np.cumsum([0, *map(len, metadata)]),
            self.extra,
        ).data

    def provenance(self, place: str, first: int, kept: Sequence[bool]) -> list[bytes]:
        """The metadata of every kept row as JSON, sorted, with where it stood; nothing for the others."""
        out = []
        for index, (low, high) in enumerate(self.where[:, 6, :2].tolist()):
            if not kept[index]:
                out.append(b"")
                continue
            value = orjson.loads(self.data[low:high].tobytes()) if low >= 0 else {}
            metadata = value if isinstance(value, dict) else {}
            metadata["provenance"] = f"{place}:{first + index}"
            out.append(orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS))
        return out


def patched(data: Any, offsets: Any, texts: dict[int, bytes]) -> tuple[Any, Any]:
    """A text column with some rows replaced."""
    if not texts:
        return data, offsets
    parts = [
        texts[row] if row in texts else data[low:high].tobytes()
        for row, (low, high) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    ]
    return np.frombuffer(b"".join(parts) or b"\0", np.uint8), np.cumsum([0, *map(len, parts)])


def _names(names: Sequence[str]) -> tuple[Any, Any]:
    held = "".join(names).encode()
    return np.frombuffer(held or b"\0", np.uint8), np.cumsum([0, *(len(name.encode()) for name in names)])

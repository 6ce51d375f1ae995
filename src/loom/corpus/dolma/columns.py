"""The mixer's usual streams by columns: what `mixing` does row by row, a block of lines at a time.

A stream whose replacements name attributes directly (`$.attributes.NAME`) and whose filter does not look at
the text goes this way. A block with anything unusual in it goes row by row after all.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.corpus.documents import read_blocks
from loom.corpus.dolma import config, names
from loom.corpus.dolma.replace import Span

DIRECT = re.compile(r"\$@?\.attributes\.([A-Za-z_]\w*)")
RULE = re.compile(r"\$@?\.attributes\[\?\((.*)\)\]")
TEST = re.compile(
    r"\s*@\.([A-Za-z_]\w*)(?:(\[0\])(?:\[2\](?:\s*([<>]=?|==)\s*(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?))?)?)?\s*"
)
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge, "==": operator.eq
}  # fmt: skip
HEAD = ("id", "attributes")
NOT_INCLUDED = "no include matches"  # what removes a row, beside the excludes
BLOCK = 1 << 23  # bytes of lines taken up at a time: what stays in the processor's cache
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


@dataclass(frozen=True)
class Test:
    """Of a name's spans: whether there are any (`first`), or it at all, or how the first one's score compares."""

    name: str
    first: bool
    compare: str | None
    bound: float


def rules(stream: config.Stream, compat: str) -> tuple[list[list[Test]], list[list[Test]]] | None:
    """The filter as tests that must all hold, of each include and exclude; None where it asks for more."""
    chosen = stream.filter or config.Filter()
    found: list[list[list[Test]]] = []
    for texts in (chosen.include, chosen.exclude):
        found.append([])
        for text in texts:
            rule = RULE.fullmatch(text.strip())
            if rule is None or chosen.syntax != "jsonpath" or (not compat and names.mend(text) != text):
                return None
            parts = [TEST.fullmatch(part) for part in rule[1].split("&&")]
            tests = [
                Test(part[1], bool(part[2]), part[3], float(part[4] or 0))
                for part in parts
                if part is not None
            ]
            if len(tests) < len(parts):
                return None
            found[-1].append(tests)
    return found[0], found[1]


class Lines:
    """A file's lines, some at a time."""

    def __init__(self, path: Path) -> None:
        self.blocks = read_blocks(path, BLOCK)
        self.block = b""
        self.ends = np.zeros(0, np.int64)
        self.taken = 0

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
        self.taken += count
        return taken

    def back(self, lines: Sequence[bytes]) -> None:
        """Put the last lines that were taken back, to be taken again."""
        if lines:
            self.block = b"".join(lines) + self.block
            self.ends = np.flatnonzero(np.frombuffer(self.block, np.uint8) == 10) + 1
            self.taken -= len(lines)


class Columns:
    """A block of documents and its attributes by columns."""

    rows: list[dict[str, Any]] | None
    """The attributes of every row, once they are asked for."""
    filtered: dict[str, int]

    def __init__(self, stream: config.Stream, compat: str) -> None:
        from loom.corpus.kernels import json_lines

        self.stream = stream
        self.rules = rules(stream, compat)
        asked = [test.name for group in self.rules or () for rule in group for test in rule]
        replaced = [DIRECT.fullmatch(item.span)[1] for item in stream.span_replacement]  # type: ignore[index]
        self.keys = list(dict.fromkeys([*replaced, *asked]))
        self.fields = [
            index
            for index, name in sorted(enumerate(json_lines.FIELDS), key=lambda item: item[1])
            if name not in stream.output.discard_fields
        ]

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
        self.lines, self.rows = attributes, None
        heads, head_starts = _names(HEAD)
        keys, key_starts = _names(self.keys)
        present = np.zeros((count, len(self.keys)), np.int64)
        for lines in attributes:
            data = np.frombuffer(lines, np.uint8)
            starts = np.concatenate([[0], np.flatnonzero(data == 10) + 1])
            if starts.size - 1 != count:
                return False
            places, good = mixing.attribute_rows(data, starts, kinds, heads, head_starts, keys, key_starts)
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
        self.found = found
        self.present = present > 0
        return not (present > 1).any()

    def kept(self) -> Any:
        """Which rows the filter keeps, bool[n]; None where the rows themselves must be asked.

        `filtered` then has the rows that each rule removed, the first that speaks.
        """
        if self.rules is None:
            return None
        count = self.where.shape[0]
        include, exclude = ([self._holding(rule) for rule in group] for group in self.rules)
        if any(found is None for found in (*include, *exclude)):
            return None
        kept = np.logical_or.reduce(include) if include else np.ones(count, bool)
        self.filtered = {} if kept.all() else {NOT_INCLUDED: int(count - kept.sum())}
        for text, found in zip((self.stream.filter or config.Filter()).exclude, exclude, strict=True):
            if removed := int((kept & found).sum()):
                self.filtered[text] = self.filtered.get(text, 0) + removed
            kept &= ~found
        return kept

    def _holding(self, rule: Sequence[Test]) -> Any:
        """Where all tests hold, bool[n]; None where a score equals its bound, as 1 and 1.0 may differ then."""
        count = self.where.shape[0]
        out = np.ones(count, bool)
        for test in rule:
            index = self.keys.index(test.name)
            if not test.first:
                out &= self.present[:, index]
                continue
            first = np.full(count, np.nan)
            for number, rows, _, _, scores in self.found:
                if number == index:
                    own, at = np.unique(rows, return_index=True)
                    first[own] = scores[at]
            if test.compare is None:
                out &= ~np.isnan(first)
                continue
            if "=" in test.compare and (first == test.bound).any():
                return None
            out &= COMPARE[test.compare](first, test.bound)
        return out

    def row(self, index: int) -> dict[str, Any]:
        """What a filter may ask of a row: everything but its text."""
        from loom.corpus.kernels import json_lines

        if self.rows is None:
            self.rows = [{} for _ in range(self.where.shape[0])]
            for lines in self.lines:
                for row, line in zip(self.rows, lines.splitlines(), strict=True):
                    row |= orjson.loads(line)["attributes"]
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
        """The edited text column, as inside JSON strings, and the rows it leaves alone: (text, spans) by row."""
        from loom.corpus.kernels import mixing

        rows, starts, ends, which = self.edits()
        firsts = np.searchsorted(rows, np.arange(self.where.shape[0] + 1))
        by = [item.replacement for item in self.stream.span_replacement]
        pieces = [inside(text) for text in by]
        data, offsets, alone = mixing.edited(
            self.data,
            np.ascontiguousarray(self.where[:, mixing.TEXT]),
            firsts,
            starts,
            ends,
            which,
            np.frombuffer(b"".join(pieces) or b"\0", np.uint8),
            np.cumsum([0, *map(len, pieces)]),
        )
        left = {}
        for row in np.flatnonzero(alone).tolist():
            low, high = self.where[row, mixing.TEXT, :2].tolist()
            mine = slice(int(firsts[row]), int(firsts[row + 1]))
            spans = zip(
                starts[mine].tolist(),
                ends[mine].tolist(),
                [by[number] for number in which[mine].tolist()],
                strict=True,
            )
            left[row] = (orjson.loads(b'"' + self.data[low:high].tobytes() + b'"'), list(spans))
        return data, offsets, left

    def written(self, kept: Any, data: Any, offsets: Any, metadata: tuple[Any, Any]) -> Any:
        """The kept rows as JSON lines, from the columns of `texts` and `provenance`."""
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
            *metadata,
        ).data

    def provenance(self, place: str, first: int, kept: Any) -> tuple[Any, Any]:
        """The metadata of every kept row as JSON, sorted, with where it stood; nothing for the others."""
        from loom.corpus.kernels import json_lines, mixing

        where = np.ascontiguousarray(self.where[:, json_lines.METADATA])
        name = np.frombuffer(inside(place), np.uint8)
        data, offsets, left = mixing.provenance(self.data, where, json_lines.KINDS, name, first, kept)
        made = {}
        for row in np.flatnonzero(left).tolist():
            value = orjson.loads(self.data[where[row, 0] : where[row, 1]].tobytes())
            metadata = value if isinstance(value, dict) else {}
            metadata["provenance"] = f"{place}:{first + row}"
            made[row] = orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS)
        return patched(data, offsets, made)


def inside(text: str) -> bytes:
    """Text as it stands between the quotes of a JSON string."""
    return orjson.dumps(text)[1:-1]


def trimmed(data: Any, offsets: Any) -> Any:
    """Bytes of texts that stand as inside JSON strings, unescaped, without the whitespace around them."""
    from loom.corpus.kernels import json_lines, mixing

    where = np.stack([offsets[:-1], offsets[1:], np.ones(offsets.size - 1, np.int64)], axis=1)
    plain, ends, _ = json_lines.column(data, where, False)
    return mixing.trimmed(plain, ends)


def patched(data: Any, offsets: Any, texts: dict[int, bytes]) -> tuple[Any, Any]:
    """A text column with some rows replaced."""
    if not texts:
        return data, offsets
    parts = []
    at = 0
    for row in sorted(texts):
        parts += [data[at : offsets[row]].tobytes(), texts[row]]
        at = int(offsets[row + 1])
    parts.append(data[at:].tobytes())
    sizes = np.diff(offsets)
    for row, text in texts.items():
        sizes[row] = len(text)
    moved = np.concatenate([[0], np.cumsum(sizes)])
    return np.frombuffer(b"".join(parts) or b"\0", np.uint8), moved


def _names(given: Sequence[str]) -> tuple[Any, Any]:
    held = "".join(given).encode()
    return np.frombuffer(held or b"\0", np.uint8), np.cumsum([0, *(len(name.encode()) for name in given)])

"""Dolma's mixer: documents joined with their attributes, filtered, spans replaced, packed into shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from loom.artifact import Artifact, Input, commit, digest_json, discard, finished
from loom.corpus.documents import as_rows, find_files, read, read_lines, write_lines
from loom.corpus.dolma import columns, config, names
from loom.corpus.dolma.jq import JqError, compile_jq, truthy
from loom.corpus.dolma.jsonpath import compile_path
from loom.corpus.dolma.replace import Span, disjoint, join, replace
from loom.corpus.mix import Edit, apply, merge
from loom.engine import Done, Engine, LocalEngine, Operation, Task, clear_receipts, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain

ATTRIBUTE_SUFFIXES = (".jsonl.gz", ".jsonl.zst", ".json.gz", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Shard:
    """Input files that become one output file."""

    output: str
    inputs: tuple[Path, ...]


def mix(mixer: config.Mixer, compat: str = "", engine: Engine | None = None) -> list[Artifact]:
    """Run a mixer configuration; every stream's output folder becomes an artifact.

    Raises `LoomError` before work starts for a stream without documents, attributes that are missing, an
    expression that cannot be read and, unless `compat`, a name that nothing wrote.
    """
    engine = engine or LocalEngine(mixer.processes)
    return [_mix_stream(stream, mixer.shuffle, compat, engine) for stream in mixer.streams]


def _mix_stream(stream: config.Stream, pack: bool, compat: str, engine: Engine) -> Artifact:
    started = time.monotonic()
    files = find_files(stream.documents)
    out = Path(stream.output.path)
    stream_plain = to_plain(stream)
    filters = _expressions(stream, compat)
    pairs = {path: [attribute_file(path, name) for name in stream.attributes] for path in files}
    if not compat:
        wanted = [n for text, syntax in filters for n in names.read_by(text, syntax)]
        names.check(wanted, [item for found in pairs.values() for item in found], files)
    inputs = [
        Input(str(path.resolve()), identity(path)) for path in dict.fromkeys(
            item for doc, attributes in pairs.items() for item in (doc, *attributes)
        )
    ]  # fmt: skip
    recipe = {"stream": stream_plain, "compat": compat, "shuffle": pack}
    if (before := finished(out, "documents", recipe, inputs)) is not None:
        return before
    discard(out, "documents")
    by_path = {item.path: item for item in inputs}
    tasks = [
        Task(
            tuple(by_path[str(item.resolve())] for path in shard.inputs for item in (path, *pairs[path])),
            (shard.output,),
            {"inputs": [[str(path), [str(item) for item in pairs[path]]] for path in shard.inputs]},
        )
        for shard in shards(stream, files, pack)
    ]
    every = [str(item) for path, found in pairs.items() for item in (path, *found)]
    quick = columns.eligible(stream, every) and columns.rules(stream, compat) is not None
    settings = {"stream": stream_plain, "compat": compat}
    operation = Operation("dolma mix", 1, _mix_task, settings, _prepare, threads=quick)
    done = engine.run(operation, tasks, out, f"mix {stream.name}")
    artifact = commit(
        out,
        "documents",
        recipe=recipe,
        inputs=inputs,
        outputs=[item for result in done for item in result.outputs],
        counters=sum_counters([result.counters for result in done]),
        started=started,
    )
    clear_receipts(out)
    return artifact


def identity(path: Path) -> str:
    status = path.stat()
    return digest_json([str(path.resolve()), status.st_size, status.st_mtime_ns])


def _expressions(stream: config.Stream, compat: str) -> list[tuple[str, str]]:
    """Every expression with its syntax, mended unless `compat`, compiled."""
    found: list[tuple[str, str]] = []
    chosen = stream.filter or config.Filter()
    for text in (*chosen.include, *chosen.exclude):
        found.append((text, chosen.syntax))
    found += [(item.span, item.syntax) for item in stream.span_replacement]
    out = []
    for text, syntax in found:
        mended = text if compat else names.mend(text)
        if mended != text:
            names.warn_mended(text, mended)
        compile_jq(mended) if syntax == "jq" else compile_path(mended)
        out.append((mended, syntax))
    return out


def attribute_file(document: Path, name: str) -> Path:
    """The attribute file beside a document file; Loom's Parquet sidecars and other suffixes are found too."""
    text = str(document)
    if "/documents/" not in text:
        raise LoomError(f"{document} does not lie below a folder `documents`, so its attributes are nowhere.")
    path = Path(text.replace("/documents/", f"/attributes/{name}/"))
    if path.is_file():
        return path
    stem = path.name
    for suffix in ATTRIBUTE_SUFFIXES:
        stem = stem.removesuffix(suffix)
    for suffix in ATTRIBUTE_SUFFIXES:
        if (other := path.with_name(stem + suffix)).is_file():
            return other
    raise LoomError(
        f"The attributes {name!r} of {document} are missing: there is no {path}. Run that tagger on it "
        f"first, or take {name!r} out of `attributes`."
    )


def shards(stream: config.Stream, files: Sequence[Path], pack: bool) -> list[Shard]:
    """Pack input files in their order by compressed size, as Dolma does; the last shard ends in .json.gz."""
    if not pack:
        return [Shard(f"documents/{path.name}", (path,)) for path in files]
    groups: list[list[Path]] = [[]]
    size = 0
    for path in files:
        size += path.stat().st_size
        if size > stream.output.max_size_in_bytes and groups[-1]:
            groups.append([])
            size = path.stat().st_size
        groups[-1].append(path)
    last = len(groups) - 1
    return [
        Shard(f"{stream.name}-{index:04d}.{'json' if index == last else 'jsonl'}.gz", tuple(group))
        for index, group in enumerate(groups)
    ]


class Mixing:
    """A stream's compiled rules."""

    def __init__(self, stream: config.Stream, compat: str) -> None:
        self.stream, self.compat = stream, compat
        self.keep = keeper(stream.filter, mended=not compat)
        self.keep_as_dolma = keeper(stream.filter, mended=False)
        self.spans = [(item, _selector(item.span, item.syntax)) for item in stream.span_replacement]

    def edited(self, row: dict[str, Any]) -> tuple[str, bool]:
        """The row's text after replacement, and whether Dolma's own rules would have left another."""
        return self.replaced(row["text"], list(self._spans_of(row)))

    def replaced(self, text: str, spans: list[Span]) -> tuple[str, bool]:
        """`text` with spans replaced, and whether Dolma's own rules would have left another."""
        if not spans:
            return text, False
        spans.sort(key=itemgetter(0))
        if disjoint(spans, len(text)):  # nothing that the two rules could see differently
            return join(text, spans), False
        as_dolma = replace(text, spans)
        if self.compat:
            return as_dolma, False
        edits = [
            Edit(start, end, replacement.replace("{}", text[start:end]), "")
            for start, end, replacement in spans
        ]
        mended = apply(text, merge(edits))
        return mended, mended != as_dolma

    def _spans_of(self, row: dict[str, Any]) -> Iterator[Span]:
        for item, select in self.spans:
            low = float("-inf") if item.min_score is None else item.min_score
            high = float("inf") if item.max_score is None else item.max_score
            by = _replacement(item, row)
            for found in select(row):
                if isinstance(found, list):
                    yield from [(span[0], span[1], by) for span in found if low <= span[2] < high]


def _replacement(item: config.Replacement, row: dict[str, Any]) -> str:
    if item.replacement[:1] not in ("$", "."):
        return item.replacement
    found = _selector(item.replacement, "jsonpath" if item.replacement[0] == "$" else "jq")(row)
    return str(found[0]) if found and found[0] is not None else ""


def _selector(text: str, syntax: str) -> Callable[[Any], list[Any]]:
    return compile_jq(text) if syntax == "jq" else compile_path(text).find


def keeper(chosen: config.Filter | None, mended: bool) -> Callable[[dict[str, Any]], bool]:
    """Whether a row is kept: any include matches (or there is none) and no exclude does."""
    if chosen is None:
        return lambda row: True
    fix = names.mend if mended else str
    include = [_matcher(fix(text), chosen.syntax, mended) for text in chosen.include]
    exclude = [_matcher(fix(text), chosen.syntax, mended) for text in chosen.exclude]

    def keep(row: dict[str, Any]) -> bool:
        return (not include or any(test(row) for test in include)) and not any(test(row) for test in exclude)

    return keep


def _matcher(text: str, syntax: str, mended: bool) -> Callable[[dict[str, Any]], bool]:
    if syntax == "jsonpath":
        find = compile_path(text, not mended).find
        return lambda row: bool(find(row))
    filter_ = compile_jq(text)

    def matches(row: dict[str, Any]) -> bool:
        try:
            found = filter_(row)
        except JqError as error:
            raise LoomError(f"The jq filter {text!r} fails on document {row.get('id')!r}: {error}.") from None
        return bool(found) and all(truthy(v) and v not in (0, "", [], {}) for v in found)

    return matches


def _prepare(settings: Mapping[str, Any]) -> Mixing:
    from loom.recipe import build

    return Mixing(build(settings["stream"], config.Stream, "stream"), settings["compat"])


def _mix_task(mixing: Mixing, task: Task, out: Path) -> Done:
    counters = {"documents_in": 0, "filtered": 0, "too_short": 0, "documents_out": 0, "unlike_dolma": 0}
    with write_lines(out / task.outputs[0]) as stream:
        for document, attributes in task.parameters["inputs"]:
            if columns.eligible(mixing.stream, (document, *attributes)):
                _mix_blocks(mixing, document, attributes, stream, counters)
            else:
                rows = joined(Path(document), attributes, bool(mixing.compat))
                _mix_rows(mixing, Path(document).name, 1, rows, stream, counters)
    return Done({task.outputs[0]: counters["documents_out"]}, counters)


def _mix_rows(
    mixing: Mixing,
    place: str,
    first: int,
    rows: Iterator[dict[str, Any]],
    stream: IO[bytes],
    counters: dict[str, int],
) -> None:
    """Write what is left of a file's rows, of which the first is row `first`."""
    output = mixing.stream.output
    for number, row in enumerate(rows, first):
        if not _keeps(mixing, row, counters):
            continue
        row["text"], differs = mixing.edited(row)
        counters["unlike_dolma"] += differs
        for name in output.discard_fields:
            row.pop(name, None)
        if len(row["text"].strip().encode()) < (output.min_text_length or 0):
            counters["too_short"] += 1
            continue
        metadata = row.get("metadata")
        row["metadata"] = metadata if isinstance(metadata, dict) else {}
        row["metadata"]["provenance"] = f"{place}:{number}"
        stream.write(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) + b"\n")
        counters["documents_out"] += 1


def _keeps(mixing: Mixing, row: dict[str, Any], counters: dict[str, int]) -> bool:
    kept = mixing.keep(row)
    counters["documents_in"] += 1
    counters["filtered"] += not kept
    if not mixing.compat and kept != mixing.keep_as_dolma(row):
        counters["unlike_dolma"] += 1
    return kept


def _mix_blocks(
    mixing: Mixing, document: str, attributes: Sequence[str], stream: IO[bytes], counters: dict[str, int]
) -> None:
    """Write what is left of a file's rows, by columns where a block of lines allows it."""
    block_of = columns.Columns(mixing.stream, mixing.compat)
    place, first = Path(document).name, 1
    for block, lines in columns.blocks(Path(document), attributes):
        if not block_of.read(block, lines):
            numbered = [enumerate(part.splitlines(), first) for part in (block, *lines)]
            readers = [_json_rows(Path(p), own) for p, own in zip(attributes, numbered[1:], strict=True)]
            rows = join_rows(Path(document), numbered[0], attributes, readers, bool(mixing.compat))
            _mix_rows(mixing, place, first, rows, stream, counters)
            first += block.count(b"\n")
            continue
        count = block_of.where.shape[0]
        kept = block_of.kept()
        if kept is None:
            kept = np.array([_keeps(mixing, block_of.row(index), counters) for index in range(count)], bool)
        else:
            counters["documents_in"] += count
            counters["filtered"] += int(count - kept.sum())
        data, offsets, left = block_of.texts()
        patches = {}
        for row, (text, spans) in left.items():
            if kept[row]:
                edited, differs = mixing.replaced(text, spans)
                patches[row] = columns.inside(edited)
                counters["unlike_dolma"] += differs
        data, offsets = columns.patched(data, offsets, patches)
        if mixing.stream.output.min_text_length:
            short = kept & (columns.trimmed(data, offsets) < mixing.stream.output.min_text_length)
            counters["too_short"] += int(short.sum())
            kept &= ~short
        metadata = block_of.provenance(place, first, kept)
        stream.write(block_of.written(kept, data, offsets, metadata))
        counters["documents_out"] += int(kept.sum())
        first += count


def joined(document: Path, attributes: Sequence[str], lenient: bool) -> Iterator[dict[str, Any]]:
    """A file's rows with their attributes merged into one object.

    Ids that differ are an error; missing attribute rows too, unless `lenient` (Dolma only warns).
    """
    readers = [_attribute_rows(Path(path)) for path in attributes]
    yield from join_rows(document, enumerate(_document_lines(document), 1), attributes, readers, lenient)


def _document_lines(document: Path) -> Iterator[bytes]:
    if not document.name.endswith(".parquet"):
        yield from read_lines(document)
        return
    for batch in read(document):
        yield from (orjson.dumps(row) for row in as_rows(batch))


def join_rows(
    document: Path,
    lines: Iterable[tuple[int, bytes]],
    attributes: Sequence[str],
    readers: Sequence[Iterator[tuple[Any, dict[str, Any]]]],
    lenient: bool,
) -> Iterator[dict[str, Any]]:
    """`joined` for some of a file's lines, with the rows of every attribute file that belong to them."""
    for number, line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise LoomError(f"{document}, row {number:,}, is not JSON ({error}).") from None
        merged: dict[str, Any] = {}
        for path, reader in zip(attributes, readers, strict=True):
            found = next(reader, None)
            if found is None:
                if lenient:
                    break
                raise LoomError(
                    f"{path} has fewer rows than {document}: none for row {number:,}. It was cut short; "
                    f"run that tagger again."
                )
            identity_, values = found
            if identity_ != row.get("id"):
                raise LoomError(
                    f"{path}, row {number:,}, is about {identity_!r}, but {document} has {row.get('id')!r}. "
                    f"The attributes belong to other documents; run that tagger again."
                )
            merged.update(values)
        existing = row.get("attributes")
        if isinstance(existing, dict):
            existing.update(merged)
        elif merged or attributes:
            row["attributes"] = merged
        yield row


def _attribute_rows(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    if path.name.endswith(".parquet"):
        from loom.corpus import attributes

        for ids, spans in attributes.read(path):
            for row, identity_ in enumerate(ids):
                yield (
                    identity_,
                    {
                        key: [list(item) for item in found]
                        for key, value in spans.items()
                        if (found := value.of(row)) is not None
                    },
                )
        return
    yield from _json_rows(path, enumerate(read_lines(path), 1))


def _json_rows(path: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for number, line in lines:
        row = orjson.loads(line)
        if not isinstance(row.get("attributes"), dict):
            raise LoomError(f"{path}, row {number:,}, has no `attributes`.")
        yield row.get("id"), row["attributes"]

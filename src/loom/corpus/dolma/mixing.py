"""Dolma's mixer: documents joined with their attributes, filtered, spans replaced, packed into shards."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from loom.artifact import Artifact, Input, commit, discard, finished
from loom.corpus import remote, tag
from loom.corpus.documents import find_files, read_blocks, write_lines
from loom.corpus.dolma import columns, config, joining, names, places
from loom.corpus.dolma.jq import JqError, compile_jq, truthy
from loom.corpus.dolma.jsonpath import compile_path
from loom.corpus.dolma.replace import Span, disjoint, join, replace
from loom.corpus.mix import Edit, apply, merge
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_work, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain
from loom.tokens.documents import Rejected

NOT_INCLUDED = columns.NOT_INCLUDED
Counters = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """Input files that become one output file."""

    output: str
    inputs: tuple[Path, ...]

    @property
    def rejected(self) -> str:
        """Where its rows go that are no documents."""
        return f"{tag.REJECTED}/{self.output.partition('.')[0]}.jsonl"


@dataclass(frozen=True)
class Planned:
    """A stream that was checked: its files, each with its sidecars, and what becomes of them."""

    stream: config.Stream
    files: Mapping[Path, Sequence[Path]]
    shards: Sequence[Shard]


def plan(mixer: config.Mixer, compat: str = "") -> list[Planned]:
    """Every stream, checked.

    Raises `LoomError` for a stream without documents, attributes that are missing or were cut short, an
    expression that cannot be read, two outputs of one name and, unless `compat`, a name that nothing wrote.
    """
    beside = places.Sidecars()
    made = [_planned(stream, mixer.shuffle, compat, beside) for stream in mixer.streams]
    seen: set[str] = set()
    for planned in made:
        folder = planned.stream.output.path.rstrip("/")
        for name in (
            f"{folder}: the stream {planned.stream.name}",
            *(f"{folder}/{s.output}" for s in planned.shards),
        ):
            if name in seen:
                raise LoomError(
                    f"Twice the same output, {name}: name the streams, or their files, differently."
                )
            seen.add(name)
    return made


def _planned(stream: config.Stream, pack: bool, compat: str, beside: places.Sidecars) -> Planned:
    files = find_files(stream.documents)
    places.agree(files, stream.compression)
    expressions = _expressions(stream, compat)
    pairs = {path: [beside.of(path, name) for name in stream.attributes] for path in files}
    sidecars = [item for found in pairs.values() for item in found]
    places.refuse_cut(sidecars)
    if not compat:
        names.check([n for text, syntax in expressions for n in names.read_by(text, syntax)], sidecars, files)
    return Planned(stream, pairs, shards(stream, files, pack))


def mix(mixer: config.Mixer, compat: str = "", engine: Engine | None = None) -> list[Artifact]:
    """Run a mixer configuration; every output folder becomes an artifact, streams that share one share it.

    Returns each stream's artifact; its counters are in `counters["streams"]`. Raises what `plan` raises,
    before work starts.
    """
    engine = engine or LocalEngine(places.workers(mixer.processes))
    folders: dict[str, list[Planned]] = {}
    for planned in plan(mixer, compat):
        folders.setdefault(planned.stream.output.path.rstrip("/"), []).append(planned)
    made = {path: _mix_into(path, group, mixer, compat, engine) for path, group in folders.items()}
    return [made[stream.output.path.rstrip("/")] for stream in mixer.streams]


def _mix_into(
    path: str, group: Sequence[Planned], mixer: config.Mixer, compat: str, engine: Engine
) -> Artifact:
    if (to := remote.address(path)) is not None:
        artifact = _mix_streams(places.staging(mixer.work_dir, to), group, mixer.shuffle, compat, engine)
        remote.publish(artifact, to)
        return changed(artifact, path=Path(to))
    return _mix_streams(Path(path), group, mixer.shuffle, compat, engine)


def _mix_streams(out: Path, group: Sequence[Planned], pack: bool, compat: str, engine: Engine) -> Artifact:
    started = time.monotonic()
    used = [item for each in group for path, found in each.files.items() for item in (path, *found)]
    inputs = places.as_inputs(used)
    recipe = {"streams": [to_plain(each.stream) for each in group], "compat": compat, "shuffle": pack}
    if (before := finished(out, "documents", recipe, inputs)) is not None:
        clear_work(out)
        return before
    discard(out, "documents")
    shutil.rmtree(out / tag.REJECTED, ignore_errors=True)
    by_path = {item.path: item for item in inputs}
    done = {each.stream.name: _run(each, by_path, out, compat, engine) for each in group}
    counters = {name: sum_counters([item.counters for item in found]) for name, found in done.items()}
    outputs = []
    for item in (item for found in done.values() for result in found for item in result.outputs):
        if item.rows or not item.path.startswith(f"{tag.REJECTED}/"):
            outputs.append(item)
        else:
            (out / item.path).unlink(missing_ok=True)
    tag.remove_empty(out / tag.REJECTED)
    artifact = commit(
        out,
        "documents",
        recipe=recipe,
        inputs=inputs,
        outputs=outputs,
        counters={**sum_counters(list(counters.values())), "streams": counters},
        started=started,
    )
    clear_work(out)
    return artifact


def _run(
    planned: Planned, by_path: Mapping[str, Input], out: Path, compat: str, engine: Engine
) -> list[Finished]:
    stream, pairs = planned.stream, planned.files
    tasks = [
        Task(
            tuple(by_path[remote.place(item)] for path in shard.inputs for item in (path, *pairs[path])),
            (shard.output, shard.rejected),
            {"inputs": [[str(path), [str(item) for item in pairs[path]]] for path in shard.inputs]},
        )
        for shard in planned.shards
    ]
    every = [str(item) for path, found in pairs.items() for item in (path, *found)]
    quick = columns.eligible(stream, every) and columns.rules(stream, compat) is not None
    settings = {"stream": to_plain(stream), "compat": compat}
    operation = Operation("dolma mix", 2, _mix_task, settings, _prepare, threads=quick)
    return engine.run(operation, tasks, out, f"mix {stream.name}")


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


def shards(stream: config.Stream, files: Sequence[Path], pack: bool) -> list[Shard]:
    """Pack input files in their order by compressed size, as Dolma does; the last shard ends in .json.gz.

    Unpacked, every file keeps its name; packed or not, `compression.output` says how they are compressed.
    """
    kind = stream.compression.output
    if not pack:
        named = (
            f"{path.name.removesuffix('.parquet')}.jsonl.gz" if path.suffix == ".parquet" else path.name
            for path in files
        )
        return [
            Shard(f"documents/{places.renamed(name, kind)}", (path,))
            for name, path in zip(named, files, strict=True)
        ]
    groups: list[list[Path]] = [[]]
    total = 0
    for path in files:
        size = places.size(path)
        total += size
        if total > stream.output.max_size_in_bytes and groups[-1]:
            groups.append([])
            total = size
        groups[-1].append(path)
    last = len(groups) - 1
    return [
        Shard(
            f"{stream.name}-{index:04d}.{'json' if index == last else 'jsonl'}.{kind or 'gz'}", tuple(group)
        )
        for index, group in enumerate(groups)
    ]


class Mixing:
    """A stream's compiled rules."""

    def __init__(self, stream: config.Stream, compat: str) -> None:
        self.stream, self.compat = stream, compat
        self.removed_by = judge(stream.filter, mended=not compat)
        self.removed_by_dolma = judge(stream.filter, mended=False)
        self.spans = [(item, _selector(item.span, item.syntax)) for item in stream.span_replacement]

    def edited(self, row: dict[str, Any]) -> tuple[str, bool]:
        """The row's text after replacement, and whether Dolma's own rules would have left another."""
        return self.replaced(row["text"], list(self.spans_of(row)))

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

    def spans_of(self, row: dict[str, Any]) -> Iterator[Span]:
        """The spans to replace, in the order of the configuration: start, end, what takes their place."""
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


def judge(chosen: config.Filter | None, mended: bool) -> Callable[[dict[str, Any]], str | None]:
    """What removes a row: the first exclude that matches it, `NOT_INCLUDED`, or None for one that is kept."""
    if chosen is None:
        return lambda row: None
    fix = names.mend if mended else str
    include = [_matcher(fix(text), chosen.syntax, mended) for text in chosen.include]
    exclude = [(text, _matcher(fix(text), chosen.syntax, mended)) for text in chosen.exclude]

    def removed_by(row: dict[str, Any]) -> str | None:
        if include and not any(test(row) for test in include):
            return NOT_INCLUDED
        return next((text for text, test in exclude if test(row)), None)

    return removed_by


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
    counters: Counters = {"documents_in": 0, "rejected": 0, "filtered": 0, "too_short": 0, "documents_out": 0}
    counters |= {"unlike_dolma": 0, "filtered_by": {}}
    with write_lines(out / task.outputs[0]) as stream, write_lines(out / task.outputs[1]) as rejected:

        def aside(item: Rejected) -> None:
            rejected.write(item.json() + b"\n")
            counters["rejected"] += 1

        for document, attributes in task.parameters["inputs"]:
            if columns.eligible(mixing.stream, (document, *attributes)):
                _mix_blocks(mixing, Path(document), attributes, stream, counters, aside)
            else:
                rows = joining.joined(Path(document), attributes, bool(mixing.compat), aside)
                _mix_rows(mixing, Path(document).name, rows, stream, counters)
    rows_of = {task.outputs[0]: counters["documents_out"], task.outputs[1]: counters["rejected"]}
    return Done(rows_of, counters)


def _mix_rows(mixing: Mixing, place: str, rows: joining.Rows, stream: IO[bytes], counters: Counters) -> None:
    """Write what is left of a file's rows."""
    output = mixing.stream.output
    for number, row in rows:
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


def _keeps(mixing: Mixing, row: dict[str, Any], counters: Counters) -> bool:
    rule = mixing.removed_by(row)
    counters["documents_in"] += 1
    if rule is not None:
        _count_filtered(counters, rule, 1)
    if not mixing.compat and (rule is None) != (mixing.removed_by_dolma(row) is None):
        counters["unlike_dolma"] += 1
    return rule is None


def _count_filtered(counters: Counters, rule: str, rows: int) -> None:
    counters["filtered"] += rows
    counters["filtered_by"][rule] = counters["filtered_by"].get(rule, 0) + rows


def _mix_blocks(
    mixing: Mixing,
    document: Path,
    attributes: Sequence[str],
    stream: IO[bytes],
    counters: Counters,
    aside: joining.Aside,
) -> None:
    """Write what is left of a file's rows, by columns where a block of lines allows it."""
    from loom.corpus.kernels.json_lines import count_lines

    block_of = columns.Columns(mixing.stream, mixing.compat)
    sidecars = [columns.Lines(Path(path)) for path in attributes]
    place, first = document.name, 1
    for block in read_blocks(document, columns.BLOCK):
        count = int(count_lines(np.frombuffer(block, np.uint8)))
        lines = [sidecar.take(count) for sidecar in sidecars]
        if block_of.read(block, lines):
            _mix_columns(mixing, block_of, place, first, stream, counters)
        else:
            rows = _block_rows(
                document, block, first, attributes, sidecars, lines, bool(mixing.compat), aside
            )
            _mix_rows(mixing, place, rows, stream, counters)
        first += count
    if not mixing.compat:
        joining.refuse_more(document, attributes, [bool(sidecar.take(1)) for sidecar in sidecars])


def _block_rows(
    document: Path,
    block: bytes,
    first: int,
    attributes: Sequence[str],
    sidecars: Sequence[columns.Lines],
    lines: Sequence[bytes],
    lenient: bool,
    aside: joining.Aside,
) -> joining.Rows:
    """A block's rows one by one; a sidecar's lines that no row of it took go back for the next block."""
    taken = [part.splitlines(keepends=True) for part in lines]
    left = [iter(part) for part in taken]
    readers = [
        joining.json_rows(Path(path), part, itertools.count(sidecar.taken - len(own) + 1))
        for path, part, sidecar, own in zip(attributes, left, sidecars, taken, strict=True)
    ]
    numbered = enumerate(block.splitlines(), first)
    yield from joining.join_lines(document, numbered, attributes, readers, lenient, aside)
    for sidecar, rest in zip(sidecars, left, strict=True):
        sidecar.back(list(rest))


def _mix_columns(
    mixing: Mixing,
    block_of: columns.Columns,
    place: str,
    first: int,
    stream: IO[bytes],
    counters: Counters,
) -> None:
    """Write what is left of a block that was taken in by columns; `first` is its first row's number."""
    count = block_of.where.shape[0]
    kept = block_of.kept()
    if kept is None:
        kept = np.array([_keeps(mixing, block_of.row(index), counters) for index in range(count)], bool)
    else:
        counters["documents_in"] += count
        for rule, rows in block_of.filtered.items():
            _count_filtered(counters, rule, rows)
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

"""A corpus, or several side by side, through every analysis: `survey.json` and a page.

Files are dealt to parts; each part is a task that maps its files into one partial result; partial
results merge in order. Parts depend on the files alone, so the result does not depend on the workers.
Memory depends on the analyses' tables, not on the corpus.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from loom import artifact, recipe
from loom.artifact import MANIFEST, Artifact, Input, atomic_write, relative, write_json
from loom.corpus import documents, tag
from loom.corpus.tag import File
from loom.engine import Done, Engine, LocalEngine, Operation, Task, clear_receipts
from loom.errors import LoomError
from loom.survey.analysis import ROW_BITS, Analysis, Chunk, Place, Places
from loom.survey.contamination import find_sets
from loom.survey.duplicates import overlap
from loom.survey.kernels import word_table
from loom.survey.registry import Options, build, choose
from loom.survey.sketches import KINDS, Partial

WORK = "work"
PART_BYTES = 256 << 20  # of files, about what a task takes; merging its result costs about a second
MOST_PARTS = 1024
BATCH_BYTES = 4 << 20  # small enough that its arrays are memory used before


@dataclass(frozen=True)
class Survey:
    """`documents`: globs, files or folders of one corpus; `against`: other corpora, a list of globs each."""

    documents: tuple[str, ...]
    against: tuple[tuple[str, ...], ...] = ()
    only: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Corpus:
    """One corpus: what it is called, its files, how they are dealt to parts."""

    name: str
    files: tuple[File, ...]
    parts: tuple[tuple[int, ...], ...]


def survey(asked: Survey, out: Path, engine: Engine | None = None) -> Artifact:
    """Run the analyses into `out/survey.json` and `out/survey.html`; finished parts are not mapped again.

    Raises `LoomError` for an analysis there is none of and a corpus without documents.
    """
    started = time.monotonic()
    engine = engine or LocalEngine()
    names = choose(asked.only)
    sets = [str(path) for path in find_sets(asked.options.eval)]
    asked = replace(asked, options=replace(asked.options, eval=tuple(sets)))
    corpora = [_corpus(patterns) for patterns in (asked.documents, *asked.against)]
    inputs = [Input(relative(file.path, out), file.digest) for corpus in corpora for file in corpus.files]
    evals = [Input(relative(Path(name), out), artifact.digest_file(Path(name))) for name in sets]
    inputs = list({item.path: item for item in [*inputs, *evals]}.values())
    settings = {
        "only": list(names),
        "options": _settings(asked.options),
        "corpora": [c.name for c in corpora],
    }
    if (done := artifact.finished(out, "survey", settings, inputs)) is not None:
        return done
    if (out / MANIFEST).exists() and artifact.load(out).kind != "survey":
        raise LoomError(
            f"{out} already holds something else. Give the survey a folder of its own with --out."
        )
    artifact.discard(out, "survey")
    analyses = build(names, asked.options)
    results, partials = [], []
    for number, corpus in enumerate(corpora):
        partial = _map(corpus, number, names, asked.options, evals, out, engine)
        results.append(_finish(corpus, analyses, partial))
        partials.append(partial)
    body: dict[str, Any] = {**results[0]}
    if "overlap" in names:
        body["overlap"] = _overlaps(corpora, partials)
    body["against"] = {c.name: result for c, result in zip(corpora[1:], results[1:], strict=True)}
    body = json.loads(json.dumps(body))
    write_json(out / "survey.json", body)
    from loom.survey.page import write_page

    write_page(out / "survey.html", body, analyses)
    made = artifact.commit(
        out,
        "survey",
        recipe=settings,
        inputs=inputs,
        outputs=artifact.describe(out, ["survey.json", "survey.html"]),
        counters={"files": sum(len(c.files) for c in corpora), "analyses": len(names)},
        started=started,
    )
    clear_receipts(out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return made


def _settings(options: Options) -> dict[str, Any]:
    plain: dict[str, Any] = recipe.to_plain(options)
    return {**plain, "eval": [Path(name).name for name in options.eval]}


def _documents(pattern: str) -> str:
    """Of a curated folder only its documents, not the attributes and removed documents beside them."""
    below = Path(pattern) / "documents"
    return str(below) if below.is_dir() and (Path(pattern) / MANIFEST).is_file() else pattern


def _corpus(patterns: Sequence[str]) -> Corpus:
    files = tuple(tag.find([_documents(pattern) for pattern in patterns]))
    sizes = [file.bytes for file in files]
    count = min(len(files), MOST_PARTS, max(2, -(-sum(sizes) // PART_BYTES)))
    parts: list[list[int]] = [[] for _ in range(count)]
    done, total = 0, max(1, sum(sizes))
    for number, size in enumerate(sizes):
        # The part in whose share of the bytes the file's middle lies.
        parts[min(count - 1, int((done + size / 2) * count / total))].append(number)
        done += size
    return Corpus(", ".join(patterns), files, tuple(tuple(part) for part in parts if part))


def _map(
    corpus: Corpus,
    number: int,
    names: Sequence[str],
    options: Options,
    evals: Sequence[Input],
    out: Path,
    engine: Engine,
) -> dict[str, Partial]:
    tasks = [
        Task(
            (*(Input(str(corpus.files[at].path), corpus.files[at].digest) for at in part), *evals),
            (f"{WORK}/corpus-{number}-{index:03d}",),
            {"files": list(part)},
        )
        for index, part in enumerate(corpus.parts)
    ]
    settings = {"names": list(names), "options": recipe.to_plain(options)}
    operation = Operation("survey", 1, run_part, settings, prepare, threads=True)
    merged: dict[str, Partial] = {}
    for finished in engine.run(operation, tasks, out, f"survey {corpus.name}"):
        for name, partial in load_partials(out / finished.task.outputs[0]).items():
            merge(merged.setdefault(name, {}), partial)
    return merged


def prepare(settings: Mapping[str, Any]) -> list[Analysis]:
    word_table()  # once, not by every thread
    return build(settings["names"], recipe.build(settings["options"], Options, "the survey's options"))


def run_part(analyses: list[Analysis], task: Task, out: Path) -> Done:
    """Map the files of one part."""
    partials = {analysis.name: analysis.start() for analysis in analyses}
    read = rejected = 0
    for number, item in zip(task.parameters["files"], task.inputs, strict=False):
        for batch in documents.read(Path(item.path), BATCH_BYTES):
            rejected += len(batch.rejected)
            if not len(batch):
                continue
            chunk = Chunk(batch, number)
            for analysis in analyses:
                analysis.map(partials[analysis.name], chunk)
            read += len(batch)
    with atomic_write(out / task.outputs[0]) as stream:
        stream.write(dump_partials(partials))
    return Done({task.outputs[0]: read}, {"documents": read, "rejected": rejected})


def merge(into: Partial, other: Partial) -> None:
    """Add one partial result to another, component by component."""
    for key, component in other.items():
        if key in into:
            into[key].merge(component)  # type: ignore[arg-type]
        else:
            into[key] = component


def dump_partials(partials: Mapping[str, Partial]) -> bytes:
    """Partial results as one .npz: arrays as they are, the rest as JSON."""
    arrays: dict[str, Any] = {}
    for analysis, partial in partials.items():
        for key, component in partial.items():
            name = f"{analysis}/{key}/{type(component).__name__}"
            parts = component.dump()
            if all(isinstance(part, np.ndarray) for part in parts.values()):
                arrays |= {f"{name}/{part}": value for part, value in parts.items()}
            else:
                arrays[f"{name}/json"] = np.frombuffer(json.dumps(parts).encode(), np.uint8)
    names = json.dumps(list(partials)).encode()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, analyses=np.frombuffer(names, np.uint8))
    return buffer.getvalue()


def load_partials(path: Path) -> dict[str, Partial]:
    """What `dump_partials` wrote; nothing in it is executed."""
    with np.load(path, allow_pickle=False) as stored:
        found: dict[str, Partial] = {name: {} for name in json.loads(stored["analyses"].tobytes())}
        grouped: dict[tuple[str, str, str], dict[str, Any]] = {}
        for name in stored.files:
            if name != "analyses":
                analysis, key, kind, part = name.split("/")
                grouped.setdefault((analysis, key, kind), {})[part] = stored[name]
        for (analysis, key, kind), parts in grouped.items():
            values = json.loads(parts["json"].tobytes()) if "json" in parts else parts
            found[analysis][key] = KINDS[kind].load(values)
    return found


def _finish(corpus: Corpus, analyses: Iterable[Analysis], partials: Mapping[str, Partial]) -> dict[str, Any]:
    chosen = [(analysis, partials.get(analysis.name, {})) for analysis in analyses]
    wanted = {int(place) for analysis, partial in chosen for place in analysis.wanted(partial)}
    places = find_places(corpus, wanted)
    body: dict[str, Any] = {"corpus": corpus.name, "files": len(corpus.files)}
    for analysis, partial in chosen:
        body[analysis.name] = analysis.finish(partial, places)
    return body


def find_places(corpus: Corpus, wanted: set[int]) -> Places:
    """The documents at these places; each file is read as far as the last of its rows that is wanted."""
    by_file: dict[int, set[int]] = {}
    for place in wanted:
        by_file.setdefault(place >> ROW_BITS, set()).add(place & ((1 << ROW_BITS) - 1))
    found = {}
    for number, rows in sorted(by_file.items()):
        file = corpus.files[number]
        last = max(rows)
        for batch in documents.read(file.path, BATCH_BYTES):
            if not len(batch):
                continue
            chunk = Chunk(batch, number)
            for at in np.flatnonzero(np.isin(batch.lines, list(rows))).tolist():
                row = int(batch.lines[at])
                text = batch.table.column("text")[at].as_py()
                place = int(chunk.where[at])
                found[place] = Place(chunk.ids[at], text, chunk.urls[at], file.name, row)
            if int(batch.lines[-1]) >= last:
                break
    return found


def _overlaps(corpora: Sequence[Corpus], partials: Sequence[dict[str, Partial]]) -> list[dict[str, Any]]:
    found = []
    for a in range(len(corpora)):
        for b in range(a + 1, len(corpora)):
            pair: dict[str, Any] = {"corpora": [corpora[a].name, corpora[b].name]}
            for key in ("text", "url"):
                pair[key] = overlap(partials[a]["duplicates"], partials[b]["duplicates"], key)
            found.append(pair)
    return found

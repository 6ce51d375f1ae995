"""The six steps as one resumable run: language, quality, content, deduplication, decontamination, mixing.

    tag        attributes beside the documents, all taggers in one pass
    judge      each source's rules, in order: the first that speaks removes the document
    duplicates of what is left: documents, documents nearly alike, paragraphs; the first in input order stays
    mix        cut and mask spans, drop what was removed (kept under removed/ with its rule)

Every step is a list of content-addressed tasks over files, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loom.artifact import (
    MANIFEST,
    Artifact,
    Input,
    commit,
    digest_file,
    digest_json,
    discard,
    finished,
    load,
    refer,
)
from loom.corpus import documents, expression, keys, limits, remote, tag, taggers
from loom.corpus import ids as id_index
from loom.corpus.dedupe import exact
from loom.corpus.mix import (
    DUPLICATE_DOCUMENT,
    DUPLICATE_ID,
    DUPLICATE_KEY,
    DUPLICATE_PARAGRAPH,
    EMPTY,
    NEAR_DUPLICATE,
    NOT_SAMPLED,
    dead_rows,
    mix_task,
    prepare_mix,
    sidecar,
)
from loom.corpus.near import near_duplicates
from loom.corpus.rules import Curate, replaced, resolved, source_files
from loom.corpus.sampling import fraction
from loom.corpus.tag import File
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_work, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain

__all__ = ["Curate", "curate"]

WORK = "work"
UNITS = {"line": 1, "block": 2}


def curate(recipe: Curate, out: Path, engine: Engine | None = None) -> Artifact:
    """Curate into `out/documents/<source>/`; removed documents lie in `out/removed/` with their rule.

    An address as `out` gets what was made in a folder of the user's cache, uploaded once it is complete.
    Raises `LoomError` for a rule that reads what no tagger writes, a source without files, or a run that
    leaves nothing.
    """
    started = time.monotonic()
    if (to := remote.address(out)) is not None:
        made = curate(recipe, remote.staging(to), engine)
        remote.publish(made, to)
        return made
    files = source_files(recipe)
    documents_in = tag.inputs_of(recipe.documents, [file for found in files.values() for file in found], out)
    read = _read_by_rules(recipe, out)
    inputs = [*documents_in, *(item for item in read if item not in documents_in)]
    plain = to_plain(recipe)
    recipe = resolved(recipe)
    if (before := finished(out, "documents", plain, inputs)) is not None:
        clear_work(out, WORK)
        return before
    discard(out, "documents")
    engine = engine or LocalEngine()
    owners = [name for name, found in files.items() for _ in found]
    flat = [file for found in files.values() for file in found]
    tagged = _tag(recipe, files, out, engine)
    judged = _judge(recipe, owners, flat, tagged, out, engine)
    limits.refuse_dead_fields(recipe, owners, judged)
    limits.refuse_too_many(recipe, owners, judged)
    index = id_index.write(judged, sum(done.counters["documents"] for done in judged), out, engine)
    duplicates = _duplicates(recipe, owners, judged, flat, out, engine)
    mixed = _mix(recipe, owners, flat, tagged, judged, duplicates, out, engine)
    counters = _count(recipe, owners, tagged, judged, mixed)
    if counters["documents_out"] == 0:
        raise LoomError(
            "The rules removed every document. "
            + " ".join(
                f"{name}: " + ", ".join(f"{rule} {n:,}" for rule, n in part["removed"].items()) + "."
                for name, part in counters["sources"].items()
            )
        )
    outputs = [item for done in tagged for item in done.outputs if item.rows or "attributes/" in item.path]
    outputs += [item for done in mixed for item in done.outputs if item.rows or "documents/" in item.path]
    outputs += [item for done in index for item in done.outputs]
    kept = {item.path for item in outputs}
    for done in [*tagged, *mixed]:
        for item in done.outputs:
            if item.path not in kept:
                (out / item.path).unlink(missing_ok=True)
    artifact = commit(
        out,
        "documents",
        recipe=plain,
        inputs=inputs,
        outputs=outputs,
        counters=counters,
        facts=_against(documents_in, read),
        started=started,
    )
    clear_work(out, WORK)
    for folder in ("removed", "rejected"):
        tag.remove_empty(out / folder)
    return artifact


def _read_by_rules(recipe: Curate, out: Path) -> list[Input]:
    """What the rules read beside the documents: held-out texts, taggers' models and lists, modules of one's own."""
    found = []
    if recipe.decontaminate is not None:
        path = Path(recipe.decontaminate.path)
        if not path.is_file():
            raise LoomError(f"There is no file {path} with held-out texts (decontaminate.path).")
        made = (path.parent / MANIFEST).exists()
        found.append(refer(load(path.parent), out) if made else Input(str(path.resolve()), digest_file(path)))
    taggers.load_families(recipe.modules)
    names = dict.fromkeys(
        name for source in recipe.sources.values() for name in recipe.rules[source.rules].taggers
    )
    paths = {
        path.resolve() for given in taggers.files_of(list(names), recipe.files).values() for path in given
    }
    paths |= {path.resolve() for path in map(taggers.module_file, recipe.modules) if path is not None}
    found += [Input(str(path), digest_file(path)) for path in sorted(paths)]
    return list(dict.fromkeys(found))


def _tag(recipe: Curate, files: Mapping[str, Sequence[File]], out: Path, engine: Engine) -> list[Finished]:
    """Sources with the same taggers are tagged in one run; results are in the order of all files."""
    done: dict[str, Finished] = {}
    chosen = {name: recipe.rules[source.rules].taggers for name, source in recipe.sources.items()}
    for names in dict.fromkeys(chosen.values()):
        group = [file for source, found in files.items() if chosen[source] == names for file in found]
        tasks = [tag.task_of(file, names, "parquet") for file in group]
        for file, result in zip(
            group,
            engine.run(
                tag.operation(names, recipe.modules, recipe.files), tasks, out, f"tag ({', '.join(names)})"
            ),
            strict=True,
        ):
            done[file.name] = result
    return [done[file.name] for found in files.values() for file in found]


def _against(documents_in: Sequence[Input], read: Sequence[Input]) -> dict[str, list[str]]:
    """The digests of what the rules read: inputs, but none of it is in the documents."""
    only_read = [item.digest for item in read if item not in documents_in]
    return {"against": only_read} if only_read else {}


def _outputs_as_inputs(done: Finished) -> tuple[Input, ...]:
    return tuple(Input(item.path, item.digest) for item in done.outputs)


def _judge(
    recipe: Curate,
    owners: Sequence[str],
    files: Sequence[File],
    tagged: Sequence[Finished],
    out: Path,
    engine: Engine,
) -> list[Finished]:
    tasks = []
    for name, file, done in zip(owners, files, tagged, strict=True):
        rules = recipe.rules[recipe.sources[name].rules]
        tasks.append(
            Task(
                (Input(str(file.path), file.digest), *_outputs_as_inputs(done)),
                (f"{WORK}/{file.stem}.judged",),
                {
                    "path": str(file.path),
                    "sidecars": {t: f"attributes/{t}/{file.stem}.parquet" for t in rules.taggers},
                    "remove": dict(rules.remove),
                    "share": recipe.sources[name].share,
                    "paragraphs": rules.paragraphs,
                    "source": name,
                    "unique": rules.unique,
                },
            )
        )
    settings = {"dedupe": to_plain(recipe.dedupe), "seed": recipe.seed}
    return engine.run(Operation("judge", 5, _judge_task, settings, threads=True), tasks, out, "judge")


def _judge_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.corpus.kernels import fingerprints
    from loom.corpus.kernels.characters import lengths

    parameters = task.parameters
    batches = list(documents.read(Path(parameters["path"])))
    ids = [identity for batch in batches for identity in batch.ids]
    by_tagger = {t: sidecar(out, t, name, ids) for t, name in parameters["sidecars"].items()}
    characters = np.concatenate([np.zeros(0, np.int64), *(lengths(*batch.utf8()) for batch in batches)])
    sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(batch.utf8()[1]) for batch in batches)])
    columns = expression.Columns(
        {(t, key): value for t, spans in by_tagger.items() for key, value in spans.items()}, characters, sizes
    )
    verdict = np.full(len(ids), -1, np.int32)  # the rule that removed it, -1 for none
    matched = {}
    known = {t: tuple(spans) for t, spans in by_tagger.items()}
    for index, (rule, text) in enumerate(parameters["remove"].items()):
        checked = expression.parse(text, f"the rule {rule!r}")
        if ids:
            expression.check_names(checked, known, f"the rule {rule!r}")
        hit = checked(columns) if ids else np.zeros(0, bool)
        matched[rule] = int(hit.sum())
        verdict[hit & (verdict < 0)] = index
    if parameters["share"] < 1:
        drawn = np.array(
            [fraction(identity, settings["seed"]) >= parameters["share"] for identity in ids], bool
        )
        matched[NOT_SAMPLED] = int(drawn.sum())
        verdict[drawn & (verdict < 0)] = len(parameters["remove"])
    dedupe = settings["dedupe"]
    prints, spans, span_prints = [np.zeros((0, 2), np.uint64)], [np.zeros((0, 3), np.int64)], []
    salt = np.uint64(0) if dedupe["across_sources"] else keys.salt_of(parameters["source"])
    start = 0
    for batch in batches:
        data, offsets = batch.utf8()
        prints.append(fingerprints.documents(data, offsets) ^ salt)
        if dedupe["paragraphs"] and parameters["paragraphs"]:
            found, hashes = fingerprints.paragraphs(
                data, offsets, UNITS[dedupe["unit"]], dedupe["fewest_words"]
            )
            found[:, 0] += start
            spans.append(found)
            span_prints.append(hashes ^ salt)
        start += len(batch)
    by_key = keys.of_field(batches, parameters["unique"])
    exact.save(
        out / task.outputs[0],
        verdict=verdict,
        spans=np.concatenate(spans),
        bytes=sizes,
        **exact.spread("documents", np.concatenate(prints)),
        **exact.spread("by_id", keys.of_ids(batches, parameters["source"])),
        **exact.spread("by_key", by_key),
        **exact.spread("paragraphs", np.concatenate([np.zeros((0, 2), np.uint64), *span_prints])),
        **id_index.table(ids),
        **id_index.in_order(ids),
    )
    return Done(
        {task.outputs[0]: len(ids)},
        {
            "documents": len(ids),
            "bytes": int(sizes.sum()),
            "matched": matched,
            "keyed": int((by_key != 0).any(axis=1).sum()),
            "paragraphs": sum(part.shape[0] for part in span_prints),
        },
    )


def _duplicates(
    recipe: Curate,
    owners: Sequence[str],
    judged: Sequence[Finished],
    files: Sequence[File],
    out: Path,
    engine: Engine,
) -> dict[str, list[Finished]]:
    """Duplicates by rule: of ids, of a field that is to be unique, of texts, nearly of texts, then of paragraphs.

    Each is looked for in what the ones before left.
    """
    inputs = _together("judged", judged)
    verdicts = [done.task.outputs[0] for done in judged]
    found: dict[str, list[Finished]] = {}
    columns = {DUPLICATE_ID: "by_id"}
    columns |= {DUPLICATE_KEY: "by_key"} if any(rules.unique for rules in recipe.rules.values()) else {}
    columns |= {DUPLICATE_DOCUMENT: "documents"} if recipe.dedupe.documents else {}
    entries = sum(done.counters["documents"] for done in judged)
    partitions = exact.partitions_for(entries)
    for rule, column in columns.items():
        before = [done for results in found.values() for done in results]
        tasks = [
            Task(
                (inputs, _together("dead", before)),
                (f"{WORK}/{rule}-{p:04d}",),
                {"partition": p, "partitions": partitions},
            )
            for p in range(partitions)
        ]
        settings = {"judged": verdicts, "column": column, "dead": [done.task.outputs[0] for done in before]}
        operation = Operation(
            "duplicate documents",
            3,
            _duplicate_documents,
            settings,
            threads=True,
            memory=exact.memory_for(entries),
        )
        found[rule] = engine.run(operation, tasks, out, rule.replace("_", " "))
    if recipe.dedupe.near is not None:
        before = [done for results in found.values() for done in results]
        wanted = [recipe.rules[recipe.sources[name].rules].near for name in owners]
        found[NEAR_DUPLICATE] = [
            near_duplicates(recipe.dedupe.near, wanted, files, judged, before, out, engine)
        ]
    if recipe.dedupe.paragraphs:
        before = [done for results in found.values() for done in results]
        entries = sum(done.counters["paragraphs"] for done in judged)
        partitions = exact.partitions_for(entries)
        tasks = [
            Task(
                (inputs, _together("dead", before)),
                (f"{WORK}/duplicate-paragraphs-{p:04d}",),
                {"partition": p, "partitions": partitions},
            )
            for p in range(partitions)
        ]
        settings = {"judged": verdicts, "dead": [done.task.outputs[0] for done in before]}
        operation = Operation(
            "duplicate paragraphs",
            2,
            _duplicate_paragraphs,
            settings,
            threads=True,
            memory=exact.memory_for(entries),
        )
        found[DUPLICATE_PARAGRAPH] = engine.run(operation, tasks, out, "duplicate paragraphs")
    return found


def _together(name: str, results: Sequence[Finished]) -> Input:
    """Many outputs as one input: a task among thousands then names one digest, not thousands."""
    return Input(name, digest_json([item.digest for done in results for item in done.outputs]))


def _duplicate_documents(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    parts, rows = [], []
    for index, name in enumerate(settings["judged"]):
        prints, where = _alive(settings, task, out, index, exact.mapped(out / name), settings["column"])
        some = (prints != 0).any(axis=1)
        parts.append(prints[some])
        rows.append(where[some])
    found = exact.duplicates(parts)
    tables = {
        f"{index:08d}": np.stack(
            [rows[index][table[:, 0]], table[:, 1], _pick(rows, table[:, 1], table[:, 2])], axis=1
        )
        for index, table in enumerate(found)
        if table.size
    }
    exact.save(out / task.outputs[0], **tables)
    return Done(counters={"duplicates": sum(table.shape[0] for table in tables.values())})


def _alive(
    settings: Mapping[str, Any], task: Task, out: Path, index: int, judged: Mapping[str, Any], column: str
) -> tuple[Any, Any]:
    """A file's fingerprints of this partition, and their places, whose documents nothing has removed."""
    prints, where = exact.share(judged, column, task.parameters["partition"], task.parameters["partitions"])
    rows = judged["spans"][where, 0] if column == "paragraphs" else where
    dead = dead_rows(out, settings["dead"], index)[:, 0]
    alive = (judged["verdict"][rows] < 0) & ~np.isin(rows, dead)
    return prints[alive], where[alive]


def _pick(rows: Sequence[Any], files: Any, places: Any) -> Any:
    return np.array([rows[f][p] for f, p in zip(files.tolist(), places.tolist(), strict=True)], np.int64)


def _duplicate_paragraphs(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    parts, places = [], []
    for index, name in enumerate(settings["judged"]):
        prints, where = _alive(settings, task, out, index, exact.mapped(out / name), "paragraphs")
        parts.append(prints)
        places.append(where)
    found = exact.duplicates(parts)
    tables = {f"{index:08d}": places[index][table[:, 0]] for index, table in enumerate(found) if table.size}
    exact.save(out / task.outputs[0], **tables)
    return Done(counters={"duplicates": sum(table.size for table in tables.values())})


def _mix(
    recipe: Curate,
    owners: Sequence[str],
    files: Sequence[File],
    tagged: Sequence[Finished],
    judged: Sequence[Finished],
    duplicates: Mapping[str, Sequence[Finished]],
    out: Path,
    engine: Engine,
) -> list[Finished]:
    shared = _together("duplicates", [done for found in duplicates.values() for done in found])
    paths = {rule: [done.task.outputs[0] for done in found] for rule, found in duplicates.items()}
    paragraphs = paths.pop(DUPLICATE_PARAGRAPH, [])
    held = [Input("held-out", digest_file(Path(recipe.decontaminate.path)))] if recipe.decontaminate else []
    tasks = []
    for index, (name, file, tags, verdict) in enumerate(zip(owners, files, tagged, judged, strict=True)):
        rules = recipe.rules[recipe.sources[name].rules]
        read = {replaced(key)[0] for key in rules.replace}
        if missing := read - set(rules.taggers):
            raise LoomError(
                f"rules.{recipe.sources[name].rules}.replace reads {sorted(missing)[0]!r}, which is none of "
                f"{', '.join(rules.taggers)}."
            )
        tasks.append(
            Task(
                (
                    Input(str(file.path), file.digest),
                    *_outputs_as_inputs(tags),
                    *_outputs_as_inputs(verdict),
                    shared,
                    *held,
                ),
                (f"documents/{file.stem}.jsonl.zst", f"removed/{file.stem}.jsonl.zst"),
                {
                    "path": str(file.path),
                    "index": index,
                    "sidecars": {t: f"attributes/{t}/{file.stem}.parquet" for t in sorted(read)},
                    "rules": [*rules.remove, NOT_SAMPLED],
                    "replace": dict(rules.replace),
                    "judged": verdict.task.outputs[0],
                    "fewest_characters": recipe.fewest_characters,
                    "keep_removed": recipe.keep_removed,
                    "share": recipe.sources[name].share,
                    "seed": recipe.seed,
                },
            )
        )
    settings = {
        "questions": to_plain(recipe.decontaminate),
        "judged": [done.task.outputs[0] for done in judged],
        "duplicates": paths,
        "paragraphs": paragraphs,
    }
    operation = Operation("mix", 4, mix_task, settings, prepare_mix, threads=True)
    return engine.run(operation, tasks, out, "mix")


def _count(
    recipe: Curate,
    owners: Sequence[str],
    tagged: Sequence[Finished],
    judged: Sequence[Finished],
    mixed: Sequence[Finished],
) -> dict[str, Any]:
    sources = {}
    for name in recipe.sources:
        here = [index for index, owner in enumerate(owners) if owner == name]
        before = sum_counters([judged[index].counters for index in here])
        after = sum_counters([mixed[index].counters for index in here])
        rules = [
            *recipe.rules[recipe.sources[name].rules].remove,
            NOT_SAMPLED,
            DUPLICATE_ID,
            DUPLICATE_KEY,
            DUPLICATE_DOCUMENT,
            NEAR_DUPLICATE,
            EMPTY,
        ]
        sources[name] = {
            "documents_in": before["documents"],
            "bytes_in": before["bytes"],
            "rejected": sum(tagged[index].counters["rejected"] for index in here),
            **after,
            "removed": {rule: after["removed"][rule] for rule in rules if rule in after["removed"]},
            "matched": before.get("matched", {}),
        }
    total = {
        key: sum(part[key] for part in sources.values())
        for key in ("documents_in", "bytes_in", "rejected", "documents_out", "bytes_out", "held_out_hits")
    }
    return {**total, "sources": sources}

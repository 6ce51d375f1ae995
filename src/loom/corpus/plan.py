"""Before a curation: what would run, and whether the recipe fits the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loom.console import console
from loom.corpus import documents, expression, keys, pieces, taggers
from loom.corpus.batch import Batch
from loom.corpus.dolma.names import sample, tagger_keys
from loom.corpus.rules import Curate, Rules, replaced, resolved, source_files
from loom.corpus.tag import File
from loom.errors import LoomError
from loom.recipe import nearest

OPEN_KEYS = {
    "ft_lang_id_1e2",
    "ft_lang_id_doc_v1",
    "ft_lang_id_paragraph_v1",
}  # taggers whose keys depend on the text
FILES, SAMPLE = 8, 1 << 20  # of each source, files that are looked at, and bytes of text of each


def plan(recipe: Curate) -> dict[str, Any]:
    """Each source's files, bytes and rules as they are written, and every step that would run, in order."""
    sources = {}
    for name, files in source_files(recipe).items():
        rules = recipe.rules[recipe.sources[name].rules]
        sources[name] = {
            "files": len(files),
            "bytes": sum({_whole(file.path): file.bytes for file in files}.values()),
            "taggers": list(rules.taggers),
            "remove": dict(rules.remove),
            "replace": dict(rules.replace),
            "unique": rules.unique,
            "share": recipe.sources[name].share,
        }
    steps = ["tag", "judge", "index of ids", "duplicate ids"]
    steps += ["duplicate keys"] if any(rules.unique for rules in recipe.rules.values()) else []
    own = "" if recipe.dedupe.across_sources else " within each source"
    steps += [f"duplicate documents{own}"] if recipe.dedupe.documents else []
    steps += ["near duplicates"] if recipe.dedupe.near is not None else []
    steps += [f"duplicate paragraphs{own}"] if recipe.dedupe.paragraphs else []
    steps += ["cut held-out text"] if recipe.decontaminate is not None else []
    return {"sources": sources, "names": dict(recipe.names), "steps": [*steps, "mix"]}


def _whole(path: Path) -> str:
    piece = pieces.parse(path)
    return str(piece.path if piece else path)


def check(recipe: Curate) -> dict[str, dict[str, Any]]:
    """Try every expression, name and file on the first rows of some files of each source.

    Returns by source the files and rows looked at, the rows set aside, and how many each rule would remove.
    Raises `LoomError` for an expression that cannot be read or does not fit what it reads, a name that its
    tagger never writes, and a source in whose files no document is found.
    """
    taggers.load_families(recipe.modules)
    recipe = resolved(recipe)
    for name, rules in recipe.rules.items():
        _check_names(name, rules, recipe.files)
    found = {}
    for source, files in source_files(recipe).items():
        rules = recipe.rules[recipe.sources[source].rules]
        looked = some(files)
        batches = [batch for file in looked for batch in _first(file)]
        if not sum(map(len, batches)):
            raise LoomError(f"{looked[0].path} and what else was looked at of {source!r} holds no document.")
        found[source] = {
            "files": len(looked),
            "documents": sum(map(len, batches)),
            "rejected": sum(len(batch.rejected) for batch in batches),
            "matched": _matched(rules, batches, recipe),
        }
        if rules.unique and not (keys.of_field(batches, rules.unique) != 0).any():
            console.warn(f"no document looked at of {source!r} has the field {rules.unique!r} (unique)")
    return found


def some(files: Sequence[File]) -> list[File]:
    """At most `FILES` of them, the first and the last among them, evenly spread."""
    places = np.unique(np.linspace(0, len(files) - 1, min(FILES, len(files))).astype(int))
    return [files[place] for place in places.tolist()]


def _first(file: File) -> list[Batch]:
    batch = next(documents.read(file.path, SAMPLE), None)
    return [] if batch is None else [batch]


def _matched(rules: Rules, batches: Sequence[Batch], recipe: Curate) -> dict[str, int]:
    """How many of some documents each rule would remove by itself."""
    made = {name: taggers.get(name, recipe.files) for name in rules.taggers}
    counts = dict.fromkeys(rules.remove, 0)
    for batch in batches:
        texts = taggers.Texts(batch)
        spans = {(name, key): value for name, tag in made.items() for key, value in tag(texts).items()}
        columns = expression.Columns(spans, texts.lengths, np.diff(texts.utf8[1]))
        for rule, text in rules.remove.items() if len(batch) else ():
            parsed = expression.parse(text)
            if all(name in spans for name in parsed.names):  # not so where keys depend on the text
                counts[rule] += int(parsed(columns).sum())
    return counts


def _check_names(name: str, rules: Rules, files: Mapping[str, str | tuple[str, ...]]) -> None:
    known = {tagger: keys_of(tagger, files) for tagger in rules.taggers}
    for rule, text in rules.remove.items():
        parsed = expression.parse(text, f"rules.{name}.remove.{rule}")
        fixed = [tagger for tagger, _ in parsed.names if tagger not in OPEN_KEYS]
        if len(fixed) == len(parsed.names):
            expression.check_names(parsed, known, f"rules.{name}.remove.{rule}")
    for span in rules.replace:
        tagger, key, _ = replaced(span)
        if key not in known.get(tagger, ()):
            near = nearest(span, [f"{t}.{k}" for t, found in known.items() for k in found])
            hint = f" Did you mean {near!r}?" if near else ""
            raise LoomError(f"rules.{name}.replace: nothing writes {span!r}.{hint}")


def keys_of(tagger: str, files: taggers.Files | None = None) -> tuple[str, ...]:
    """The keys a tagger writes; one that is not there is an error that names the nearest.

    Raises `LoomError` where a file is missing that it needs.
    """
    made = taggers.get(tagger, files)
    return tuple(made(taggers.Texts(sample()))) if taggers.find(tagger).needs else tagger_keys(tagger)

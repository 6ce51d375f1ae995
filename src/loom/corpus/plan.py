"""Before a curation: what would run, and whether the recipe fits the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loom.corpus import documents, expression, pieces, taggers
from loom.corpus.dolma.names import sample, tagger_keys
from loom.corpus.rules import Curate, replaced, source_files
from loom.errors import LoomError
from loom.recipe import nearest

OPEN_KEYS = {"ft_lang_id_1e2"}  # taggers whose keys depend on the text


def plan(recipe: Curate) -> dict[str, Any]:
    """Each source's files and bytes and the steps that would run over them, in order."""
    sources = {}
    for name, files in source_files(recipe).items():
        rules = recipe.rules[recipe.sources[name].rules]
        sources[name] = {
            "files": len(files),
            "bytes": sum({_whole(file.path): file.bytes for file in files}.values()),
            "taggers": list(rules.taggers),
            "remove": list(rules.remove),
            "replace": list(rules.replace),
            "share": recipe.sources[name].share,
        }
    steps = ["tag", "judge"]
    steps += ["duplicate documents"] if recipe.dedupe.documents else []
    steps += ["duplicate paragraphs"] if recipe.dedupe.paragraphs else []
    steps += ["cut held-out text"] if recipe.decontaminate is not None else []
    return {"sources": sources, "steps": [*steps, "mix"]}


def _whole(path: Path) -> str:
    piece = pieces.parse(path)
    return str(piece.path if piece else path)


def check(recipe: Curate) -> dict[str, int]:
    """Try every expression, name and file; returns the rows looked at and those set aside, by source.

    Raises `LoomError` for an expression that cannot be read, a name that its tagger never writes, and a
    source whose first file holds no document.
    """
    taggers.load_families(recipe.modules)
    for name, rules in recipe.rules.items():
        known = {tagger: keys_of(tagger, recipe.files) for tagger in rules.taggers}
        for rule, text in rules.remove.items():
            parsed = expression.parse(text, f"rules.{name}.remove.{rule}")
            fixed = [tagger for tagger, _ in parsed.names if tagger not in OPEN_KEYS]
            if len(fixed) == len(parsed.names):
                expression.check_names(parsed, known, f"rules.{name}.remove.{rule}")
        for span in rules.replace:
            tagger, key, _ = replaced(span)
            if key not in known.get(tagger, ()):
                near = nearest(span, [f"{t}.{k}" for t, keys in known.items() for k in keys])
                hint = f" Did you mean {near!r}?" if near else ""
                raise LoomError(f"rules.{name}.replace: nothing writes {span!r}.{hint}")
    found = {}
    for source, files in source_files(recipe).items():
        batch = next(documents.read(files[0].path), None)
        if batch is None or not len(batch):
            raise LoomError(f"{files[0].path}, the first file of the source {source!r}, holds no document.")
        found[source] = len(batch)
        found[f"{source}, set aside"] = len(batch.rejected)
    return found


def keys_of(tagger: str, files: taggers.Files | None = None) -> tuple[str, ...]:
    """The keys a tagger writes; one that is not there is an error that names the nearest.

    Raises `LoomError` where a file is missing that it needs.
    """
    made = taggers.get(tagger, files)
    return tuple(made(taggers.Texts(sample()))) if taggers.find(tagger).needs else tagger_keys(tagger)

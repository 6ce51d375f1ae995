"""The sources of text that an evaluation measures: named and read before a model is loaded, refused where the model
was trained on them, and what a reader must know of them.

Sources of files are called as `loom.evals.text` says; those of a token folder as its manifest says, after the folder
too where the name is another source's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from loom import artifact
from loom.errors import LoomError
from loom.evals import paloma
from loom.evals.contamination import History, Seen
from loom.evals.perplexity import Document
from loom.evals.text import (
    Reading,
    Text,
    TextFile,
    apart,
    is_token_folder,
    place,
    read_texts,
    text_documents,
    text_files,
    token_documents,
)
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer

HELD_OUT = "heldout"
Item = TypeVar("Item", Text, Document)


@dataclass(frozen=True)
class Folder:
    """A token folder. `path` is what is measured, `heldout/` of the folder that was named where it has one; `names`
    are what the manifest's sources are called here."""

    path: Path
    held_out: bool
    digest: str
    names: Mapping[str, str]


@dataclass(frozen=True)
class Sources:
    """What is there to be read, by what `--text` or `eval.text` named."""

    files: tuple[TextFile, ...] = ()
    folders: tuple[Folder, ...] = ()

    def without(self, names: Collection[str]) -> Sources:
        """The sources that are not called by one of `names`."""
        folders = (
            replace(one, names={own: name for own, name in one.names.items() if name not in names})
            for one in self.folders
        )
        return Sources(
            tuple(file for file in self.files if file.source not in names),
            tuple(one for one in folders if one.names),
        )


@dataclass(frozen=True)
class Texts:
    """What was read. `held` are documents of token folders, which are tokens already, by folder."""

    files: tuple[Reading, ...] = ()
    held: tuple[tuple[Folder, tuple[Document, ...]], ...] = ()

    @property
    def sources(self) -> Sources:
        return Sources(tuple(one.file for one in self.files), tuple(folder for folder, _ in self.held))

    @property
    def splits(self) -> dict[str, str]:
        """The split of each source of Paloma's layout; of a source of two splits both."""
        found: dict[str, list[str]] = {}
        for one in self.files:
            found.setdefault(one.file.source, []).append(one.file.split)
        return {source: ", ".join(dict.fromkeys(splits)) for source, splits in found.items()}

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise `LoomError` for a token folder of another tokenizer."""
        for folder, _ in self.held:
            tokenizer.check(artifact.load(folder.path, "tokens").facts["tokens"], str(folder.path))

    def documents(
        self, tokenizer: Tokenizer, refused: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> list[Document]:
        """All documents with their tokens but those of `refused` sources; of each source the first `limit`."""
        texts = [text for one in self.files for text in one.texts]
        kept = text_documents(_first(texts, refused or {}, limit), tokenizer)
        held = [document for _, documents in self.held for document in documents]
        return kept + _first(held, refused or {}, limit)

    def beginning(self, size: int) -> Texts:
        """Of each source of files the first texts, up to the one with which they have more than `size` bytes."""
        left: dict[str, int] = {}
        files = []
        for one in self.files:
            kept = []
            for text in one.texts:
                if left.setdefault(text.source, size) >= 0:
                    kept.append(text)
                    left[text.source] -= len(text.text.encode())
            files.append(replace(one, texts=tuple(kept)))
        return replace(self, files=tuple(files))


def _first(items: Sequence[Item], refused: Mapping[str, Any], limit: int | None) -> list[Item]:
    count: Counter[str] = Counter()
    kept = []
    for item in items:
        count[item.source] += 1
        if item.source not in refused and (limit is None or count[item.source] <= limit):
            kept.append(item)
    return kept


def find_sources(paths: Sequence[Path], split: str | None = None) -> Sources:
    """Raises `LoomError` where nothing is found, or a token folder is not whole."""
    tokens = [path for path in paths if is_token_folder(path)]
    files = text_files([path for path in paths if path not in tokens], split)
    measured: dict[Path, Path] = {}
    for path in tokens:
        held = path / HELD_OUT if is_token_folder(path / HELD_OUT) else path
        measured.setdefault(held.resolve(), held)
    opened = {held: open_tokens(held) for held in measured.values()}
    owners = Counter(name for folder in opened.values() for name in folder.sources)
    taken = {file.source for file in files}
    called = apart([_home(held) for held in opened])
    folders = [
        Folder(
            held,
            place(held).name == HELD_OUT and is_token_folder(place(held).parent),
            artifact.load(held, "tokens").digest,
            {
                name: f"{called[_home(held)]}/{name}" if name in taken or owners[name] > 1 else name
                for name in folder.sources
            },
        )
        for held, folder in opened.items()
    ]
    return Sources(tuple(files), tuple(folders))


def _home(held: Path) -> Path:
    return place(held).parent if place(held).name == HELD_OUT else place(held)


def read_sources(found: Sources) -> Texts:
    """Raises `LoomError` for what cannot be read, and for what was named and holds no text."""
    held = []
    for folder in found.folders:
        own = [one for one in token_documents(folder.path) if one.source in folder.names]
        named = (
            replace(one, source=folder.names[one.source], domain=folder.names[one.source]) for one in own
        )
        held.append((folder, tuple(named)))
    return Texts(tuple(read_texts(found.files)), tuple(held))


def trained_on(found: Sources, histories: Sequence[History]) -> dict[str, Seen]:
    """By name, the sources that a model was trained on, and in which file or folder. A source has no figure if any
    file of it was trained on; what a token folder holds out was not."""
    seen: dict[str, Seen] = {}
    for history in histories:
        for file in found.files:
            if (where := _saw_file(file, history)) is not None:
                seen.setdefault(file.source, Seen(where, 0))
        for folder in found.folders:
            where = history.artifacts.get(folder.digest)
            if where is None and not folder.held_out:
                where = _saw_folder(folder, history)
            if where is not None:
                seen |= {name: Seen(where, 0) for name in folder.names.values() if name not in seen}
    return seen


def _saw_file(file: TextFile, history: History) -> str | None:
    """Where the file was read, or the folder of documents that it is a part of."""
    if (where := history.files.get(file.digest)) is not None:
        return where
    for above in place(file.path).parents:
        if (above / artifact.MANIFEST).is_file():
            if "documents" not in place(file.path).relative_to(above).parts[:-1]:
                return None  # `removed/` lies there too
            with contextlib.suppress(LoomError):  # somebody else's manifest
                return history.artifacts.get(artifact.load(above).digest)
            return None
    return None


def _saw_folder(folder: Folder, history: History) -> str | None:
    """Where documents that these tokens were made of were read."""
    made = artifact.load(folder.path, "tokens")
    for item in made.inputs:
        if item.path.endswith(".json") or is_token_folder(place(folder.path / item.path)):
            continue  # the tokenizer, or the folder that lent it
        if (where := history.artifacts.get(item.digest) or history.files.get(item.digest)) is not None:
            return where
    return None


def facts_of(read: Texts, refused: Mapping[str, Seen], out: Path) -> list[dict[str, Any]]:
    """For `results.json`: every file and every source of a token folder, with digest and what it held. `split` stands
    where the file lies in Paloma's layout, `seen` where its source has no figure."""
    rows: list[dict[str, Any]] = []
    for one in read.files:
        file = one.file
        rows.append(
            {
                "path": artifact.relative(file.path, out),
                "digest": file.digest,
                "source": file.source,
                **({"split": file.split} if file.split else {}),
                "documents": len(one.texts),
                "empty_rows": one.empty,
            }
        )
    for folder, documents in read.held:
        count = Counter(document.source for document in documents)
        rows += [
            {
                "path": artifact.relative(folder.path, out),
                "digest": folder.digest,
                "source": name,
                "held_out": folder.held_out,
                "documents": count[name],
                "empty_rows": 0,
            }
            for name in folder.names.values()
        ]
    return [
        {**row, "seen": vars(refused[row["source"]])} if row["source"] in refused else row for row in rows
    ]


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the text that was measured, from `text` of a `results.json`."""
    found = []
    empty: Counter[str] = Counter()
    splits: dict[str, list[str]] = {}
    for row in rows:
        empty[row["source"]] += row["empty_rows"]
        splits.setdefault(row["source"], []).append(row.get("split", ""))
        if not row["documents"]:
            found.append(f"{row['path']} holds no text")
    found += [
        f"{source}: {count:,} rows have no text and are left out" for source, count in empty.items() if count
    ]
    seen = {row["source"]: row["seen"]["where"] for row in rows if "seen" in row}
    found += [f"{name}: no figure, the model was trained on {where}" for name, where in seen.items()]
    named = {source: ", ".join(dict.fromkeys(own)) for source, own in splits.items()}
    read: dict[str, list[str]] = {}
    for source, split in named.items():
        if split:
            read.setdefault(split, []).append(source)
    found += [f"read from the split {split}: {', '.join(sources)}" for split, sources in read.items()]
    if why := paloma.why_not(named):
        found.append(f"{paloma.NAME} is not formed: {why}")
    elif why is None and (gone := [name for name in paloma.COMBINED if name in seen]):
        found.append(f"{paloma.NAME} is not formed: {', '.join(gone)} has no figure")
    folders = dict.fromkeys(row["path"] for row in rows if row.get("held_out"))
    return [*found, *(f"of a token folder, what it holds out was measured: {path}" for path in folders)]

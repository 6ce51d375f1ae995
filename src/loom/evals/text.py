"""Text to measure: folders of JSON lines, plain text files, a token folder's held-out documents.

A domain is a file's stem; its folder's name where two folders have files of one stem. In Paloma's layout,
`<source>/<split>/*.jsonl.gz`, it is the row's `subdomain` where there is one, else the source folder, and the
source folder is the source.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from loom import artifact
from loom.errors import LoomError
from loom.evals.encode import encode_texts
from loom.evals.perplexity import Document
from loom.tasks.data import DAMAGED, open_lines
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer

SPLITS = ("val", "test", "validation", "valid", "dev", "train")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".txt")


@dataclass(frozen=True)
class Text:
    id: str
    source: str
    domain: str
    text: str


@dataclass(frozen=True)
class TextFile:
    """`split` is that of Paloma's layout, "" elsewhere; `given` are the paths that named the file, as written."""

    path: Path
    source: str
    split: str
    digest: str
    given: tuple[Path, ...]


@dataclass(frozen=True)
class Reading:
    """What a file holds; `empty` counts its rows without text."""

    file: TextFile
    texts: tuple[Text, ...]
    empty: int


def text_files(paths: Sequence[Path], split: str | None = None) -> list[TextFile]:
    """The files of files, folders and globs, each once, in the order of their paths.

    With `split`, of Paloma's layout only files of that split; without one, `test` where a source has it,
    else what there is. Raises `LoomError` where nothing is found.
    """
    places: dict[Path, Path] = {}  # by what is behind links, so that a file named twice is counted once
    given: dict[Path, list[Path]] = {}
    for path in paths:
        files = _files(path, split)
        if not files:
            raise LoomError(
                f"There is no text in {path}: expected files ending in {', '.join(SUFFIXES)}, or folders "
                f"<source>/<split>/ of them{f' with the split {split!r}' if split else ''}."
            )
        for file in files:
            behind = file.resolve()
            places.setdefault(behind, file)
            given.setdefault(behind, []).append(path)
    named = _sources(list(places.values()))
    return [
        TextFile(file, named[file], _split(file), _digest(file), tuple(given[behind]))
        for behind, file in places.items()
    ]


def read_texts(files: Sequence[TextFile]) -> list[Reading]:
    """Every file's documents. Raises `LoomError` for a row without a `text`, and where what was named holds no
    document at all: a figure of nothing would be missed by nobody."""
    found = [_read(file) for file in files]
    for path in dict.fromkeys(path for file in files for path in file.given):
        own = [reading for reading in found if path in reading.file.given]
        if not any(reading.texts for reading in own):
            rows = sum(reading.empty for reading in own)
            raise LoomError(
                f"There is no text in {path}: none of its {rows:,} rows (files: {len(own):,}) has any in `text`. "
                f"Name files that hold some."
            )
    return found


def text_documents(texts: Sequence[Text], tokenizer: Tokenizer) -> list[Document]:
    """Documents with their tokens; `bytes` is the UTF-8 length of the text as it is in the file."""
    ids = encode_texts([text.text for text in texts], tokenizer)
    return [
        Document(text.id, text.source, text.domain, tokens, len(text.text.encode()))
        for text, tokens in zip(texts, ids, strict=True)
    ]


def is_token_folder(path: Path) -> bool:
    return (path / artifact.MANIFEST).is_file() and artifact.load(path).kind == "tokens"


def token_documents(folder: Path) -> list[Document]:
    """The documents of a token folder (a `heldout/` one, usually), domain and source its `source`.

    No text is needed: a document's bytes are the sum of what its tokens spell, exact for byte-level BPE.
    Where the manifest has a source's bytes, the two must agree; raises `LoomError` if they do not.
    """
    import pyarrow.parquet as pq

    opened = open_tokens(folder)
    tokenizer = Tokenizer.load(opened.tokenizer)
    sizes = np.array([len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)])
    documents: list[Document] = []
    for number, shard in enumerate(opened.shards):
        if opened.address is None:
            ids = opened.arrays[number]
        else:  # held-out documents are few: a copy is fetched once
            ids = np.fromfile(opened.file(shard.path), opened.kind)
        path = opened.file(Path(shard.path).with_suffix(".docs.parquet").as_posix())
        table = pq.read_table(path, columns=["start", "end", "id", "source"])
        for start, end, name, source in zip(*(column.to_pylist() for column in table.columns), strict=True):
            tokens = ids[start : end - 1].astype(np.int64)  # without the end-of-text token
            documents.append(Document(name, source, source, tokens, int(sizes[tokens].sum())))
    _check_bytes(folder, documents, opened.sources)
    return documents


def _check_bytes(
    folder: Path, documents: Sequence[Document], sources: Mapping[str, Mapping[str, int]]
) -> None:
    found: dict[str, int] = {}
    for document in documents:
        found[document.source] = found.get(document.source, 0) + document.bytes
    for source, size in found.items():
        stated = sources.get(source, {}).get("bytes")
        if stated is not None and stated != size:
            raise LoomError(
                f"The tokens of {source!r} in {folder} spell {size:,} bytes where the manifest counts "
                f"{stated:,}: the tokenizer changes text before it splits it, so bits per byte cannot be had "
                f"from tokens. Measure the documents instead: loom eval MODEL --text DOCUMENTS."
            )


def place(path: Path) -> Path:
    """Where a path leads from the root: names are the same from whatever folder the command is run in. Links are
    not followed, for a cache's files are links to blobs without a name."""
    return Path(os.path.abspath(path))


def apart(paths: Sequence[Path], taken: frozenset[str] = frozenset()) -> dict[Path, str]:
    """A name for each of these absolute paths, by as much of its end as is nobody else's and not `taken`."""
    named = {}
    for path in paths:
        depth = 1
        while depth < len(path.parts) and (
            "/".join(path.parts[-depth:]) in taken
            or any(other.parts[-depth:] == path.parts[-depth:] for other in paths if other != path)
        ):
            depth += 1
        named[path] = "/".join(path.parts[-depth:])
    return named


def _files(path: Path, split: str | None) -> list[Path]:
    if path.is_file():
        return [path]
    if path.exists():
        # A curated folder holds what was dropped too, beside its documents.
        root = path / "documents" if (path / "documents").is_dir() else path
        found = sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    else:
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not found:
            raise LoomError(f"There is no {path} to evaluate on.")
    sources: dict[Path, set[str]] = {}
    for file in found:
        if own := _split(file):
            sources.setdefault(place(file).parent.parent, set()).add(own)
    kept = []
    for file in found:
        if own := _split(file):
            there = sources[place(file).parent.parent]
            wanted = split or next(name for name in ("test", *SPLITS) if name in there)
            if own != wanted:
                continue
        kept.append(file)
    return kept


def _split(file: Path) -> str:
    """The split of Paloma's layout that a file is of, "" for one that lies elsewhere."""
    name = place(file).parent.name
    return name if name in SPLITS else ""


def _sources(files: Sequence[Path]) -> dict[Path, str]:
    """The source of each file: its stem, or in Paloma's layout the folder. Where a stem is in several folders
    (web/part-0, wiki/part-0), files of those folders are called after the folder, by as much of its path as tells
    them apart; so is a source folder whose name another has."""
    plain = [file for file in files if not _split(file)]
    homes: dict[str, set[Path]] = {}
    for file in plain:
        homes.setdefault(_stem(file), set()).add(place(file).parent)
    shared = {home for several in homes.values() if len(several) > 1 for home in several}
    taken = frozenset(_stem(file) for file in plain if place(file).parent not in shared)
    homely = apart(sorted(shared), taken)
    named = {file: homely.get(place(file).parent, _stem(file)) for file in plain}
    folders = {file: place(file).parent.parent for file in files if _split(file)}
    called = apart(list(dict.fromkeys(folders.values())), frozenset(named.values()))
    return named | {file: called[folder] for file, folder in folders.items()}


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.name.endswith(".txt") else path.name.split(".json")[0]


def _digest(path: Path) -> str:
    try:
        return artifact.digest_file(path)
    except OSError as error:
        raise LoomError(f"{path} cannot be read: {error}.") from None


def _read(file: TextFile) -> Reading:
    if file.path.suffix == ".txt":
        try:
            text = file.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoomError(f"{file.path} cannot be read as UTF-8 text: {error}.") from None
        whole = (Text(file.path.name, file.source, file.source, text),) if text.strip() else ()
        return Reading(file, whole, 1 - len(whole))
    texts = []
    empty = 0
    for number, line in _lines(file.path):
        try:
            row = orjson.loads(line)
            text = row["text"]
            if not isinstance(text, str):
                raise TypeError("text is not a string")
        except (ValueError, KeyError, TypeError) as error:
            raise LoomError(
                f"{file.path}:{number} is not a document ({error!r}); a line needs a `text`."
            ) from None
        if not text:
            empty += 1
            continue
        domain = str(row.get("subdomain") or file.source) if file.split else file.source
        identity = row.get("id")
        name = f"{file.path.name}:{number}" if identity is None else str(identity)
        texts.append(Text(name, file.source, domain, text))
    return Reading(file, tuple(texts), empty)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers from 1."""
    try:
        with open_lines(path) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except DAMAGED as error:
        raise LoomError(f"{path} cannot be read: {error}. Fetch or make it again.") from None

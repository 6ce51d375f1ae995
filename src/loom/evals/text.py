"""Text to measure: folders of JSON lines, plain text files, a token folder's held-out documents.

A domain is a file's stem; its folder's name where two folders have files of one stem. In Paloma's layout,
`<source>/<split>/*.jsonl.gz`, it is the row's `subdomain` where there is one, else the source folder, and the
source folder is the source.
"""

from __future__ import annotations

import glob
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


def read_texts(paths: Sequence[Path], split: str | None = None) -> Iterator[Text]:
    """Documents of files, folders and globs, in the order of their paths.

    With `split`, of Paloma's layout only files of that split; without one, `test` where a source has it,
    else what there is. Raises `LoomError` where nothing is found or a row has no text.
    """
    files = text_files(paths, split)
    named = _sources(files)
    for file in files:
        yield from _read(file, named[file])


def text_files(paths: Sequence[Path], split: str | None = None) -> list[Path]:
    """The files that `read_texts` reads."""
    found: list[Path] = []
    for path in paths:
        files = _files(path, split)
        if not files:
            raise LoomError(
                f"There is no text in {path}: expected files ending in {', '.join(SUFFIXES)}, or folders "
                f"<source>/<split>/ of them{f' with the split {split!r}' if split else ''}."
            )
        found += files
    return found


def text_documents(texts: Sequence[Text], tokenizer: Tokenizer) -> list[Document]:
    """Documents with their tokens; `bytes` is the UTF-8 length of the text as it is in the file."""
    ids = encode_texts([text.text for text in texts], tokenizer)
    return [
        Document(text.id, text.source, text.domain, tokens, len(text.text.encode()))
        for text, tokens in zip(texts, ids, strict=True)
    ]


def by_source(documents: Sequence[Document]) -> list[list[Document]]:
    """Documents of each source, in their order."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.source, []).append(document)
    return list(groups.values())


def is_token_folder(path: Path) -> bool:
    return (path / artifact.MANIFEST).is_file() and artifact.load(path).kind == "tokens"


def token_documents(folder: Path, limit: int | None = None) -> list[Document]:
    """The documents of a token folder (a `heldout/` one, usually), domain and source its `source`.

    No text is needed: a document's bytes are the sum of what its tokens spell, exact for byte-level BPE.
    Where the manifest has a source's bytes and all its documents are read, the two must agree; raises
    `LoomError` if they do not. `limit` keeps the first documents of each source (a folder's documents
    lie in the order of a keyed hash).
    """
    import pyarrow.parquet as pq

    opened = open_tokens(folder)
    tokenizer = Tokenizer.load(opened.tokenizer)
    sizes = np.array([len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)])
    documents: list[Document] = []
    count: dict[str, int] = {}
    for number, shard in enumerate(opened.shards):
        if opened.address is None:
            ids = opened.arrays[number]
        else:  # held-out documents are few: a copy is fetched once
            ids = np.fromfile(opened.file(shard.path), opened.kind)
        path = opened.file(Path(shard.path).with_suffix(".docs.parquet").as_posix())
        table = pq.read_table(path, columns=["start", "end", "id", "source"])
        for start, end, name, source in zip(*(column.to_pylist() for column in table.columns), strict=True):
            count[source] = count.get(source, 0) + 1
            if limit is None or count[source] <= limit:
                tokens = ids[start : end - 1].astype(np.int64)  # without the end-of-text token
                documents.append(Document(name, source, source, tokens, int(sizes[tokens].sum())))
    if limit is None:
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


def _files(path: Path, split: str | None) -> list[Path]:
    if path.is_file():
        return [path]
    if path.exists():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    else:
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not found:
            raise LoomError(f"There is no {path} to evaluate on.")
    sources: dict[Path, set[str]] = {}
    for file in found:
        if file.parent.name in SPLITS:
            sources.setdefault(file.parent.parent, set()).add(file.parent.name)
    kept = []
    for file in found:
        if file.parent.name in SPLITS:
            there = sources[file.parent.parent]
            wanted = split or next(name for name in ("test", *SPLITS) if name in there)
            if file.parent.name != wanted:
                continue
        kept.append(file)
    return kept


def _sources(files: Sequence[Path]) -> dict[Path, str]:
    """The source of each file: its stem, or in Paloma's layout the folder. Where a stem is in several folders
    (web/part-0, wiki/part-0), files of those folders are called after the folder, by as much of its path as tells
    them apart."""
    plain = [file for file in files if file.parent.name not in SPLITS]
    homes: dict[str, set[Path]] = {}
    for file in plain:
        homes.setdefault(_stem(file), set()).add(file.parent.absolute())
    shared = {home for several in homes.values() if len(several) > 1 for home in several}
    depth = 1
    while len({home.parts[-depth:] for home in shared}) < len(shared):
        depth += 1
    named = {file: file.parent.parent.name for file in files}
    for file in plain:
        home = file.parent.absolute()
        named[file] = "/".join(home.parts[-depth:]) if home in shared else _stem(file)
    return named


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.name.endswith(".txt") else path.name.split(".json")[0]


def _read(path: Path, source: str) -> Iterator[Text]:
    paloma = path.parent.name in SPLITS
    if path.suffix == ".txt":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoomError(f"{path} cannot be read as UTF-8 text: {error}.") from None
        if text.strip():
            yield Text(path.name, source, source, text)
        return
    for number, line in _lines(path):
        try:
            row = orjson.loads(line)
            text = row["text"]
            if not isinstance(text, str):
                raise TypeError("text is not a string")
        except (ValueError, KeyError, TypeError) as error:
            raise LoomError(
                f"{path}:{number} is not a document ({error!r}); a line needs a `text`."
            ) from None
        if text:
            domain = str(row.get("subdomain") or source) if paloma else source
            yield Text(str(row.get("id", f"{path.name}:{number}")), source, domain, text)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers from 1."""
    try:
        with open_lines(path) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except DAMAGED as error:
        raise LoomError(f"{path} cannot be read: {error}. Fetch or make it again.") from None

"""What both sides of bench/corpus.py made, compared; and the limits that a machine sets."""

from __future__ import annotations

import csv
import gzip
import json
import re
import time
import unicodedata
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from loom.artifact import digest_bytes
from loom.corpus import documents
from loom.corpus.batch import as_rows
from loom.tokens.tokenizer import Tokenizer

Row = dict[str, Any]
SIMILAR = 0.8  # Jaccard similarity from which a pair counts as near-duplicate, as FineWeb's bands are set
SHINGLE = 5
LEAST_AGREEMENT = 0.9  # of the first 1,000 characters with the whole text, on documents of many languages
LEAST_SAME = 0.995  # of text that is left on one side and on the other
LARGEST = 1.2  # times dolma's files that Loom's may take
CONTROL = ("<|endoftext|>", "<|padding|>")


class Wrong(Exception):
    """What both sides made is not the same where it should be: the row counts for nothing."""


def expect(holds: bool, what: str, found: Row) -> Row:
    """`found`, where `holds`; else `Wrong` says what does not."""
    if not holds:
        raise Wrong(f"{what}: {json.dumps(found)}")
    return found


def rows(path: Path) -> Iterator[Any]:
    with gzip.open(path) as stream:
        for line in stream:
            yield orjson.loads(line)


def same_attributes(ours: Path, theirs: Path, taggers: Sequence[str]) -> Row:
    """Documents and spans whose attributes differ: keys, places, or scores beyond the fifth decimal."""
    differ: dict[str, int] = {}
    spans = count = 0
    for tagger in taggers:
        differ[tagger] = 0
        for path in sorted((theirs / "attributes" / tagger).glob("*.gz")):
            mine = rows(ours / "attributes" / tagger / path.name)
            for left, right in zip(mine, rows(path), strict=True):
                assert left["id"] == right["id"], (path, left["id"])
                a, b = left["attributes"], right["attributes"]
                spans += sum(map(len, b.values()))
                differ[tagger] += a.keys() != b.keys() or not all(_same(a[key], b[key]) for key in b)
                count += 1
    found = {"documents": count // len(taggers), "spans": spans, "documents_that_differ": differ}
    return expect(count > 0 and not any(differ.values()), "attributes differ", found)


def _same(ours: list[list[float]], theirs: list[list[float]]) -> bool:
    if ours == theirs:
        return True
    return len(ours) == len(theirs) and all(
        a[:2] == b[:2] and abs(a[2] - b[2]) < 1.01e-5 for a, b in zip(ours, theirs, strict=True)
    )


def language_agreement(folder: Path) -> Row:
    """How often the first 1,000 characters give the whole text's verdict: English by at least 0.5."""
    ours, theirs, agree, count = (folder / "loom", folder / "dolma", 0, 0)
    english = 0
    for path in sorted((theirs / "attributes" / "bench_language").glob("*.gz")):
        for left, right in zip(
            rows(ours / "attributes" / "language_v1" / path.name), rows(path), strict=True
        ):
            a = left["attributes"]["language_v1__language_v1__en"]
            b = right["attributes"]["bench_language__bench_language__en"]
            mine, other = (a[0][2] if a else 0.0) >= 0.5, (b[0][2] if b else 0.0) >= 0.5
            agree += mine == other
            english += other
            count += 1
    found = {"documents": count, "english": english, "agreement": round(agree / count, 5)}
    return expect(agree >= LEAST_AGREEMENT * count, "the capped length decides otherwise too often", found)


def same_documents(ours: Path, theirs: Path) -> Row:
    """Mixed documents by id: how many both have, how many texts differ, bytes of text and on disk.

    dolma's surviving copy of a paragraph depends on which thread came first, so texts differ where the same
    paragraph stands in two files; the sum of what is left is the check.
    """
    found: list[dict[str, tuple[str, int]]] = []
    for folder in (ours, theirs):
        texts = {}
        for path in sorted(folder.rglob("*.gz")):
            for row in rows(path):
                data = row["text"].encode()
                texts[row["id"]] = (digest_bytes(data), len(data))
        found.append(texts)
    mine, other = found
    both = mine.keys() & other.keys()
    sizes = [sum(p.stat().st_size for p in folder.rglob("*.gz")) for folder in (ours, theirs)]
    texts_left = [sum(size for _, size in side.values()) for side in found]
    ratio = texts_left[0] / max(texts_left[1], 1)
    made = {
        "documents": [len(mine), len(other)],
        "in_both": len(both),
        "texts_that_differ": sum(mine[name][0] != other[name][0] for name in both),
        "bytes_of_text": texts_left,
        "bytes_of_text_ratio": round(ratio, 5),
        "gz_size_ratio": round(sizes[0] / sizes[1], 3),
    }
    expect(len(mine) == len(other) == len(both) > 0, "not the same documents", made)
    expect(LEAST_SAME < ratio < 1 / LEAST_SAME, "not as much text left", made)
    return expect(sizes[0] <= LARGEST * sizes[1], "files too large", made)


def same_tokens(ours: Path, theirs: Path, texts: tuple[Path, Path]) -> Row:
    """Documents by id whose ids of tokens differ, of those that both have; `texts` are what each side read.

    Of the same text on both sides they may differ only where it spells a control token, which dolma takes for
    one, or where NFC changes it: the tables of dolma's tokenizers know fewer characters. A document that only one
    side has must be empty on the other.
    """
    facts = json.loads((ours / "manifest.json").read_text())["tokens"]
    mine: dict[str, str] = {}
    count = [0, 0]
    for shard in facts["shards"]:
        ids = np.fromfile(ours / shard["path"], np.dtype(facts["dtype"]).newbyteorder("<"))
        count[0] += ids.size
        table = pq.read_table(ours / shard["path"].replace(".npy", ".docs.parquet"))
        starts, ends = table.column("start").to_pylist(), table.column("end").to_pylist()
        for name, start, end in zip(table.column("id").to_pylist(), starts, ends, strict=True):
            mine[name] = digest_bytes(ids[start:end].tobytes())
    other: dict[str, str] = {}
    for path in sorted(theirs.rglob("*.csv.gz")):
        ids = np.fromfile(path.with_name(path.name.replace(".csv.gz", ".npy")), np.uint16)
        count[1] += ids.size
        with gzip.open(path, "rt", newline="") as stream:
            for start, end, name, *_ in csv.reader(stream):
                other[name] = digest_bytes(ids[int(start) : int(end)].tobytes())
    differ = {name for name in mine.keys() & other.keys() if mine[name] != other[name]}
    alone = mine.keys() ^ other.keys()
    left, right = (_texts(folder, differ | alone) for folder in texts)
    spelt = {name for name in differ if any(token in left[name] for token in CONTROL)}
    composed = {name for name in differ if unicodedata.normalize("NFC", left[name]) != left[name]}
    unlike = {name for name in differ if left[name] != right[name]}
    filled = {name for name in alone if (right if name in mine else left).get(name)}
    found = {
        "documents": [len(mine), len(other)],
        "tokens": count,
        "documents_that_differ": len(differ),
        "of_which_spell_a_control_token": len(spelt),
        "of_which_nfc_changes": len(composed),
        "of_which_are_other_texts": len(unlike),
        "documents_on_one_side": len(alone),
    }
    expect(bool(mine) and differ == spelt | composed | unlike, "tokens differ where texts do not", found)
    return expect(not filled, "documents are missing", found)


def _texts(folder: Path, wanted: Set[str]) -> dict[str, str]:
    return {
        row["id"]: row["text"].strip()
        for path in sorted(folder.rglob("*.gz")) if wanted
        for row in rows(path)
        if row["id"] in wanted
    }  # fmt: skip


def same_texts(folders: Sequence[Path]) -> Row:
    """That folders of Loom's own mixed documents hold the same texts by id."""
    found = [
        {
            row["id"]: digest_bytes(row["text"].encode())
            for path in sorted(folder.rglob("*.gz"))
            for row in rows(path)
        }
        for folder in folders
    ]
    same = all(each == found[0] for each in found)
    return expect(same and bool(found[0]), "formats differ", {"documents": [len(each) for each in found]})


def labelled_lines(folder: Path, count: int) -> list[str]:
    """Lines for a classifier: a line of code counts as toxic, one of prose as not. Only the shape matters."""
    lines: list[str] = []
    for path in sorted(folder.glob("*.gz")):
        for row in rows(path):
            label = "toxic" if row.get("source") == "code" else "non_toxic"
            words = [line.split() for line in row["text"].split("\n")[:40]]
            lines += [f"__label__{label} {' '.join(line)}\n" for line in words if len(line) > 5]
            if len(lines) >= count:
                return lines
    return lines


def convert(source: Path, out: Path, kind: str) -> None:
    """The same documents as zst JSON lines or Parquet."""
    for path in sorted(source.glob("*.gz")):
        stem = path.name.removesuffix(".jsonl.gz")
        name = f"{stem}.parquet" if kind == "parquet" else f"{stem}.jsonl.zst"
        made = (row for batch in documents.read(path) for row in as_rows(batch))
        documents.write(out / name, made)


NO_WORD = re.compile(r"[^a-z0\x80-\U0010ffff]+|\s+")


def plain_words(source: Path, out: Path) -> None:
    """Documents whose words are parted by single spaces for both sides: lower case, digits 0, no punctuation."""
    zero = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789", "abcdefghijklmnopqrstuvwxyz" + "0" * 9)
    for path in sorted(source.glob("*.gz")):
        made = (
            {"id": row["id"], "text": NO_WORD.sub(" ", row["text"].translate(zero)).strip()}
            for row in rows(path)
        )
        kept = (row for row in made if row["text"].count(" ") >= SHINGLE)
        documents.write(out / path.name, kept)


def near_duplicates(texts: Path, marked: Path, clusters: Path, sample: int) -> Row:
    """Recall and precision of both sides' clusters over every pair of the first `sample` documents."""
    names: list[str] = []
    words: list[list[str]] = []
    places: list[tuple[int, int]] = []
    for file, path in enumerate(sorted(texts.glob("*.gz"))):
        for number, row in enumerate(rows(path)):
            if len(names) < sample:
                names.append(row["id"])
                words.append(row["text"].split())
                places.append((file, number))
    true = similar_pairs(words)
    survivor: dict[str, str] = {}
    for path in sorted(marked.glob("*.gz")):
        for row in rows(path):
            if row["attributes"]:
                survivor[row["id"]] = row["attributes"]["near_of"]
    ours = pairs_of([survivor.get(name, name) for name in names])
    label: dict[tuple[int, int], int] = {}
    for path in clusters.rglob("*.clusters"):
        for number, cluster in np.fromfile(path, "<u4").reshape(-1, 2).tolist():
            label[int(path.name.split(".")[0]), number] = cluster
    theirs = pairs_of([label.get(place, ("alone", place)) for place in places])
    found = {
        "documents_compared": len(names),
        "pairs_of_jaccard_0.8": len(true),
        "loom": _score(ours, true),
        "datatrove": _score(theirs, true),
    }
    worse = [key for key in ("recall", "precision") if found["loom"][key] < found["datatrove"][key]]
    return expect(bool(true) and not worse, f"worse {' and '.join(worse)} than datatrove's", found)


def _score(found: set[tuple[int, int]], true: set[tuple[int, int]]) -> Row:
    hit = len(found & true)
    recall, precision = hit / max(len(true), 1), hit / max(len(found), 1)
    return {"pairs": len(found), "recall": round(recall, 5), "precision": round(precision, 5)}


def pairs_of(labels: Sequence[Any]) -> set[tuple[int, int]]:
    """Every pair of places with equal labels."""
    groups: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        groups.setdefault(label, []).append(place)
    return {(a, b) for group in groups.values() for i, a in enumerate(group) for b in group[i + 1 :]}


def similar_pairs(words: Sequence[list[str]]) -> set[tuple[int, int]]:
    """Every pair of documents whose sets of shingles have Jaccard similarity of `SIMILAR` or more."""
    numbers: dict[tuple[str, ...], int] = {}
    sets = [
        np.fromiter(
            {
                numbers.setdefault(tuple(text[k : k + SHINGLE]), len(numbers))
                for k in range(len(text) - SHINGLE + 1)
            },
            np.int64,
        )
        for text in words
    ]
    owner = np.repeat(np.arange(len(sets)), [part.size for part in sets])
    every = np.concatenate(sets)
    order = np.argsort(every, kind="stable")
    holders = owner[order]
    firsts = np.searchsorted(every[order], np.arange(len(numbers) + 1))
    pairs = set()
    for a, part in enumerate(sets):
        if not part.size:
            continue
        shared = np.bincount(
            np.concatenate([holders[firsts[k] : firsts[k + 1]] for k in part.tolist()]), minlength=len(sets)
        )
        for b in np.flatnonzero(shared).tolist():
            union = part.size + sets[b].size - shared[b]
            if b > a and shared[b] / union >= SIMILAR:
                pairs.add((a, b))
    return pairs


def reading_limit(folder: Path, seconds: float, passes: int = 1) -> Row:
    """What decompressing the input alone takes on two cores, and what copying its text through memory does."""
    total = 0
    started = time.perf_counter()
    for path in sorted((folder / "loom" / "documents").glob("*.gz")):
        with documents.open_compressed(path) as stream:
            while chunk := stream.read(1 << 22):
                total += len(chunk)
    decompression = (time.perf_counter() - started) / 2 * passes
    buffer = np.ones(1 << 27, np.uint8)
    started = time.perf_counter()
    buffer.copy()
    copied = total / ((1 << 27) / (time.perf_counter() - started))
    return {
        "what": f"decompression of the input on two cores, {passes} times",
        "decompression_seconds": round(decompression, 3),
        "one_copy_through_memory_seconds": round(copied, 3),
        "loom_is_times_the_limit": round(seconds / decompression, 1),
    }


def encoding_limit(folder: Path, tokenizer: Path, seconds: float) -> Row:
    """What gigatoken alone takes for these texts on all cores, already in memory and its cache warm."""
    loaded = Tokenizer.load(tokenizer)
    texts = []
    for path in sorted((folder / "loom" / "documents").glob("*.gz")):
        texts += [text for batch in documents.read(path) for text in batch.texts()]
        if len(texts) > 20_000:
            break
    loaded.encode_batch(texts, parallel=True)
    started = time.perf_counter()
    loaded.encode_batch(texts, parallel=True)
    size = sum(map(len, texts))
    rate = size / (time.perf_counter() - started)
    total = json.loads((folder / "made.json").read_text())["bytes"]
    return {
        "what": "gigatoken on all cores, texts in memory, cache warm",
        "megabytes_a_second": round(rate / 1e6, 1),
        "loom_is_times_the_limit": round(seconds / (total / rate), 2),
    }

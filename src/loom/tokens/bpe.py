"""Train a byte-level BPE tokenizer on documents.

The merges are gigatoken's, with Hugging Face's way of breaking ties; what is written around them is
GPT-NeoX's tokenizer: NFC, GPT-2's pre-tokenizer without a prefix space, byte-level decoding. The file
reads alike in gigatoken, `tokenizers` and transformers.

Ids: 0 `<|endoftext|>`, 1 `<|padding|>`, then the 256 bytes, the merges in their order, and last the
three tokens that stand for masked personal data.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from loom import artifact
from loom.artifact import MANIFEST, Artifact, atomic_write
from loom.console import console, format_bytes
from loom.errors import LoomError
from loom.recipe import to_plain
from loom.tokens.documents import REJECTED, Rejected, find, read, settle, tell_of
from loom.tokens.tokenizer import PII_STRINGS, TOKENIZER_FILE, Tokenizer

EOS, PAD = "<|endoftext|>", "<|padding|>"
SPECIALS = (EOS, PAD, *PII_STRINGS)
SMALLEST = 256 + len(SPECIALS)
SEPARATOR = b"\xff"  # a byte that UTF-8 never holds
SAMPLE_KEY = 0x70C3


@dataclass(frozen=True)
class TrainTokenizer:
    """`documents`: globs, files or folders. `sample`: the share of documents read, by hash of their id."""

    documents: tuple[str, ...]
    vocab_size: int = 50_304
    sample: float = 1.0

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST:
            raise ValueError(
                f"vocab_size is {self.vocab_size:,}; 256 bytes and {len(SPECIALS)} special tokens "
                f"need at least {SMALLEST}"
            )
        if not 0 < self.sample <= 1:
            raise ValueError(f"sample is {self.sample}; it is a share of the documents, above 0 up to 1")


def train(recipe: TrainTokenizer, out: Path) -> Artifact:
    """Train on `recipe.documents` and write `out`, a folder or the tokenizer's own file (`*.json`).

    The result depends on the set of documents only, not on their order or on the machine. If the text
    does not hold as many pairs as were asked for, the vocabulary is smaller, and the counters say so. Rows
    that are no documents are set aside in `rejected.jsonl` beside it, and counted.
    """
    started = time.monotonic()
    folder, name = (out.parent, out.name) if out.suffix == ".json" else (out, TOKENIZER_FILE)
    files, inputs = find(recipe.documents, folder)
    settings = {key: value for key, value in to_plain(recipe).items() if key != "documents"}
    if (folder / MANIFEST).exists():
        inputs = settle(inputs, folder)
        done = artifact.finished(folder, "tokenizer", settings, inputs)
        if done is not None and name in {item.path for item in done.outputs}:
            return done
        if artifact.load(folder).kind != "tokenizer":
            raise LoomError(
                f"{folder} already holds {artifact.load(folder).kind!r}. Give the tokenizer a folder of its "
                f"own with --out."
            )
        artifact.discard(folder, "tokenizer")
    pieces: list[bytes] = []
    aside: list[Rejected] = []
    documents = size = 0
    limit = int(recipe.sample * 2**64)
    with console.progress("reading documents", total=len(files)) as progress:
        for file in files:
            for rows in read(file, aside):
                for identity, text in zip(rows.ids, rows.texts, strict=True):
                    if xxhash.xxh3_64_intdigest(identity.encode(), seed=SAMPLE_KEY) < limit:
                        pieces += _plain_pieces(text)
                        documents += 1
            progress.advance()
    text_bytes = SEPARATOR.join(sorted(pieces))
    size = len(text_bytes)
    if not text_bytes:
        raise LoomError("The documents hold no text to train a tokenizer on.")
    del pieces
    merges = _merges(text_bytes, recipe.vocab_size - SMALLEST)
    data = tokenizer_json(merges)
    tokenizer = Tokenizer(data, name)
    with atomic_write(folder / name) as stream:
        stream.write(data)
    outputs = [name]
    if aside:
        with atomic_write(folder / REJECTED) as stream:
            stream.writelines(row.json() + b"\n" for row in aside)
        tell_of(folder / REJECTED, len(aside))
        outputs.append(REJECTED)
    counters = {
        "documents": documents,
        "rejected": len(aside),
        "bytes": size,
        "vocab_size": tokenizer.vocab_size,
        "merges": len(merges),
    }
    if tokenizer.vocab_size < recipe.vocab_size:
        console.warn(
            f"{format_bytes(size)} of text gave {tokenizer.vocab_size:,} entries, not the "
            f"{recipe.vocab_size:,} asked for."
        )
    return artifact.commit(
        folder,
        "tokenizer",
        recipe=settings,
        inputs=settle(inputs, folder),
        outputs=artifact.describe(folder, outputs),
        counters=counters,
        facts={"tokenizer": {"path": name, "digest": tokenizer.digest, **tokenizer.facts()}},
        started=started,
    )


_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIALS))


def _plain_pieces(text: str) -> list[bytes]:
    """The text between special tokens, normalised as the tokenizer will do it."""
    return [unicodedata.normalize("NFC", piece).encode() for piece in _SPECIAL.split(text) if piece.strip()]


def _merges(text: bytes, count: int) -> list[tuple[bytes, bytes]]:
    from gigatoken.gigatoken_rs import train_bpe

    if count == 0:
        return []
    with console.progress("training the tokenizer"), _silent():
        _, merges = train_bpe(text, 256 + count, [], tie_breaking="huggingface", separator=SEPARATOR)
    return list(merges)


@contextmanager
def _silent() -> Iterator[None]:
    """gigatoken's trainer prints from compiled code: keep it off standard output and error."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in saved:
            os.dup2(null, number)
        yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + index) for index, byte in enumerate(others)}


def tokenizer_json(merges: list[tuple[bytes, bytes]]) -> bytes:
    """A whole tokenizer.json for `merges`, with the special tokens and GPT-NeoX's settings."""
    table = byte_characters()
    vocab: dict[str, int] = {EOS: 0, PAD: 1}
    for character in table.values():
        vocab[character] = len(vocab)
    pairs = [tuple("".join(table[byte] for byte in part) for part in pair) for pair in merges]
    for pair in pairs:
        vocab.setdefault("".join(pair), len(vocab))
    for token in PII_STRINGS:
        vocab[token] = len(vocab)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, vocab[token], control=token in (EOS, PAD)) for token in SPECIALS],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [" ".join(pair) for pair in pairs],
        },
    }
    return json.dumps(spec, ensure_ascii=False, indent=1).encode() + b"\n"


def _added(token: str, index: int, control: bool) -> dict[str, Any]:
    """Control tokens are `special`: readers may skip them, and may be told to leave them alone in text."""
    return {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not control,
        "special": control,
    }

"""Small real inputs made on the spot: texts of the standard library, and a tokenizer trained on them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

MODULES = ("argparse", "ast", "textwrap", "json.decoder", "difflib", "statistics", "pathlib", "shutil")
ODD = (
    "Ünïcödé: e\u0301 \u0130 \u2028 日本語 \U0001f642\u200d",
    "a\r\nb\x00c\td  e   f    ",
    "don't we'll I'D 3.14 1,000",
)


@lru_cache(maxsize=1)
def library_texts() -> tuple[str, ...]:
    """Source files of the standard library in pieces of some paragraphs, and a few odd strings."""
    texts = list(ODD)
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        paragraphs = Path(spec.origin).read_text(encoding="utf-8").split("\n\n")
        texts += ["\n\n".join(paragraphs[at : at + 6]) for at in range(0, len(paragraphs), 6)]
    return tuple(texts)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_documents(folder: Path, files: int = 3) -> Path:
    """The texts as documents of two sources in `files` files below `folder`/documents."""
    rows = [
        {"id": f"doc-{number}", "text": text, "source": "odd" if number < len(ODD) else "library"}
        for number, text in enumerate(library_texts())
    ]
    for number in range(files):
        write_lines(folder / "documents" / "library" / f"{number}.jsonl", rows[number::files])
    return folder


def make_tokenizer(folder: Path, vocab_size: int = 1200) -> Path:
    """A tokenizer trained on the texts; returns its tokenizer.json."""
    from loom.tokens.bpe import TrainTokenizer, train

    documents = write_documents(folder / "text")
    made = train(TrainTokenizer((str(documents),), vocab_size), folder / "tokenizer")
    return made.file("tokenizer.json")

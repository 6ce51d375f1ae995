"""A byte-level BPE tokenizer: text to ids and back.

The file format is Hugging Face's `tokenizer.json`; gigatoken reads it and encodes. Two rules hold here
that neither library holds by itself:

- Text never becomes a control token. A document may spell `<|endoftext|>`; it stays nine characters
  of text and some ids of text. Control tokens are appended by id, by whoever means them.
- The end-of-text token is found by its string, never by a remembered number. OLMo's published
  configurations named a file in which id 50279 is `|||IP_ADDRESS|||`; `Tokenizer.check` refuses such
  a mix-up.

The three tokens that stand for masked personal data stay special in text: that is how masks reach the
model.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loom.artifact import digest_bytes
from loom.errors import LoomError

EOS_STRINGS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
PAD_STRINGS = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]")
PII_STRINGS = ("|||EMAIL_ADDRESS|||", "|||PHONE_NUMBER|||", "|||IP_ADDRESS|||")
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Batch:
    """Encoded texts: text i is `ids[offsets[i]:offsets[i + 1]]`; ids are uint32, offsets int64."""

    ids: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint32]:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


class Tokenizer:
    """A loaded tokenizer. Make one with `Tokenizer.load(path)`.

    `eos_id`, `eos_token`, `pad_id`, `pad_token`: the control tokens, found by string (padding is
    end-of-text in a file without a token for it: padding lies in segments of its own). `vocab_size` is
    one more than the largest id. `digest` is that of the file's bytes.
    """

    def __init__(self, data: bytes, name: str, eos: str | None = None, pad: str | None = None) -> None:
        from gigatoken.gigatoken_rs import BPETokenizer, load_hf_json

        spec = _parse(data, name)
        self.data, self.name, self.digest = data, name, digest_bytes(data)
        self._ids: dict[str, int] = dict(spec["model"]["vocab"])
        self._ids |= {token["content"]: token["id"] for token in spec["added_tokens"]}
        self.vocab_size = max(self._ids.values()) + 1
        self.eos_token = self._find(eos, EOS_STRINGS, "end-of-text")
        self.eos_id = self._ids[self.eos_token]
        self.pad_token = self._find(pad, (*PAD_STRINGS, self.eos_token), "padding")
        self.pad_id = self._ids[self.pad_token]
        self.control = frozenset(
            token["content"]
            for token in spec["added_tokens"]
            if token["special"] and token["content"] not in PII_STRINGS
        ) | {self.eos_token, self.pad_token}
        spec["added_tokens"] = [
            token for token in spec["added_tokens"] if token["content"] not in self.control
        ]
        try:
            self._backend = load_hf_json(orjson.dumps(spec).decode())
        except Exception as error:
            raise LoomError(f"The tokenizer {name} cannot be used: {error}.") from None
        if not isinstance(self._backend, BPETokenizer):
            raise LoomError(
                f"The tokenizer {name} is a SentencePiece model; Loom's are byte-level BPE, like OLMo's and "
                f"GPT-NeoX's. Train one with: loom tokenizer train."
            )
        table = self._backend.vocab
        for text, index in self._ids.items():
            if index not in table or text in self.control or text in PII_STRINGS:
                table[index] = text.encode()
        self._bytes = [table.get(index, b"") for index in range(self.vocab_size)]

    @classmethod
    def load(cls, path: Path | str, eos: str | None = None, pad: str | None = None) -> Tokenizer:
        """Read `path`, a tokenizer.json or a folder that holds one.

        `eos` and `pad` name the control tokens where the file uses other strings than the usual ones.
        Raises `LoomError` if the file is missing, is no tokenizer, or holds no end-of-text token.
        """
        file = tokenizer_file(Path(path))
        return cls(file.read_bytes(), str(file), eos, pad)

    def _find(self, wanted: str | None, usual: Sequence[str], what: str) -> str:
        if wanted is not None:
            if wanted not in self._ids:
                raise LoomError(f"The tokenizer {self.name} has no token {wanted!r} to serve as {what}.")
            return wanted
        found = [token for token in usual if token in self._ids]
        if not found:
            raise LoomError(
                f"The tokenizer {self.name} has no {what} token: none of {', '.join(usual)} is in it. "
                f"Use the tokenizer that the data or the model was made with."
            )
        return found[0]

    def token_id(self, token: str) -> int:
        """The id of a token by its string. Raises `LoomError` if there is none."""
        if token not in self._ids:
            raise LoomError(f"The tokenizer {self.name} has no token {token!r}.")
        return self._ids[token]

    def token_bytes(self, index: int) -> bytes:
        """The bytes one id stands for; none for ids past the vocabulary (a model's is rounded up)."""
        return self._bytes[index] if index < self.vocab_size else b""

    def encode(self, text: str) -> NDArray[np.uint32]:
        """The ids of one text; no token is added before or after it."""
        ids: NDArray[np.uint32] = self._backend.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str], parallel: bool = False) -> Batch:
        """Encode many texts; on all cores with `parallel`, else on the calling thread (GIL released)."""
        if not texts:
            return Batch(np.zeros(0, np.uint32), np.zeros(1, np.int64))
        layout = self._backend.encode_batch(list(texts), parallel=parallel).layout
        return Batch(
            np.asarray(layout.content.data, dtype=np.uint32), np.asarray(layout.offsets.data, dtype=np.int64)
        )

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; control tokens come out as their strings."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    def facts(self) -> dict[str, Any]:
        """What a token manifest says about its tokenizer (the file's own entry apart)."""
        return {
            "vocab_size": self.vocab_size,
            "eos": {"id": self.eos_id, "token": self.eos_token},
            "pad": {"id": self.pad_id, "token": self.pad_token},
        }

    def check(self, facts: Mapping[str, Any], where: str) -> None:
        """Raise `LoomError` unless `facts` (a manifest's `tokens`) were made with this very tokenizer."""
        eos = facts["eos"]
        if (eos["id"], eos["token"]) != (self.eos_id, self.eos_token):
            raise LoomError(
                f"{where} ends documents with id {eos['id']} ({eos['token']!r}), but in the tokenizer "
                f"{self.name} {eos['token']!r} is {self._ids.get(eos['token'])} and id {eos['id']} is "
                f"{self._shown(eos['id'])}. Use the tokenizer.json that lies beside the data."
            )
        if facts["tokenizer"]["digest"] != self.digest:
            raise LoomError(
                f"{where} was made with another tokenizer than {self.name} (their digests differ). Use the "
                f"tokenizer.json that lies beside the data."
            )

    def _shown(self, index: int) -> str:
        return repr(self.decode([index])) if 0 <= index < self.vocab_size else "not in it"


class StreamDecoder:
    """Text from ids one at a time: a character comes out once all of its bytes are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """The text that `index` completes, possibly none."""
        return self._decoder.decode(self._tokenizer.token_bytes(index))

    def finish(self) -> str:
        """What is left when no more ids come: U+FFFD for a character cut short, else nothing."""
        return self._decoder.decode(b"", final=True)


def tokenizer_file(path: Path) -> Path:
    """`path` itself, or the tokenizer.json in it if it is a folder. Raises `LoomError` if there is none."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise LoomError(
            f"There is no tokenizer at {file}. Name a tokenizer.json, or make one: loom tokenizer train."
        )
    return file


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        spec = orjson.loads(data)
        model = spec["model"]
        kind, vocab = model.get("type", "BPE"), model["vocab"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoomError(f"{name} is not a tokenizer.json ({type(error).__name__}: {error}).") from None
    if kind != "BPE" or not isinstance(vocab, dict):
        raise LoomError(f"{name} holds a {kind} model; Loom's tokenizers are byte-level BPE.")
    spec["added_tokens"] = spec.get("added_tokens") or []
    return dict(spec)

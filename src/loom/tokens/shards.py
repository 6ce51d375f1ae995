"""A token folder, opened for reading: raw little-endian ids, mapped from disk.

Everything is checked against `manifest.json` when the folder is opened, by size; `verify` reads the
data too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loom.errors import LoomError
from loom.tokens.digest import digest_file, digest_json

Ids: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class SpecialToken:
    id: int
    token: str


@dataclass(frozen=True)
class Shard:
    """One `shard-NNNNN.npy`: a flat array of ids, every document ended by EOS."""

    path: str
    tokens: int
    documents: int
    digest: str


@dataclass(frozen=True)
class TokenFolder:
    """What `manifest.json` of kind "tokens" says; arrays are mapped when first asked for."""

    path: Path
    dtype: str
    vocab_size: int
    eos: SpecialToken
    pad: SpecialToken
    tokenizer: Path
    tokenizer_digest: str
    shards: tuple[Shard, ...]
    sources: Mapping[str, Mapping[str, int]]
    digest: str
    """Of the whole manifest."""

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @cached_property
    def arrays(self) -> tuple[Ids, ...]:
        """Read-only maps of the shards' ids, in order."""
        kind = np.dtype(self.dtype).newbyteorder("<")
        return tuple(
            np.memmap(self.path / shard.path, kind, mode="r", shape=(shard.tokens,)) for shard in self.shards
        )

    @cached_property
    def weights(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """Loss weights beside the ids (SFT and DPO). Raises `LoomError` where a folder has none."""
        maps = []
        for shard in self.shards:
            path = self.path / (shard.path.removesuffix(".npy") + ".weights.u8")
            size = path.stat().st_size if path.is_file() else -1
            if size != shard.tokens:
                what = "is missing" if size < 0 else f"has {size:,} bytes for {shard.tokens:,} tokens"
                raise LoomError(f"{path} {what}: SFT and DPO train on folders made by `loom prepare`.")
            maps.append(np.memmap(path, np.uint8, mode="r", shape=(shard.tokens,)))
        return tuple(maps)

    def verify(self) -> None:
        """Read every shard and compare its digest. Raises `LoomError` naming the first that differs."""
        for shard in self.shards:
            found = digest_file(self.path / shard.path, shard.digest)
            if found is not None and found != shard.digest:
                raise LoomError(
                    f"{self.path / shard.path} changed since it was written: its digest is {found}, the manifest "
                    f"says {shard.digest}. Tokenize again, or restore the file."
                )


def open_tokens(path: Path) -> TokenFolder:
    """Open a folder that `loom tokenize` or `loom prepare` wrote.

    Raises `LoomError` when the manifest is missing, of another kind or lacks a key, when a shard is
    missing or of another size, or when EOS lies outside the vocabulary.
    """
    manifest = path / "manifest.json"
    try:
        body = json.loads(manifest.read_bytes())
    except FileNotFoundError:
        raise LoomError(
            f"{manifest} is missing: {path} is no finished token folder. Run `loom tokenize`."
        ) from None
    except (OSError, ValueError) as error:
        raise LoomError(f"{manifest} cannot be read ({error}). Tokenize into this folder again.") from None
    if body.get("kind") != "tokens":
        raise LoomError(
            f"{path} holds {body.get('kind')!r} where a token folder is needed (`loom tokenize`)."
        )
    try:
        folder = _from_manifest(path, body)
    except (KeyError, TypeError) as error:
        raise LoomError(
            f'{manifest} lacks {error} under "tokens": tokenize into this folder again.'
        ) from None
    _check(folder)
    return folder


def _from_manifest(path: Path, body: Mapping[str, Any]) -> TokenFolder:
    facts = body["tokens"]
    return TokenFolder(
        path=path,
        dtype=facts["dtype"],
        vocab_size=int(facts["vocab_size"]),
        eos=SpecialToken(int(facts["eos"]["id"]), facts["eos"]["token"]),
        pad=SpecialToken(int(facts["pad"]["id"]), facts["pad"]["token"]),
        tokenizer=path / facts["tokenizer"]["path"],
        tokenizer_digest=facts["tokenizer"]["digest"],
        shards=tuple(
            Shard(s["path"], int(s["tokens"]), int(s["documents"]), s["digest"]) for s in facts["shards"]
        ),
        sources=facts["sources"],
        digest=digest_json(body),
    )


def _check(folder: TokenFolder) -> None:
    if folder.dtype not in ("uint16", "uint32"):
        raise LoomError(
            f"{folder.path / 'manifest.json'} has the dtype {folder.dtype!r}; uint16 and uint32 are read."
        )
    for name in ("eos", "pad"):
        token: SpecialToken = getattr(folder, name)
        if not 0 <= token.id < folder.vocab_size:
            raise LoomError(
                f"{folder.path}: {name} is {token.token!r} with id {token.id}, outside a vocabulary of "
                f"{folder.vocab_size:,}. Tokenize again with the right tokenizer."
            )
    width = np.dtype(folder.dtype).itemsize
    for shard in folder.shards:
        file = folder.path / shard.path
        size = file.stat().st_size if file.is_file() else -1
        if size != shard.tokens * width:
            what = "is missing" if size < 0 else f"has {size:,} bytes instead of {shard.tokens * width:,}"
            raise LoomError(
                f"{file} {what}: it was cut short or changed after tokenizing. Tokenize again or restore it."
            )
        if shard.tokens and folder.documents:
            last = int(
                np.memmap(file, np.dtype(folder.dtype).newbyteorder("<"), mode="r", shape=(shard.tokens,))[-1]
            )
            if last != folder.eos.id:
                raise LoomError(
                    f"{file} ends with the id {last} where every document ends with {folder.eos.token!r}, id "
                    f"{folder.eos.id}: manifest and shards do not belong together, or the tokenizer names another "
                    f"EOS. Tokenize again."
                )
    if not folder.shards or folder.tokens == 0:
        raise LoomError(f"{folder.path} holds no tokens: check what was matched when it was tokenized.")

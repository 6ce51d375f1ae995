"""A token folder, opened for reading: raw little-endian ids, mapped from disk or read at an address by ranges.

Everything is checked against `manifest.json` when the folder is opened, by size; `verify` reads the
data too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from loom.errors import LoomError
from loom.tokens import remote
from loom.tokens.digest import digest_file, digest_json, digest_stream

Ids: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class Grid(Protocol):
    """A shard as whole windows: `grid[rows]` is the ids [n, length] of windows [n]."""

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Ids: ...


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

    @property
    def address(self) -> str | None:
        """Where the folder is, if not on this machine."""
        return remote.address(self.path)

    @property
    def kind(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")

    def file(self, name: str) -> Path:
        """A file of the folder on this machine; from an address it is fetched, once."""
        if self.address is None:
            return self.path / name
        return remote.fetched(f"{self.address}/{name}", self.digest)

    @cached_property
    def arrays(self) -> tuple[Ids, ...]:
        """Read-only maps of the shards' ids, in order. Raises `LoomError` for a folder at an address."""
        self._here()
        return tuple(
            np.memmap(self.path / shard.path, self.kind, mode="r", shape=(shard.tokens,))
            if shard.tokens
            else np.empty(0, self.kind)
            for shard in self.shards
        )

    def grid(self, shard: int, length: int) -> Grid:
        """A shard's windows of `length` tokens; the tail is out of reach."""
        if self.address is not None:
            return remote.RemoteWindows(f"{self.address}/{self.shards[shard].path}", self.kind, length)
        array = self.arrays[shard]
        return array[: len(array) // length * length].reshape(-1, length)

    def ids(self, shard: int, first: int, last: int) -> Ids:
        """Tokens [first, last) of a shard."""
        if self.address is None:
            return self.arrays[shard][first:last]
        url, size = f"{self.address}/{self.shards[shard].path}", self.kind.itemsize
        return np.frombuffer(remote.ranges([url], [first * size], [last * size])[0], self.kind)

    def known(self, shard: int, ids: Ids) -> Ids:
        """`ids` of a shard, as they are. Raises `LoomError` for one that the tokenizer has not."""
        if ids.size and (largest := int(ids.max())) >= self.vocab_size:
            raise LoomError(
                f"{self.path / self.shards[shard].path} holds the id {largest:,}, beyond the {self.vocab_size:,} "
                f"entries of its tokenizer: it changed after tokenizing. Tokenize again, or restore the file; "
                f"data.verify=true reads all shards and compares their digests before training."
            )
        return ids

    def _here(self) -> None:
        if self.address is not None:
            raise LoomError(
                f"{self.address} is not on this machine: pretraining reads it there by ranges; for anything else copy "
                f"the folder here and name the copy."
            )

    @cached_property
    def weights(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """Loss weights beside the ids (SFT and DPO). Raises `LoomError` where a folder has none."""
        self._here()
        maps = []
        for shard in self.shards:
            path = self.path / (shard.path.removesuffix(".npy") + ".weights.u8")
            size = path.stat().st_size if path.is_file() else -1
            if size != shard.tokens:
                what = "is missing" if size < 0 else f"has {size:,} bytes for {shard.tokens:,} tokens"
                raise LoomError(f"{path} {what}: SFT and DPO train on folders made by `loom prepare`.")
            maps.append(np.memmap(path, np.uint8, mode="r", shape=(shard.tokens,)))
        return tuple(maps)

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Read every shard, or a rank's share, and compare digests. Raises `LoomError` naming one that differs."""
        for shard in self.shards[rank::ranks]:
            if self.address is None:
                found = digest_file(self.path / shard.path, shard.digest)
            else:
                with remote.opened(f"{self.address}/{shard.path}") as stream:
                    found = digest_stream(stream, shard.digest)
            if found is not None and found != shard.digest:
                raise LoomError(
                    f"{self.path / shard.path} changed since it was written: its digest is {found}, the manifest "
                    f"says {shard.digest}. Tokenize again, or restore the file."
                )


def open_tokens(path: Path) -> TokenFolder:
    """Open a folder that `loom tokenize` or `loom prepare` wrote, here or at an address (`s3://bucket/tokens`).

    Raises `LoomError` when the manifest is missing, of another kind or lacks a key, when a shard is
    missing or of another size, or when EOS lies outside the vocabulary.
    """
    manifest, url = path / "manifest.json", remote.address(path)
    try:
        body = json.loads(manifest.read_bytes() if url is None else remote.read(f"{url}/manifest.json"))
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
    facts, digest, url = body["tokens"], digest_json(body), remote.address(path)
    name = facts["tokenizer"]["path"]
    return TokenFolder(
        path=path,
        dtype=facts["dtype"],
        vocab_size=int(facts["vocab_size"]),
        eos=SpecialToken(int(facts["eos"]["id"]), facts["eos"]["token"]),
        pad=SpecialToken(int(facts["pad"]["id"]), facts["pad"]["token"]),
        tokenizer=path / name if url is None else remote.fetched(f"{url}/{name}", digest),
        tokenizer_digest=facts["tokenizer"]["digest"],
        shards=tuple(
            Shard(s["path"], int(s["tokens"]), int(s["documents"]), s["digest"]) for s in facts["shards"]
        ),
        sources=facts["sources"],
        digest=digest,
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
    width = folder.kind.itemsize
    there = remote.sizes(folder.address) if folder.address else None
    for shard in folder.shards:
        file = folder.path / shard.path
        if there is not None:
            size = there.get(shard.path, -1)
        else:
            size = file.stat().st_size if file.is_file() else -1
        if size != shard.tokens * width:
            what = "is missing" if size < 0 else f"has {size:,} bytes instead of {shard.tokens * width:,}"
            raise LoomError(
                f"{remote.address(file) or file} {what}: it was cut short or changed after tokenizing. Tokenize again "
                f"or restore it."
            )
    if folder.documents:
        for shard, last in zip(folder.shards, _last_ids(folder), strict=True):
            if last not in (None, folder.eos.id):
                raise LoomError(
                    f"{folder.path / shard.path} ends with the id {last} where every document ends with "
                    f"{folder.eos.token!r}, id {folder.eos.id}: manifest and shards do not belong together, or the "
                    f"tokenizer names another EOS. Tokenize again."
                )
    if not folder.shards or folder.tokens == 0:
        raise LoomError(f"{folder.path} holds no tokens: check what was matched when it was tokenized.")


def _last_ids(folder: TokenFolder) -> list[int | None]:
    """Of every shard; None of an empty one. At an address all are asked for at once."""
    if folder.address is None:
        return [int(array[-1]) if len(array) else None for array in folder.arrays]
    filled = [shard for shard in folder.shards if shard.tokens]
    size = folder.kind.itemsize
    ends = [shard.tokens * size for shard in filled]
    urls = [f"{folder.address}/{shard.path}" for shard in filled]
    parts = remote.ranges(urls, [end - size for end in ends], ends) if filled else []
    last = dict(zip(urls, (int(np.frombuffer(part, folder.kind)[0]) for part in parts), strict=True))
    return [last.get(f"{folder.address}/{shard.path}") for shard in folder.shards]

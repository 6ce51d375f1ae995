"""Digests of shards and manifests, where only torch and numpy need be installed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

try:
    import xxhash
except ImportError:  # a bare GPU machine
    xxhash = None  # type: ignore[assignment]


def digest_json(value: Any) -> str:
    """Of canonical JSON: sorted keys, no spaces."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_bytes(data: bytes | memoryview) -> str:
    """xxh3-128 as 32 hex digits; without xxhash, "sha256:" and 64."""
    if xxhash is not None:
        return str(xxhash.xxh3_128_hexdigest(data))
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path, like: str = "") -> str | None:
    """Of a file's bytes, in constant memory, by the algorithm of the digest `like` (default: the one at hand).

    None when that algorithm is not installed here, so that nothing can be said.
    """
    with open(path, "rb") as stream:
        return digest_stream(stream, like)


def digest_stream(stream: IO[bytes], like: str = "") -> str | None:
    """`digest_file` of what is left in a stream."""
    plain = like.startswith("sha256:") or (not like and xxhash is None)
    if not plain and xxhash is None:
        return None
    state = hashlib.sha256() if plain else xxhash.xxh3_128()
    while chunk := stream.read(1 << 20):
        state.update(chunk)
    return ("sha256:" if plain else "") + str(state.hexdigest())

"""Files that lie elsewhere: `s3://`, `hf://`, `https://`, through fsspec (`loom.tokens.remote`).

An object store has no rename: a completed upload is the commit, and an artifact's manifest is uploaded last.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loom.artifact import FILES, MANIFEST, RUN, Artifact, digest_json
from loom.console import console
from loom.tokens.remote import ENDPOINT as ENDPOINT
from loom.tokens.remote import address as address
from loom.tokens.remote import exists as exists
from loom.tokens.remote import fail
from loom.tokens.remote import filesystem as filesystem
from loom.tokens.remote import find as find
from loom.tokens.remote import identity as identity
from loom.tokens.remote import listed as listed
from loom.tokens.remote import open_raw as open_raw
from loom.tokens.remote import opened as opened
from loom.tokens.remote import send as send
from loom.tokens.remote import use_endpoint as use_endpoint

PARALLEL_UPLOADS = 8


def place(path: Path) -> str:
    """`path` as an artifact's input names it: the address, or the absolute path."""
    return address(path) or str(path.resolve())


def publish(artifact: Artifact, to: str) -> dict[str, int]:
    """Upload an artifact below the address `to`, its manifest last; files that are there are left alone.

    A file is there if it has the size and the digest of the manifest; the digest is kept beside it as the
    object's metadata. Returns how many files and bytes were uploaded and how many were there.
    """
    fs = filesystem(to)
    names = [(item.path, item.digest, item.bytes) for item in artifact.outputs]
    names += [
        (name, artifact.digest, (artifact.path / name).stat().st_size)
        for name in ("inputs.jsonl", FILES)
        if (artifact.path / name).is_file()
    ]
    counts = {"uploaded": 0, "uploaded_bytes": 0, "already_there": 0}
    to = to.rstrip("/")

    def put(name: str, digest: str, size: int) -> bool:
        url = f"{to}/{name}"
        try:
            if fs.exists(url) and fs.info(url)["size"] == size and _digest(fs, url) == digest:
                return False
            extra = {"Metadata": {"xxh3-128": digest}} if url.startswith("s3:") else {}
            fs.put_file(str(artifact.path / name), url, **extra)
        except Exception as error:
            fail(url, error)
        return True

    with (
        console.progress(f"upload to {to}", total=len(names)) as progress,
        ThreadPoolExecutor(PARALLEL_UPLOADS) as pool,
    ):
        for (_, _, size), sent in zip(names, pool.map(lambda item: put(*item), names), strict=True):
            counts["uploaded" if sent else "already_there"] += 1
            counts["uploaded_bytes"] += size if sent else 0
            progress.advance()
    for name in (RUN, MANIFEST):
        put(name, artifact.digest if name == MANIFEST else "", (artifact.path / name).stat().st_size)
    return counts


def _digest(fs: Any, url: str) -> str | None:
    if not url.startswith("s3:"):
        return None
    fs.invalidate_cache(url)
    found = fs.metadata(url).get("xxh3-128")
    return found if isinstance(found, str) else None


def staging(to: str) -> Path:
    """The local folder in which an artifact for the address `to` is made before it is uploaded."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "loom" / "remote" / digest_json(to.rstrip("/"))[:16]

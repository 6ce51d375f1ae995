"""Files that lie elsewhere: `s3://`, `hf://`, `https://`, through fsspec (`loom.tokens.remote`).

An object store has no rename: a completed upload is the commit, and an artifact's manifest is uploaded last.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from loom.artifact import FILES, MANIFEST, RUN, Artifact, digest_json
from loom.console import console
from loom.tokens.remote import BLOCK, fail
from loom.tokens.remote import ENDPOINT as ENDPOINT
from loom.tokens.remote import address as address
from loom.tokens.remote import filesystem as filesystem

PARALLEL_UPLOADS = 8
NETWORK = {
    "aiohttp",
    "aiobotocore",
    "botocore",
    "httpx",
    "huggingface_hub",
    "s3fs",
}  # whose errors are the line's


def place(path: Path) -> str:
    """`path` as an artifact's input names it: the address, or the absolute path."""
    return address(path) or str(path.resolve())


def use_endpoint(url: str | None) -> None:
    """Send S3 requests of this process, and of those it starts, to an S3-compatible server."""
    if url:
        os.environ[ENDPOINT] = url


def find(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """The addresses that a glob, a folder or a single address stands for, sorted."""
    fs = filesystem(pattern)
    fs.invalidate_cache()
    try:
        if glob.has_magic(pattern) and not pattern.startswith("http"):
            found = fs.glob(pattern)
        elif pattern.startswith("http"):
            found = (
                [pattern]
                if pattern.endswith(suffixes)
                else [n for n in fs.find(pattern) if n.endswith(suffixes)]
            )
        elif fs.isfile(pattern):
            found = [pattern]
        else:
            found = [name for name in fs.find(pattern) if name.endswith(suffixes)]
    except Exception as error:
        fail(pattern, error)
    scheme = pattern.partition(":")[0]
    return sorted(name if "://" in name else f"{scheme}://{name}" for name in found)


def listed(folder: str) -> list[str]:
    """The names of the files in a folder at an address; none where there is no such folder."""
    fs = filesystem(folder)
    fs.invalidate_cache(folder)
    try:
        return [name.rpartition("/")[2] for name in fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
    except Exception as error:
        fail(folder, error)


def exists(url: str) -> bool:
    """Whether there is a file at an address."""
    fs = filesystem(url)
    fs.invalidate_cache()
    try:
        return bool(fs.exists(url))
    except Exception as error:
        fail(url, error)


def send(path: Path, url: str) -> None:
    """Upload one file; a completed upload is the commit."""
    try:
        filesystem(url).put_file(str(path), url)
    except Exception as error:
        fail(url, error)


def identity(url: str) -> tuple[int, str]:
    """(bytes, a digest of address, size and version): the store's ETag where it gives one, else its time."""
    try:
        info = filesystem(url).info(url)
    except Exception as error:
        fail(url, error)
    version = next(
        (info[key] for key in ("ETag", "etag", "blob_id", "mtime", "LastModified") if info.get(key)), ""
    )
    size = int(info.get("size") or 0)
    return size, digest_json([url, size, str(version)])


@contextmanager
def open_remote(url: str, *, whole: bool = True) -> Iterator[IO[bytes]]:
    """Open an address for reading; `whole` reads ahead, else only what is asked for is fetched."""
    try:
        stream = filesystem(url).open(
            url, "rb", block_size=BLOCK, cache_type="readahead" if whole else "background"
        )
    except Exception as error:
        fail(url, error)
    with stream:
        try:
            yield stream
        except Exception as error:
            if type(error).__module__.partition(".")[0] in NETWORK or isinstance(
                error, ConnectionError | TimeoutError
            ):
                fail(url, error)
            raise


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

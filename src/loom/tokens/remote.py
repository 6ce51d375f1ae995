"""Files at an address (`s3://`, `hf://`, `https://`) through fsspec, and token shards read there by ranges.

Addresses travel as `pathlib.Path`, which writes `s3://bucket/key` as `s3:/bucket/key`; `address` gives the
address back. fsspec comes with torch; a store's own package is an extra. Credentials come the usual ways:
the AWS variables, profiles and instance roles for S3 (an S3-compatible server by `AWS_ENDPOINT_URL_S3`),
`HF_TOKEN` or `hf auth login` for the Hub.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from loom.errors import LoomError
from loom.tokens.digest import digest_json

EXTRAS = {"s3": "s3", "hf": "hf", "https": "https", "http": "https"}  # scheme -> Loom's extra
ADDRESS = re.compile(rf"^({'|'.join(EXTRAS)}):/+")
BLOCK = 8 << 20  # bytes a request
NETWORK = {
    "aiohttp",
    "aiobotocore",
    "botocore",
    "httpx",
    "huggingface_hub",
    "s3fs",
}  # whose errors are the line's
ENDPOINT = "AWS_ENDPOINT_URL_S3"  # the variable botocore reads


def address(path: str | Path) -> str | None:
    """The address that `path` is, or None for a path of this machine."""
    text = str(path)
    match = ADDRESS.match(text)
    return f"{match[1]}://{text[match.end() :]}" if match else None


def filesystem(url: str) -> Any:
    """fsspec's file system for an address. Raises `LoomError` that names the extra it needs."""
    import fsspec

    scheme = url.partition(":")[0]
    options: dict[str, Any] = {}
    try:
        if scheme == "s3":
            options = {"default_block_size": BLOCK, "anon": _anonymous()}
            if os.environ.get(ENDPOINT):
                options["endpoint_url"] = os.environ[ENDPOINT]  # a change of it is another file system
        return fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError) as error:
        raise LoomError(
            f"{url} needs a package that is not installed: pip install 'loom-lm[{EXTRAS[scheme]}]' ({error})."
        ) from None


def _anonymous() -> bool:
    """Whether there are no AWS credentials at all: public buckets are then read unsigned."""
    import botocore.session

    try:
        return botocore.session.get_session().get_credentials() is None
    except Exception as error:
        raise LoomError(f"The AWS credentials cannot be read: {error}.") from None


def fail(url: str, error: Exception) -> NoReturn:
    """Raise what went wrong at an address as a `LoomError` with its mend."""
    kind = type(error).__name__
    if isinstance(error, LoomError):
        raise error
    if isinstance(error, FileNotFoundError):
        raise LoomError(f"There is no {url}. Check the address and its bucket.") from None
    if isinstance(error, PermissionError) or "Credential" in kind:
        raise LoomError(
            f"{url} may not be read or written with these credentials ({error or kind}). For S3 set AWS_PROFILE or "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for the Hub set HF_TOKEN."
        ) from None
    raise LoomError(
        f"{url} cannot be reached ({kind}: {error}). Run the same command again; what is finished is kept. For an "
        f"S3-compatible server give --endpoint or set {ENDPOINT}."
    ) from None


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


def read(url: str) -> bytes:
    """A small file, whole."""
    try:
        data: bytes = filesystem(url).cat_file(url)
    except Exception as error:
        fail(url, error)
    return data


@contextmanager
def opened(url: str, *, whole: bool = True) -> Iterator[IO[bytes]]:
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


@contextmanager
def open_raw(path: Path, *, whole: bool = True) -> Iterator[IO[bytes]]:
    """A file of this machine or at an address, as its bytes are; `whole` reads ahead, else only what is asked for
    is fetched. Raises `LoomError` for an address that cannot be read, `OSError` for a file."""
    if (url := address(path)) is not None:
        with opened(url, whole=whole) as far:
            yield far
    else:
        with open(path, "rb") as stream:
            yield stream


def ranges(urls: list[str], starts: list[int], ends: list[int]) -> list[bytes]:
    """Bytes [start, end) of files, all asked for at once. Raises `LoomError` for an answer that is too short."""
    try:
        parts = filesystem(urls[0]).cat_ranges(urls, starts, ends, on_error="raise")
    except Exception as error:
        fail(urls[0], error)
    for url, start, end, part in zip(urls, starts, ends, parts, strict=True):
        if len(part) != end - start:
            raise LoomError(
                f"{url} gave {len(part):,} bytes where {end - start:,} were asked for at {start:,}: it was cut short "
                f"or changed after tokenizing. Upload it again."
            )
    return [bytes(part) for part in parts]


def sizes(folder: str) -> dict[str, int]:
    """Bytes of every file below an address, by relative path; one listing."""
    fs = filesystem(folder)
    fs.invalidate_cache()
    try:
        found = fs.find(folder, detail=True)
    except Exception as error:
        fail(folder, error)
    root = folder.partition("://")[2].rstrip("/") + "/"
    return {name.partition(root)[2]: int(info["size"] or 0) for name, info in found.items()}


def fetched(url: str, version: str) -> Path:
    """A file's copy on this machine, fetched once: `version` names what it belongs to and never changes."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "loom" / "tokens" / version.replace(":", "-") / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            filesystem(url).get_file(url, str(half))
        except Exception as error:
            half.unlink(missing_ok=True)
            fail(url, error)
        half.replace(path)
    return path


class RemoteWindows:
    """A shard's windows of `length` ids; `windows[rows]` reads those rows [n] as [n, length]."""

    def __init__(self, url: str, dtype: np.dtype[Any], length: int) -> None:
        self.url, self.dtype, self.length = url, dtype, length

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        size = self.length * self.dtype.itemsize
        starts = (rows * size).tolist()
        parts = ranges([self.url] * len(starts), starts, [start + size for start in starts])
        return np.frombuffer(b"".join(parts), self.dtype).reshape(len(starts), self.length)

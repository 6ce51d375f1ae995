"""The .safetensors format, a tensor at a time: what is written or read never needs a whole file in memory.

A file is a little-endian u64, the length of a JSON header; the header, which gives each tensor's type,
shape and place; then the raw little-endian data. (The `safetensors` package writes a file from one
dictionary that holds all of its tensors, and maps a file that it reads, whose pages then count as memory.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from loom.artifact import atomic_write
from loom.errors import LoomError

SHARD_BYTES = 5_000_000_000  # of tensor data in a file; more begin a new one
INDEX = "model.safetensors.index.json"
CHUNK = 1 << 24
READ_AHEAD = 1 << 28  # bytes of a tensor that may be read while another is written
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
TYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written, or found in a file; `offset` counts from the start of the file's data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """A finished file: its size, and digests taken while it was written."""

    name: str
    bytes: int
    xxh3: str
    sha256: str


def plan(entries: Sequence[Entry], limit: int = SHARD_BYTES) -> list[list[Entry]]:
    """Split tensors over files in order: each file at most `limit` bytes, or one tensor that is larger."""
    files: list[list[Entry]] = []
    room = 0
    for entry in entries:
        if not files or entry.bytes > room:
            files.append([])
            room = limit
        files[-1].append(entry)
        room -= entry.bytes
    return files


def file_names(count: int) -> list[str]:
    """What the Hub calls the files: `model.safetensors`, or `model-00001-of-00003.safetensors` and on."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def write(path: Path, entries: Sequence[Entry], read: Callable[[str], Tensor]) -> Written:
    """Write one file; `read(name)` gives a tensor when its turn comes, and its memory is free after it.

    Raises `ValueError` if a tensor is not of its entry's type and shape.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.bytes],
        }
        offset += entry.bytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # data begin at a multiple of eight
    quick, strong = xxhash.xxh3_128(), hashlib.sha256()
    # Digests are taken on another core while the chunk is written.
    with atomic_write(path) as stream, ThreadPoolExecutor(1) as aside:
        for chunk in _chunks(head, entries, read):
            hashed = aside.submit(strong.update, chunk)
            stream.write(chunk)
            quick.update(chunk)
            hashed.result()
    return Written(path.name, 8 + len(head) + offset, quick.hexdigest(), strong.hexdigest())


def _chunks(
    head: bytes, entries: Sequence[Entry], read: Callable[[str], Tensor]
) -> Iterator[bytes | memoryview]:
    yield len(head).to_bytes(8, "little")
    yield head
    for entry, tensor in _ahead(entries, read):
        if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
            raise ValueError(f"{entry.name} is {tensor.dtype} {tuple(tensor.shape)}, not as planned: {entry}")
        data = _bytes(tensor.contiguous().view(-1).view(torch.uint8))
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def _ahead(entries: Sequence[Entry], read: Callable[[str], Tensor]) -> Iterator[tuple[Entry, Tensor]]:
    """Each tensor in turn; the next is read meanwhile unless it is so large that it should be alone."""
    with ThreadPoolExecutor(1) as aside:
        coming: Future[Tensor] | None = None
        for entry, following in zip(entries, [*entries[1:], None], strict=True):
            tensor = coming.result() if coming else read(entry.name)
            small = following is not None and following.bytes <= READ_AHEAD
            coming = aside.submit(read, following.name) if following and small else None
            yield entry, tensor
            del tensor


def _bytes(data: Tensor) -> memoryview:
    """The memory of a flat uint8 tensor."""
    return memoryview(data.numpy())  # type: ignore[arg-type]


class Folder:
    """The tensors of a folder's .safetensors files, read one at a time into memory of their own."""

    def __init__(self, path: Path) -> None:
        """Raises `LoomError` if there are no files, or one is cut short or is no .safetensors file."""
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise LoomError(
                f"{path} holds no .safetensors file; pickled weights (.bin) are not read, because "
                f"they run code."
            )
        for file in files:
            start, entries = read_header(file)
            for entry in entries:
                if entry.name in self.entries:
                    raise LoomError(f"{path} holds {entry.name} twice: files of two models are mixed there.")
                self.entries[entry.name] = entry
                self._places[entry.name] = (file, start + entry.offset)
        self._complete(path)

    def _complete(self, path: Path) -> None:
        index = path / INDEX
        if index.is_file():
            try:
                listed = dict(json.loads(index.read_bytes())["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise LoomError(
                    f"{index} is no list of weights, or was cut short ({error}): fetch or export it again."
                ) from None
            for name, file in listed.items():
                if name not in self.entries:
                    raise LoomError(
                        f"{index} lists {name} in {file}, but it is not there: fetch that file again."
                    )

    def read(self, name: str) -> Tensor:
        """A tensor by name, on CPU in the type it is stored in."""
        entry, (file, place) = self.entries[name], self._places[name]
        data = torch.empty(entry.bytes, dtype=torch.uint8)
        with open(file, "rb") as stream:
            stream.seek(place)
            if stream.readinto(_bytes(data)) != entry.bytes:
                raise LoomError(f"{file} was cut short in {name}: fetch or export it again.")
        return data.view(entry.dtype).view(entry.shape)


def read_header(file: Path) -> tuple[int, list[Entry]]:
    """Where data begin in `file`, and the tensors in it in the order of their data."""
    size = os.stat(file).st_size
    try:
        with open(file, "rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            if start > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(start - 8))
        header.pop("__metadata__", None)
        entries = []
        for name, item in header.items():
            if item["dtype"] not in TYPES:
                raise LoomError(f"{file}: {name} is of type {item['dtype']}; Loom reads {', '.join(TYPES)}.")
            entry = Entry(name, TYPES[item["dtype"]], tuple(item["shape"]), item["data_offsets"][0])
            if entry.offset + entry.bytes != item["data_offsets"][1]:
                raise ValueError(f"{name} does not fill its place")
            entries.append(entry)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise LoomError(
            f"{file} is not a safetensors file, or was cut short ({error}): fetch or export it again."
        ) from None
    entries.sort(key=lambda entry: entry.offset)
    if entries and start + entries[-1].offset + entries[-1].bytes > size:
        raise LoomError(f"{file} was cut short in {entries[-1].name}: fetch or export it again.")
    return start, entries

"""Large files in pieces that several workers read: Parquet by row groups, zstd by frames.

A piece is written as a path with a fragment, `big.parquet#row-groups=0-8` or `big.jsonl.zst#bytes=0-4096`
(compressed bytes, at frame boundaries). Where a file is cut depends on the file alone, so what is made of
its pieces, in order, does not depend on how many workers there were. A line that crosses two pieces, or
starts where one ends, belongs to the earlier one.
"""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import zstandard

from loom.corpus import remote
from loom.errors import LoomError
from loom.tokens.documents import ZSTD

LARGE = 256 << 20  # bytes on disk above which a file is read in pieces of about this size
FRAGMENT = re.compile(r"#(row-groups|bytes)=(\d+)-(\d+)$")
WINDOW = 1 << 31  # zstd --long=31, as published dumps are packed; the library refuses more than 2^27 unasked
MAGIC, SKIPPABLE = 0xFD2FB528, 0x184D2A50


@dataclass(frozen=True)
class Piece:
    """Row groups, or bytes at frame boundaries, from `start` up to but not including `end`."""

    path: Path
    unit: str
    start: int
    end: int


def parse(path: Path) -> Piece | None:
    """The piece that `path` names, or None for a whole file."""
    match = FRAGMENT.search(path.name)
    if match is None:
        return None
    return Piece(path.with_name(path.name[: match.start()]), match[1], int(match[2]), int(match[3]))


def split(path: Path, size: int, largest: int = LARGE) -> list[Path]:
    """`path` in pieces of about `largest` bytes on disk, or itself alone where it is no larger or cannot be cut."""
    if size <= largest:
        return [path]
    if path.name.endswith(".parquet"):
        return _name(path, "row-groups", _grouped(_row_groups(path), largest))
    if path.name.endswith(ZSTD) and remote.address(path) is None:
        ends = list(frames(path))
        cuts = [0]
        for end in ends:
            if end - cuts[-1] >= largest or end == ends[-1]:
                cuts.append(end)
        return _name(path, "bytes", list(pairwise(cuts)))
    return [path]


def _name(path: Path, unit: str, ranges: list[tuple[int, int]]) -> list[Path]:
    if len(ranges) < 2:
        return [path]
    return [path.with_name(f"{path.name}#{unit}={start}-{end}") for start, end in ranges]


def _grouped(sizes: list[int], largest: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    start = held = 0
    for index, size in enumerate(sizes):
        held += size
        if held >= largest or index == len(sizes) - 1:
            ranges.append((start, index + 1))
            start, held = index + 1, 0
    return ranges


def _row_groups(path: Path) -> list[int]:
    """Compressed bytes of each row group."""
    import pyarrow.parquet as pq

    def sizes(source: Any) -> list[int]:
        metadata = pq.ParquetFile(source).metadata
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        return [sum(g.column(c).total_compressed_size for c in range(g.num_columns)) for g in groups]

    try:
        if (url := remote.address(path)) is None:
            return sizes(path)
        with remote.opened(url, whole=False) as stream:
            return sizes(stream)
    except (OSError, ValueError) as error:
        raise LoomError(f"{path} cannot be read as Parquet ({error}). Fetch or make it again.") from None


def frames(path: Path) -> Iterator[int]:
    """Where each frame of a zstd file ends, read from block headers alone (RFC 8878, 3.1).

    Raises `LoomError` for a file that is cut short or is no zstd file.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size, at = len(data), 0
        while at < size:
            try:
                magic = int.from_bytes(data[at : at + 4], "little")
                if magic & 0xFFFFFFF0 == SKIPPABLE:
                    at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
                else:
                    header = data[at : at + 18]
                    checksum = zstandard.get_frame_parameters(header).has_checksum
                    at += zstandard.frame_header_size(header)
                    last = False
                    while not last and at + 3 <= size:
                        block = int.from_bytes(data[at : at + 3], "little")
                        last, kind = bool(block & 1), block >> 1 & 3
                        at += 3 + (1 if kind == 1 else block >> 3)  # one byte for a run of one value
                    at += 4 * checksum
                    if not last:
                        raise EOFError("the last frame is incomplete")
                if at > size:
                    raise EOFError("the last frame is incomplete")
            except (zstandard.ZstdError, EOFError) as error:
                raise LoomError(
                    f"{path} is cut short or damaged ({error}). Fetch or make it again."
                ) from None
            yield at


class Range(io.RawIOBase):
    """The bytes of a stream from `start` up to `end`."""

    def __init__(self, raw: IO[bytes], start: int, end: int) -> None:
        self.raw, self.left = raw, end - start
        raw.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.raw.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


class Frames(io.RawIOBase):
    """Every frame of a zstd stream in turn; unlike `stream_reader` it notices one cut in mid-frame."""

    def __init__(self, raw: IO[bytes] | io.RawIOBase) -> None:
        self.raw, self.pending, self.inside = raw, b"", False
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
        self.out, self.at = b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self.at == len(self.out):
            data = self.pending or self.raw.read(1 << 18)
            self.pending = b""
            if not data:
                if self.inside:
                    raise EOFError("the last zstd frame is incomplete")
                return 0
            self.inside = True
            self.out, self.at = self.decompressor.decompress(data), 0
            if self.decompressor.eof:
                self.pending, self.inside = self.decompressor.unused_data, False
                self.decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
        count = min(len(buffer), len(self.out) - self.at)
        buffer[:count] = self.out[self.at : self.at + count]
        self.at += count
        return count


class Lines(io.RawIOBase):
    """The lines of a zstd file that a piece owns: those that start after its start and not after its end."""

    def __init__(self, raw: IO[bytes], piece: Piece, size: int) -> None:
        self.raw, self.piece, self.size = raw, piece, size
        self.stream: IO[bytes] = io.BufferedReader(Frames(Range(raw, piece.start, piece.end)), 1 << 20)
        self.past_end = False
        if piece.start and not self.stream.readline().endswith(b"\n"):
            self.past_end, self.stream = True, io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.stream.readinto(buffer)  # type: ignore[attr-defined]
        if count == 0 and not self.past_end:
            self.past_end = True
            beyond = io.BufferedReader(Frames(Range(self.raw, self.piece.end, self.size)), 1 << 18)
            self.stream = io.BytesIO(beyond.readline())
            count = self.stream.readinto(buffer)
        return int(count)

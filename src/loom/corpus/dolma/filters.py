"""A Bloom filter's file: Dolma's size and number of hash functions, held in parts, Loom's own layout."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loom.artifact import Input, atomic_write, digest_json
from loom.console import console
from loom.corpus import remote
from loom.corpus.dolma import config
from loom.corpus.dolma.places import identity
from loom.errors import LoomError

MAGIC = b"LOOMBLM3"  # its last byte counts the ways in which fingerprints and parts were laid
DOLMA_MAGIC = (0x81F0F117).to_bytes(4, "little")
HEAD = 16  # bytes before a filter's bits: the magic, the number of hash functions
PART = 1 << 30  # bytes of a filter that a worker holds
PARTS, SMALLEST = 8, 1 << 20  # a filter has so many parts at least, if they hold so many bytes each
TOO_OFTEN = 0.01  # of what was never seen that a filter may take for seen, before that is an error


@contextmanager
def at_hand(bloom: config.Bloom, folder: Path) -> Iterator[config.Bloom]:
    """`bloom` with a file of this machine: one at an address is fetched into `folder`, and sent back if it is kept.

    What was filled and not yet sent, by a run that was stopped, is found there again.
    """
    if (url := remote.address(bloom.file)) is None:
        yield bloom
        return
    there = remote.exists(url)
    held = folder / f"{digest_json([url, identity(Path(bloom.file)) if there else ''])}.bloom"
    if there and not held.exists():
        with remote.opened(url) as source, atomic_write(held) as stream:
            shutil.copyfileobj(source, stream, 1 << 22)
    yield replace(bloom, file=str(held))
    if not bloom.read_only and held.exists():
        remote.send(held, url)
    held.unlink(missing_ok=True)


def at_the_start(bloom: config.Bloom, note: Path) -> tuple[Input, ...]:
    """The filter's file as some work first found it, kept in the file `note` until the work is done.

    The filter is replaced once every entry is in; a run that was stopped after that must not take its own
    entries for those of an earlier one.
    """
    held = Path(bloom.file)
    there = bool(bloom.file) and held.exists()
    if bloom.read_only and not there:
        raise LoomError(f"The Bloom filter {held} is read-only but not there, so nothing could ever match.")
    refuse_empty(bloom)
    if not note.exists():
        with atomic_write(note) as stream:
            stream.write(identity(held).encode() if there else b"")
    found = note.read_bytes().decode()
    return (Input(str(held), found),) if found else ()


def keep(bloom: config.Bloom, parts: Sequence[Path]) -> None:
    """Write the filter's file, if it is to be kept, from its parts."""
    if not bloom.file or bloom.read_only:
        return
    with atomic_write(Path(bloom.file)) as stream:
        stream.write(MAGIC + hash_functions(bloom).to_bytes(8, "little"))
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 22)


def refuse_full(bloom: config.Bloom, new: int, bits: int, lenient: bool) -> None:
    """Say how often a filter errs that took more entries than it was sized for; raise where that is too often.

    `new`: entries that were not there before; `bits`: how many bits are set.
    """
    rate = (bits / (filter_size(bloom) * 8)) ** hash_functions(bloom)
    sized = bloom.estimated_doc_count
    if not ((sized and new > sized) or rate > TOO_OFTEN):
        return
    what = (
        f"The Bloom filter took {new:,} entries, sized for {sized:,}: of what was never seen it takes {rate:.2%} "
        f"for seen."
    )
    if rate <= TOO_OFTEN or lenient:
        console.warn(what)
    else:
        raise LoomError(
            f"{what} Raise estimated_doc_count (--expected), or leave the filter out: exact then."
        )


def filter_size(bloom: config.Bloom) -> int:
    """Bytes of a filter: what its file holds, else Dolma's for so many entries.

    Raises `LoomError` for a file that is no filter of Loom's.
    """
    from loom.corpus.kernels.bloom import size_for

    path = Path(bloom.file)
    if bloom.file and path.exists():
        with open(path, "rb") as stream:
            head = stream.read(len(MAGIC))
        if head != MAGIC:
            whose = "Dolma's own" if head.startswith(DOLMA_MAGIC) else "no Bloom filter of this Loom's"
            raise LoomError(f"{path} is {whose}, so it cannot be read. Name a new file; Loom builds it anew.")
        return path.stat().st_size - HEAD
    entries = bloom.estimated_doc_count or 1
    size = bloom.size_in_bytes or size_for(entries, bloom.desired_false_positive_rate or 1e-6)
    return -(-size // 8) * 8


def hash_functions(bloom: config.Bloom) -> int:
    """How many bits an entry sets."""
    from loom.corpus.kernels.bloom import fewest_hashes

    path = Path(bloom.file)
    if bloom.file and path.exists():
        with open(path, "rb") as stream:
            return int.from_bytes(stream.read(HEAD)[len(MAGIC) :], "little")
    if not bloom.estimated_doc_count:
        return 8
    rate = bloom.desired_false_positive_rate or 1e-6
    return fewest_hashes(filter_size(bloom), bloom.estimated_doc_count, rate)


def partitions_for(size: int) -> int:
    """How many parts, a power of two, a filter of `size` bytes is held in: each at most `PART` bytes, and small
    enough that several workers share the work, each with a part that stays in the processor's cache.

    An entry belongs to one part by its hash, and each part takes its entries in the order of the input: the
    survivor never depends on scheduling, and the whole filter is never in one place.
    """
    count = 1
    while size // 8 % (2 * count) == 0 and (
        size > count * PART or (count < PARTS and size >= 2 * count * SMALLEST)
    ):
        count *= 2
    return count


def open_filter(bloom: config.Bloom, partition: int, partitions: int) -> tuple[Any, int]:
    """One part's bits, uint64[words], and the number of hash functions: from the file, or empty."""
    words = filter_size(bloom) // 8 // partitions
    hashes = hash_functions(bloom)
    path = Path(bloom.file)
    if not (bloom.file and path.exists()):
        return np.zeros(words, np.uint64), hashes
    bits = np.fromfile(path, np.uint64, words, offset=HEAD + partition * words * 8)
    return bits, hashes


def refuse_empty(bloom: config.Bloom) -> None:
    """Raise `LoomError` for a filter that is only read and holds nothing."""
    path = Path(bloom.file)
    if not (bloom.read_only and bloom.file and path.exists()):
        return
    with open(path, "rb") as stream:
        stream.seek(HEAD)
        while block := stream.read(1 << 24):
            if any(block):
                return
    raise LoomError(f"The Bloom filter {path} is empty, so nothing could ever match.")

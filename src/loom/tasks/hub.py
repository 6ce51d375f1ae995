"""Where a data set's rows lie in the Hub's own layouts, so that a folder that was downloaded or cached can be
named as it is.

Below the data folder, for a source "owner/repository:config" and a task's names:

    <config>/test-00000-of-00001.parquet        a repository of today, its `data/` folder too
    <config>/test/0000.parquet                  the Hub's own conversion, branch refs/convert/parquet
    <config>/**/repository-validation.arrow     the cache of `datasets`
    <split>/data-00000-of-00001.arrow           what `save_to_disk` writes

each either there or in a folder of the repository's or the task's name; so in `datasets--owner--repository`, as
the Hub's client keeps what it downloads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from loom.errors import LoomError

KINDS = r"\.(?:parquet|arrow|jsonl(?:\.gz|\.zst)?)"
PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


def shards(folder: Path, names: Sequence[str], split: str, source: str) -> list[Path]:
    """The files of one split, in their order; none if they are nowhere. Raises `LoomError` where some of several
    are missing."""
    own = re.compile(rf"(?:[\w.-]+-)?{re.escape(split)}(?:-\d{{5}}-of-\d{{5}})?{KINDS}")
    inside = re.compile(rf"(?:\d+|data(?:-\d{{5}}-of-\d{{5}})?|part-[\w-]+){KINDS}")
    for root in dict.fromkeys(_roots(folder, names, source)):
        for place, pattern in ((root, own), (root / split, inside), (root / split, own)):
            if place.is_dir() and (found := _matching(place, pattern)):
                return _whole(found)
        cached = sorted(path for path in root.glob("*/*/*.arrow") if own.fullmatch(path.name))
        if cached:
            newest = cached[-1].parent  # one folder a version of the data set
            return _whole([path for path in cached if path.parent == newest])
    return []


def _roots(folder: Path, names: Sequence[str], source: str) -> Iterator[Path]:
    where, _, config = source.partition(":")
    owner, _, repository = where.rpartition("/")
    homes = []
    if repository:
        snapshots = sorted((folder / f"datasets--{owner}--{repository}" / "snapshots").glob("*"))
        homes = [folder / repository, folder / f"{owner}___{repository}", *reversed(snapshots)]
    if config:
        yield folder / config
    own = [folder / name for name in names]
    for home in [*homes, *own]:
        if config:
            yield home / config
        if not config or home in own:  # a repository's files may be those of another configuration
            for below in ("", "data", "default"):
                yield home / below


def _matching(place: Path, pattern: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in place.iterdir() if pattern.fullmatch(path.name) and path.is_file())


def _whole(found: list[Path]) -> list[Path]:
    """All shards of what is there, each once. Raises `LoomError` where one is missing."""
    numbered = [(path, match) for path in found if (match := PART.search(path.name))]
    if not numbered:
        return found if _are_parts(found) else found[:1]
    count = int(numbered[0][1][2])
    same = {int(match[1]): path for path, match in numbered if int(match[2]) == count}
    if missing := [number for number in range(count) if number not in same]:
        raise LoomError(
            f"{found[0].parent} has {len(same)} of the {count} files of this split; number {missing[0]} is "
            f"missing. Fetch it too."
        )
    return [same[number] for number in range(count)]


def _are_parts(found: Sequence[Path]) -> bool:
    """Whether files are parts of one split (0000.parquet, 0001.parquet) and not one split in several forms."""
    return all(path.name.split(".")[0].isdigit() for path in found)

"""Dolma's configuration files: YAML or JSON, with `${oc.env:NAME}`, checked key by key."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from loom.errors import LoomError
from loom.recipe import build, read_yaml

T = TypeVar("T")
Compat = Literal["", "dolma-1.2"]


@dataclass(frozen=True)
class WorkDir:
    input: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class Compression:
    """How files are packed: `input` must be what their names say, `output` is what they are called by."""

    input: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            kind = getattr(self, name)
            if kind not in (None, "gz", "zst"):
                raise ValueError(f"{name} is {kind!r}; Loom packs with gz or zst")


@dataclass(frozen=True)
class Output:
    path: str
    max_size_in_bytes: int = 2 << 30
    discard_fields: tuple[str, ...] = ()
    min_text_length: int | None = 0


@dataclass(frozen=True)
class Filter:
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    syntax: Literal["jsonpath", "jq"] = "jsonpath"


@dataclass(frozen=True)
class Replacement:
    span: str
    replacement: str = ""
    min_score: float | None = None
    max_score: float | None = None
    syntax: Literal["jsonpath", "jq"] = "jsonpath"

    def __post_init__(self) -> None:
        if self.min_score is None and self.max_score is None:
            raise ValueError("either min_score or max_score must be given")


@dataclass(frozen=True)
class Stream:
    name: str
    documents: tuple[str, ...]
    output: Output
    attributes: tuple[str, ...] = ()
    filter: Filter | None = None
    span_replacement: tuple[Replacement, ...] = ()
    compression: Compression = Compression()


@dataclass(frozen=True)
class Mixer:
    """What `dolma mix -c` reads."""

    streams: tuple[Stream, ...]
    work_dir: WorkDir = WorkDir()
    processes: int = 1
    shuffle: bool = True
    dryrun: bool = False


@dataclass(frozen=True)
class Ngrams:
    ngram_length: int = 0
    stride: int = 0
    overlap_threshold: float = 1.0
    skip_short_paragraphs: bool = False


@dataclass(frozen=True)
class Paragraphs:
    attribute_name: str
    by_ngram: Ngrams | None = None
    paragraph_separator: str | None = "\n"


@dataclass(frozen=True)
class Documents:
    attribute_name: str
    key: str


@dataclass(frozen=True)
class Dedupe:
    name: str
    documents: Documents | None = None
    paragraphs: Paragraphs | None = None
    skip_empty: bool | None = False
    min_length: int | None = 0
    min_words: int | None = 0
    num_partitions: int | None = 1
    partition_index: int | None = 0
    file_partition: bool | None = False
    document_dir: str | None = "documents"

    def __post_init__(self) -> None:
        if (self.documents is None) == (self.paragraphs is None):
            raise ValueError("give exactly one of documents and paragraphs")
        if (self.num_partitions or 1) > 1 or self.partition_index:
            raise ValueError(
                "num_partitions and partition_index are Loom's own affair: run the file once, without them"
            )
        if self.paragraphs and self.paragraphs.paragraph_separator not in (None, "\n"):
            raise ValueError("paragraphs.paragraph_separator: only the newline is to be had")


@dataclass(frozen=True)
class Bloom:
    file: str
    read_only: bool
    size_in_bytes: int = 0
    estimated_doc_count: int = 0
    desired_false_positive_rate: float = 0.0


@dataclass(frozen=True)
class Deduper:
    """What `dolma dedupe -c` reads. Without `bloom_filter`, which Dolma asks for, duplicates are exact."""

    documents: tuple[str, ...]
    dedupe: Dedupe
    bloom_filter: Bloom | None = None
    work_dir: WorkDir = WorkDir()
    processes: int = 1
    compression: Compression = Compression()
    dryrun: bool = False
    is_s3_volume: bool = False

    def __post_init__(self) -> None:
        if self.is_s3_volume:
            raise ValueError(
                "is_s3_volume is not to be had: Loom commits by renaming, which a mounted bucket cannot do; name the "
                "documents by their s3:// addresses"
            )


@dataclass(frozen=True)
class Profile:
    enable: bool = False
    output: str | None = None
    steps: int | None = None
    sort_key: str = "tottime"
    lines: int = 100

    def __post_init__(self) -> None:
        if self.enable:
            raise ValueError("profile.enable is not to be had: run the command under a profiler")


@dataclass(frozen=True)
class Tagger:
    """What `dolma tag -c` reads."""

    documents: tuple[str, ...]
    taggers: tuple[str, ...] = ()
    destination: str | tuple[str, ...] | None = None
    experiment: str | None = None
    tagger_modules: tuple[str, ...] = ()
    processes: int = 1
    ignore_existing: bool = False
    debug: bool = False
    dryrun: bool = False
    profile: Profile = Profile()
    work_dir: WorkDir = field(default_factory=WorkDir)


def load(path: Path, cls: type[T]) -> T:
    """Read one of Dolma's files. An unknown or missing key is an error that names it."""
    return build(_resolved(read_yaml(path), str(path)), cls, str(path))


def _resolved(value: Any, name: str) -> Any:
    """`${oc.env:NAME}` and `${oc.env:NAME,default}` replaced, as OmegaConf does."""
    if isinstance(value, dict):
        return {key: _resolved(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, name) for item in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise LoomError(f"{name} reads the environment variable {match[1]}, which is not set.")
        return found

    return re.sub(r"\$\{oc\.env:([A-Za-z_]\w*)(?:,([^}]*))?\}", variable, value)

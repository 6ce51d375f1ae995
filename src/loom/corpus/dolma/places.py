"""Where a configuration's files lie, on this machine or at an address, and what they are packed with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from loom.artifact import MANIFEST, Artifact, Input, digest_json, load
from loom.console import console
from loom.corpus import remote
from loom.corpus.dolma import config
from loom.engine import available_cores
from loom.errors import LoomError

ATTRIBUTE_SUFFIXES = (".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".jsonl", ".parquet")
PACKED = {".gz": "gz", ".zst": "zst", ".zstd": "zst"}


def identity(path: Path) -> str:
    """What names a file's content without reading it: path, size and time, or the store's own version."""
    if (url := remote.address(path)) is not None:
        return remote.identity(url)[1]
    status = path.stat()
    return digest_json([str(path.resolve()), status.st_size, status.st_mtime_ns])


def size(path: Path) -> int:
    """Bytes of a file as it lies there."""
    url = remote.address(path)
    return path.stat().st_size if url is None else remote.identity(url)[0]


def as_inputs(files: Iterable[Path]) -> list[Input]:
    """Files as an artifact's inputs, each once."""
    return [Input(remote.place(path), identity(path)) for path in dict.fromkeys(files)]


def packed(path: Path) -> str | None:
    """How a file is packed, by its name: gz, zst, or None for plain lines and Parquet."""
    return PACKED.get(path.suffix)


def agree(files: Sequence[Path], compression: config.Compression) -> None:
    """Raise `LoomError` for a file that is not packed as `compression.input` says."""
    for path in files:
        if compression.input is not None and packed(path) != compression.input:
            raise LoomError(
                f"compression.input is {compression.input!r}, but {path} is {packed(path) or 'not packed'} by its "
                f"name. Loom goes by the name: rename the file, or leave the key out."
            )


def renamed(name: str, kind: str | None) -> str:
    """A file's name with the suffix of `compression.output`, where that is given."""
    if kind is None:
        return name
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return f"{name}.{kind}"


def workers(processes: int) -> int:
    """The processes that a file asks for, as far as this machine has cores: published files ask for 188."""
    cores = available_cores()
    if processes > cores:
        console.say(f"processes: {processes} in the file, {cores} cores here; the output is the same.")
    return max(1, min(processes, cores))


def staging(work: config.WorkDir, to: str) -> Path:
    """Where what goes to an address is made first: `work_dir.output`, else the user's cache."""
    return Path(work.output) / digest_json(to.rstrip("/"))[:16] if work.output else remote.staging(to)


class Sidecars:
    """Finds attribute files; at an address every folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, set[str]] = {}

    def of(self, document: Path, name: str) -> Path:
        """The attribute file beside a document file; Loom's Parquet sidecars and other suffixes are found too.

        Raises `LoomError` where there is none.
        """
        text = str(document)
        if "/documents/" not in text:
            raise LoomError(
                f"{document} does not lie below a folder `documents`, so its attributes are nowhere."
            )
        path = Path(text.replace("/documents/", f"/attributes/{name}/"))
        if self._there(path):
            return path
        stem = path.name
        for suffix in (*PACKED, ".jsonl", ".json", ".ndjson", ".parquet"):
            stem = stem.removesuffix(suffix)
        for suffix in ATTRIBUTE_SUFFIXES:
            if self._there(other := path.with_name(stem + suffix)):
                return other
        raise LoomError(
            f"The attributes {name!r} of {document} are missing: there is no {remote.address(path) or path}. Run "
            f"that tagger on it first, or take {name!r} out of `attributes`."
        )

    def _there(self, path: Path) -> bool:
        if (url := remote.address(path)) is None:
            return path.is_file()
        folder = url.rpartition("/")[0]
        if folder not in self._listed:
            self._listed[folder] = set(remote.listed(folder))
        return path.name in self._listed[folder]


def refuse_cut(sidecars: Iterable[Path]) -> None:
    """Raise `LoomError` for a sidecar of this machine that is not as its manifest says, before it is read."""
    held: dict[Path, Artifact] = {}
    for path in sidecars:
        if remote.address(path) is not None or "/attributes/" not in str(path):
            continue
        head, _, tail = str(path).rpartition("/attributes/")
        folder = Path(head) / "attributes" / tail.partition("/")[0]
        if folder not in held and (folder / MANIFEST).exists():
            held[folder] = load(folder)
            held[folder].verify()

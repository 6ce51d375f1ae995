"""What every stage reads and writes: a folder with a manifest.

`manifest.json` says what the folder is, what it was made from and what is in it; it is written last,
so a folder without one is unfinished. What differs from run to run lies in `run.json` beside it, so
that equal work has equal digests. Paths are relative: to the folder itself for outputs, and to the
folder that holds the artifact for inputs, so that a tree of artifacts can be moved.

Data is digested with xxh3-128; a manifest's own digest is that of its canonical JSON.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import xxhash

from loom.errors import LoomError
from loom.version import VERSION

MANIFEST = "manifest.json"
RUN = "run.json"
FILES = "files.jsonl"
_HOST = (
    f"{xxhash.xxh32_intdigest(socket.gethostname().encode()):08x}"  # process ids repeat on a cluster's nodes
)
ADDRESSES = ("s3:", "hf:", "https:", "http:")  # how a path begins that is none
LONG_LIST = 200  # more files than this go to files.jsonl


def digest_bytes(data: bytes | memoryview) -> str:
    """xxh3-128 of `data`, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_file(path: Path) -> str:
    """xxh3-128 of a file's bytes, 32 hex digits, in constant memory."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_json(value: Any) -> str:
    return digest_bytes(canonical_json(value))


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary binary file beside `path`; on a clean exit flush it to disk and rename it to `path`.

    Without `durable` the disk is not waited for: a killed process loses nothing, a machine that loses its
    power may. It is for work files that `since_start` vouches for.

    On an exception the temporary file is removed and `path` is as it was. A full disk or a folder that
    cannot be written becomes a `LoomError` that names the folder; so does an address (`s3://...`) where
    only a folder will do.
    """
    if path.parts and path.parts[0] in ADDRESSES:
        raise LoomError(
            f"{path} is an address, and this step writes to folders of this machine only. Give a folder as --out; "
            f"`loom tag` and `loom curate` can upload what they made."
        )
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explain_os_error(error, path) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def since_start() -> str:
    """What names the time since this machine was started; empty where that cannot be told.

    Among a task's settings it has what was written before the last start made again.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def explain_os_error(error: OSError, path: Path) -> LoomError:
    """A failed write as a sentence: which folder, why, what to do."""
    folder = path.parent
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return LoomError(
                f"No space left for {path} ({error.strerror}). Everything finished so far is kept: free "
                f"some space on the disk that holds {folder} and run the same command again."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return LoomError(
                f"Cannot write {path} ({error.strerror}). Choose another folder with --out, or make {folder} "
                f"writable (chmod u+w)."
            )
        case errno.ENOTDIR | errno.EEXIST | errno.EISDIR:
            return LoomError(
                f"Cannot write {path}: a part of that path is not what it should be ({error.strerror}). "
                f"Move it away or choose another --out."
            )
        case _:
            return LoomError(
                f"Cannot write {path}: {error.strerror or error}. Run the same command again to go on."
            )


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


@dataclass(frozen=True)
class Input:
    """Something an artifact was made from. `digest` is a manifest's for an artifact, else the data's."""

    path: str
    digest: str


@dataclass(frozen=True)
class Output:
    """A file of an artifact: path below the folder, size in bytes, rows (0 if it has none), digest."""

    path: str
    bytes: int
    rows: int
    digest: str


@dataclass(frozen=True)
class Artifact:
    """A finished folder.

    `facts` are a kind's own keys of the manifest (for kind "tokens" the key `tokens`, for example).
    """

    path: Path
    kind: str
    recipe: Any
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    counters: Mapping[str, Any]
    digest: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        return self.path / name

    def verify(self, *, data: bool = False) -> None:
        """Raise `LoomError` unless every output is there with its size, and with `data` its digest too."""
        for output in self.outputs:
            path = self.path / output.path
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                raise LoomError(
                    f"{path} is missing, though {self.path / MANIFEST} lists it. {_MEND(self.path)}"
                )
            if size != output.bytes:
                raise LoomError(
                    f"{path} has {size:,} bytes where {self.path / MANIFEST} says {output.bytes:,}: "
                    f"it was cut short or changed. {_MEND(self.path)}"
                )
            if data and digest_file(path) != output.digest:
                raise LoomError(
                    f"{path} was changed since it was written (its digest differs). {_MEND(self.path)}"
                )


def _MEND(path: Path) -> str:
    return f"Remove the folder {path} and run the same command again; it is made anew from its inputs."


def describe(folder: Path, names: Iterable[str], rows: Mapping[str, int] | None = None) -> tuple[Output, ...]:
    """Size and digest of files below `folder`, sorted by name."""
    rows = rows or {}
    return tuple(
        Output(name, (folder / name).stat().st_size, rows.get(name, 0), digest_file(folder / name))
        for name in sorted(names)
    )


def refer(artifact: Artifact, at: Path) -> Input:
    """`artifact` as an input of another artifact that will lie at `at`."""
    return Input(relative(artifact.path, at), artifact.digest)


def relative(path: Path, at: Path) -> str:
    """`path` as seen from the folder `at`."""
    return Path(os.path.relpath(path.resolve(), at.resolve())).as_posix()


def commit(
    path: Path,
    kind: str,
    *,
    recipe: Any,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    counters: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    started: float | None = None,
) -> Artifact:
    """Write the manifest of a folder whose files are all in place, and return the artifact.

    What a killed process had half written there is removed first, so that equal work is equal files.
    `started` is a `time.monotonic()` from before the work; `run.json` then holds the seconds.
    """
    sweep(path)
    body: dict[str, Any] = {
        "kind": kind,
        "loom": VERSION,
        "recipe": recipe,
        "inputs": [asdict(item) for item in sorted(inputs, key=lambda item: item.path)],
        "outputs": [asdict(item) for item in sorted(outputs, key=lambda item: item.path)],
        "counters": dict(counters),
        **(facts or {}),
    }
    for key in ("inputs", "outputs"):
        if len(body[key]) > LONG_LIST:
            name = FILES if key == "outputs" else f"{key}.jsonl"
            with atomic_write(path / name) as stream:
                stream.writelines(canonical_json(item) + b"\n" for item in body[key])
            body[key] = {"file": name, "count": len(body[key]), "digest": digest_file(path / name)}
    body = json.loads(json.dumps(body))
    digest = digest_json(body)
    run = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 3) if started is not None else None,
        "host": socket.gethostname(),
        "manifest": digest,
    }
    write_json(path / RUN, run)
    write_json(path / MANIFEST, body)
    return load(path)


def sweep(path: Path) -> None:
    """Remove the temporary files below `path` whose writer is gone."""
    for left in path.rglob(".*.tmp"):
        host, writer = left.name.split(".")[-3:-1]
        if not writer.isdigit():
            continue
        if host != _HOST:
            left.unlink(missing_ok=True)  # every task is done, so its writer was given up for lost
            continue
        try:
            os.kill(int(writer), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except PermissionError:
            pass  # somebody else's, and alive


def load(path: Path, kind: str | None = None) -> Artifact:
    """Read a finished folder's manifest.

    Raises `LoomError` if there is none, if it is not JSON, lacks a key, was edited by hand, or is of
    another kind than `kind`.
    """
    manifest = path / MANIFEST
    try:
        body = json.loads(manifest.read_bytes())
    except FileNotFoundError:
        what = "is not there" if not path.exists() else f"has no {MANIFEST}, so it was never finished"
        raise LoomError(f"{path} {what}. Run the command that makes it, or name another folder.") from None
    except (ValueError, NotADirectoryError) as error:
        raise LoomError(f"{manifest} cannot be read ({error}). {_MEND(path)}") from None
    digest = digest_json(body)
    try:
        artifact = Artifact(
            path=path,
            kind=body["kind"],
            recipe=body["recipe"],
            inputs=tuple(Input(**item) for item in _listed(path, body["inputs"])),
            outputs=tuple(Output(**item) for item in _listed(path, body["outputs"])),
            counters=body["counters"],
            digest=digest,
            facts={key: body[key] for key in body.keys() - _KEYS},
        )
    except (KeyError, TypeError) as error:
        raise LoomError(
            f"{manifest} is not a manifest of Loom's: {error!r} is wrong or missing. {_MEND(path)}"
        ) from None
    recorded = read_run(path).get("manifest")
    if recorded is not None and recorded != digest:
        raise LoomError(
            f"{manifest} was changed after it was written (by hand?), so what it says cannot be trusted. "
            f"Restore it, or: {_MEND(path)}"
        )
    if kind is not None and artifact.kind != kind:
        raise LoomError(
            f"{path} holds {artifact.kind!r} where {kind!r} is needed. Name a folder of that kind."
        )
    return artifact


_KEYS = {"kind", "loom", "recipe", "inputs", "outputs", "counters"}


def _listed(path: Path, value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from value
        return
    listing = path / value["file"]
    if not listing.is_file() or digest_file(listing) != value["digest"]:
        raise LoomError(f"{listing} is missing or was changed since it was written. {_MEND(path)}")
    for line in listing.read_bytes().splitlines():
        yield json.loads(line)


def read_run(path: Path) -> dict[str, Any]:
    """`run.json` of a folder, empty if there is none that can be read."""
    try:
        value = json.loads((path / RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def finished(path: Path, kind: str, recipe: Any, inputs: Sequence[Input]) -> Artifact | None:
    """The artifact at `path` if it is finished and was made by this recipe from these inputs, else None.

    Sizes of its files are checked, so that a file cut short is named rather than used.
    """
    if not (path / MANIFEST).exists():
        return None
    artifact = load(path)
    same_inputs = sorted((i.path, i.digest) for i in artifact.inputs) == sorted(
        (i.path, i.digest) for i in inputs
    )
    if artifact.kind != kind or canonical_json(artifact.recipe) != canonical_json(recipe) or not same_inputs:
        return None
    artifact.verify()
    return artifact


def refuse_other(path: Path, kind: str) -> None:
    """Raise `LoomError` where `path` is a finished artifact of another kind: it would be lost."""
    try:
        held = json.loads((path / MANIFEST).read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if held != kind:
        raise LoomError(f"{path} already holds something else, {held!r}: name another folder.")


def discard(path: Path, kind: str) -> None:
    """Take an outdated artifact's claim away before it is made anew: its manifest goes first.

    Raises `LoomError` where the folder holds something other than a `kind`.
    """
    refuse_other(path, kind)
    for name in (MANIFEST, RUN, FILES):
        try:
            (path / name).unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error, path / name) from error


@dataclass(frozen=True)
class Lineage:
    """A node of the walk back from an artifact to raw files."""

    path: Path
    digest: str
    kind: str  # "file" for what no manifest describes, "address" elsewhere, "missing" for what is no longer there
    stale: bool  # the folder's content is no longer what its successor was made from
    parents: tuple[Lineage, ...] = ()
    counters: Mapping[str, Any] = field(default_factory=dict)


def lineage(path: Path) -> Lineage:
    """Walk manifests from `path` (a folder, or a file in one) back to the raw files."""
    start = path if path.is_dir() else path.parent
    while not (start / MANIFEST).exists():
        if start == start.parent or not start.exists():
            raise LoomError(f"No {MANIFEST} at {path} or above it: this is not something Loom made.")
        start = start.parent
    return _walk(start, expected=None, seen={})


def _walk(path: Path, expected: str | None, seen: dict[tuple[Path, str | None], Lineage]) -> Lineage:
    key = (path.resolve(), expected)
    if key not in seen:
        seen[key] = _node(path, expected, seen)
    return seen[key]


def _node(path: Path, expected: str | None, seen: dict[tuple[Path, str | None], Lineage]) -> Lineage:
    if not path.exists():
        return Lineage(path, expected or "", "missing", stale=True)
    if not (path / MANIFEST).exists():
        return Lineage(path, expected or "", "file" if path.is_file() else "folder", stale=False)
    artifact = load(path)
    parents = tuple(
        Lineage(Path(item.path), item.digest, "address", stale=False)
        if item.path.startswith(ADDRESSES)
        else _walk(Path(os.path.normpath(path / item.path)), item.digest, seen)
        for item in artifact.inputs
    )
    stale = expected is not None and artifact.digest != expected
    return Lineage(path, artifact.digest, artifact.kind, stale, parents, artifact.counters)

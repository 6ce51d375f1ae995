"""What of this machine can become documents: a listing of files, nothing read but package metadata."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

from loom.errors import LoomError

SYSTEM_DOCS = Path("/usr/share/doc")
SMALLEST, LARGEST = 300, 150_000  # bytes of a source file: shorter says nothing, longer is a table
LARGEST_TEXT = 300_000  # bytes of a page or a licence
NOT_LIBRARY = {
    "test", "tests", "testing", "idlelib", "turtledemo", "site-packages", "dist-packages", "__pycache__",
    "_vendor", "_bundled", "lib2to3",
}  # fmt: skip
TEXT_SUFFIXES = {"", ".txt", ".md", ".rst", ".html", ".htm", ".text", ".en"}
LICENCE_NAMES = ("license", "licence", "copying", "notice", "copyright", "authors")


@dataclass(frozen=True)
class Candidate:
    """A file that can become documents. `size` bounds its text in bytes."""

    id: str
    path: Path
    size: int
    package: str  # "stdlib", or the distribution's or Debian package's name
    licence: str
    module: str = ""


@dataclass(frozen=True)
class Distribution:
    name: str
    licence: str
    description: Candidate | None
    licences: tuple[Candidate, ...]
    modules: tuple[Candidate, ...]


def standard_library() -> tuple[Candidate, ...]:
    """The standard library's modules, without its tests, sorted by id. No source there is an error."""
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(_modules(root), key=lambda item: item.id)
    if not any(item.module == "textwrap" for item in found):
        raise LoomError(
            f"This Python has no source of its standard library in {root}, so there is no documentation to "
            f"collect. Use a Python that ships its library as .py files (python.org, Debian with "
            f"libpython3-stdlib, uv or pyenv all do)."
        )
    return tuple(found)


def _modules(root: Path) -> Iterator[Candidate]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name not in NOT_LIBRARY and not name.startswith("config-")
        )
        for name in names:
            path = Path(folder, name)
            if name.endswith(".py") and (size := path.stat().st_size) >= SMALLEST:
                relative = path.relative_to(root).as_posix()
                yield Candidate(f"stdlib/{relative}", path, size, "stdlib", "PSF-2.0", module_name(relative))


def module_name(relative: str) -> str:
    """`email/mime/text.py` is `email.mime.text`; a package's `__init__.py` is the package."""
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def distributions() -> tuple[Distribution, ...]:
    """The installed distributions of this interpreter, sorted by name."""
    found: dict[str, Distribution] = {}
    for root in dict.fromkeys(Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")):
        for entry in sorted(root.glob("*.dist-info")):
            distribution = _distribution(root, entry)
            if distribution is not None:
                found.setdefault(distribution.name, distribution)
    return tuple(found[name] for name in sorted(found))


def _distribution(root: Path, info: Path) -> Distribution | None:
    try:
        raw = (info / "METADATA").read_bytes()
        record = (info / "RECORD").read_text("utf-8")
    except OSError:
        return None
    message = message_from_bytes(raw)
    name, licence = str(message.get("Name", info.stem)).lower(), _licence(message)
    description = Candidate(
        f"packages/{name}/description", info / "METADATA", min(len(raw), LARGEST_TEXT), name, licence
    )
    licences, modules = [], []
    for line in record.splitlines():
        path, _, rest = line.rpartition(",")
        path, size = path.rpartition(",")[0].strip('"'), rest
        lower = path.rsplit("/", 1)[-1].lower()
        if not size.isdigit() or path.startswith(".."):
            continue
        count = int(size)
        if path.startswith(info.name + "/"):
            if lower.startswith(LICENCE_NAMES) and 0 < count <= LARGEST_TEXT:
                below = path.removeprefix(info.name + "/")
                licences.append(Candidate(f"packages/{name}/{below}", root / path, count, name, licence))
        elif (
            path.endswith(".py")
            and SMALLEST <= count <= LARGEST
            and not NOT_LIBRARY.intersection(path.split("/"))
        ):
            modules.append(
                Candidate(f"site-packages/{path}", root / path, count, name, licence, module_name(path))
            )
    return Distribution(name, licence, description, tuple(licences), tuple(modules))


def _licence(message: object) -> str:
    get = message.get  # type: ignore[attr-defined]
    for key in ("License-Expression", "License"):
        text = str(get(key) or "").strip()
        if text and text.upper() != "UNKNOWN":
            return text.splitlines()[0][:80]
    for line in message.get_all("Classifier") or ():  # type: ignore[attr-defined]
        if str(line).startswith("License ::"):
            return str(line).rsplit("::", 1)[-1].strip()
    return ""


def system_docs(root: Path = SYSTEM_DOCS) -> tuple[Candidate, ...]:
    """Text and HTML files below `root`, gzipped ones too, sorted by id; empty if it is not there."""
    found = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            path = Path(folder, name)
            if Path(name.removesuffix(".gz")).suffix.lower() not in TEXT_SUFFIXES or path.is_symlink():
                continue
            size = text_size(path)
            if SMALLEST <= size <= LARGEST_TEXT:
                relative = path.relative_to(root).as_posix()
                package = relative.split("/", 1)[0]
                found.append(
                    Candidate(f"system-docs/{relative}", path, size, package, f"{root}/{package}/copyright")
                )
    return tuple(sorted(found, key=lambda item: item.id))


def text_size(path: Path) -> int:
    """A file's size once decompressed: gzip writes it into its last four bytes."""
    try:
        if path.suffix != ".gz":
            return path.stat().st_size
        with open(path, "rb") as stream:
            stream.seek(-4, os.SEEK_END)
            return int.from_bytes(stream.read(4), "little")
    except OSError:
        return 0

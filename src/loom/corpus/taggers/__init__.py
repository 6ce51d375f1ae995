"""Rules that look at a text: one file a family, versioned names, one registry.

A tagger turns a batch of texts into spans by key. Dolma's names mean Dolma's rules and keys exactly; a
mended rule has a name of its own. To add one, decorate a factory and name its module to `--tagger-modules`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from loom.corpus.attributes import Ints, Spans
from loom.corpus.batch import Batch
from loom.errors import LoomError
from loom.recipe import nearest

FAMILIES = (
    "c4",
    "classifier",
    "code",
    "contamination",
    "fineweb",
    "gopher",
    "language",
    "length",
    "pii",
    "punctuation",
    "repetition",
    "repetition_dolma",
    "sampling",
    "url",
)
Files = Mapping[str, "str | tuple[str, ...]"]  # tagger -> the files it reads: a model, lists


@dataclass(frozen=True)
class Texts:
    """A batch as taggers see it; what several of them need is computed once."""

    batch: Batch

    def __len__(self) -> int:
        return len(self.batch)

    @cached_property
    def utf8(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return self.batch.utf8()

    @cached_property
    def lengths(self) -> Ints:
        """Code points of every document, int64[n]."""
        from loom.corpus.kernels.characters import lengths

        out: Ints = lengths(*self.utf8)
        return out

    @cached_property
    def strings(self) -> list[str]:
        return self.batch.texts()


class Tagger(Protocol):
    def __call__(self, texts: Texts) -> Mapping[str, Spans]:
        """Spans by key for every document of the batch."""
        ...


@dataclass(frozen=True)
class Entry:
    """A registered tagger: what its spans cover, whose rules they are, and how to make it.

    One that `needs` files (a model, lists) is made with their paths; `keys` are those that it can write without
    a look at them.
    """

    name: str
    spans: str
    source: str
    make: Callable[..., Tagger]
    needs: str = ""
    keys: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


REGISTRY: dict[str, Entry] = {}
Factory = TypeVar("Factory", bound=Callable[..., Tagger])


def tagger(
    name: str, *, spans: str, source: str, needs: str = "", keys: tuple[str, ...] = ()
) -> Callable[[Factory], Factory]:
    """Register a factory under a versioned name. A name that is taken is refused.

    With `needs` ("a fastText model"), the factory takes the paths that a user names for it.
    """

    def register(make: Factory) -> Factory:
        if name in REGISTRY and REGISTRY[name].make.__module__ != make.__module__:
            raise LoomError(f"The tagger name {name!r} is taken by {REGISTRY[name].make.__module__}.")
        REGISTRY[name] = Entry(name, spans, source, make, needs, keys)
        return make

    return register


def load_families(modules: Sequence[str] = ()) -> None:
    """Import the built-in families and the modules a user names (an import path or a .py file)."""
    for family in FAMILIES:
        importlib.import_module(f"loom.corpus.taggers.{family}")
    for module in modules:
        import_module(module)


def import_module(module: str) -> Any:
    """A user's module by import path, or by the path of a .py file."""
    import importlib.util
    import sys

    try:
        if not module.endswith(".py"):
            return importlib.import_module(module)
        name = f"loom_taggers_{Path(module).stem}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, module)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[name] = loaded
            spec.loader.exec_module(loaded)
        return sys.modules[name]
    except (ImportError, OSError) as error:
        raise LoomError(f"The tagger module {module!r} cannot be imported: {error}.") from None


def get(name: str, files: Files | None = None) -> Tagger:
    """Make the tagger called `name`; an unknown name says what there is.

    `files` are what taggers read. Raises `LoomError` where a file is missing that the tagger needs.
    """
    entry = find(name)
    return entry.make(*_paths(entry, files or {})) if entry.needs else entry.make()


def find(name: str) -> Entry:
    """The registered tagger called `name`; an unknown name says what there is."""
    load_families()
    if name not in REGISTRY:
        near = nearest(name, REGISTRY)
        hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(sorted(REGISTRY))}."
        raise LoomError(f"There is no tagger {name!r}. {hint}")
    return REGISTRY[name]


def _paths(entry: Entry, files: Files) -> list[Path]:
    given = files.get(entry.name, ())
    paths = [Path(name) for name in ((given,) if isinstance(given, str) else given)]
    if not paths:
        raise LoomError(
            f"The tagger {entry.name!r} needs {entry.needs}: name it with --file {entry.name}=PATH, or in a recipe "
            f"under `files: {{{entry.name}: PATH}}`."
        )
    for path in paths:
        if not path.is_file():
            raise LoomError(f"There is no file {path}, which the tagger {entry.name!r} should read.")
    return paths


def files_of(names: Sequence[str], files: Files) -> dict[str, list[Path]]:
    """The files that those of the taggers `names` read which need any."""
    entries = [find(name) for name in names]
    return {entry.name: _paths(entry, files) for entry in entries if entry.needs}


def digests(names: Sequence[str], files: Files) -> dict[str, list[str]]:
    """The files that the taggers `names` read, by digest of their content: what their work depends on."""
    from loom.artifact import digest_file

    found = files_of(names, files)
    return {name: [digest_file(path) for path in paths] for name, paths in found.items()}


def module_file(module: str) -> Path | None:
    """The file of a user's module; None where it has none (a namespace, something compiled in)."""
    import importlib.util

    if module.endswith(".py"):
        return Path(module)
    found = importlib.util.find_spec(module)
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def module_digests(modules: Sequence[str]) -> list[str]:
    """The modules that a user names, by digest of their files: an edited rule is another."""
    from loom.artifact import digest_file

    files = [module_file(module) for module in modules]
    return ["" if path is None else digest_file(path) for path in files]


def available() -> list[Entry]:
    """Every registered tagger, by name."""
    load_families()
    return [REGISTRY[name] for name in sorted(REGISTRY)]

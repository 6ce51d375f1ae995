"""Dolma's tagger configuration, run by `loom.corpus.tag`: documents of several roots, each with its own attributes.

Taggers of Dolma's names write what Dolma's write, so there is nothing for `--compat` to change here.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loom.artifact import Artifact, discard
from loom.corpus import remote
from loom.corpus.documents import find_files, relative_name
from loom.corpus.dolma import config, places
from loom.corpus.tag import File, Tag, root_of
from loom.corpus.tag import tag as run
from loom.engine import Engine, LocalEngine, clear_receipts
from loom.errors import LoomError


@dataclass(frozen=True)
class Planned:
    """The documents of one root, as patterns, how they are tagged, and the root that gets `attributes/`."""

    recipe: Tag
    root: Path


def plan(
    chosen: config.Tagger, files: Mapping[str, str | tuple[str, ...]], format: str = "jsonl"
) -> list[Planned]:
    """What would be done, root by root in the order of the file.

    Raises `LoomError` for documents that are not there and for a destination that cannot be kept to.
    """
    recipe = Tag(
        tuple(chosen.documents),
        tuple(chosen.taggers),
        chosen.experiment,
        format,
        chosen.tagger_modules,
        files,
    )
    if chosen.destination:
        named = (chosen.destination,) if isinstance(chosen.destination, str) else tuple(chosen.destination)
        if len(named) > 1:
            raise LoomError("destination names several folders: run one at a time, or leave it out.")
        root = Path(named[0])
        return [Planned(recipe, root.parent if root.name == "attributes" else root)]
    roots: dict[Path, list[str]] = {}
    for path in find_files(chosen.documents):
        url = remote.address(path)
        pattern = url if url is not None else glob.escape(str(path))
        file = File(path, relative_name(path, chosen.documents), "")
        roots.setdefault(root_of([file]), []).append(pattern)
    if len(roots) == 1:
        return [Planned(recipe, next(iter(roots)))]
    return [Planned(replace(recipe, documents=tuple(found)), root) for root, found in roots.items()]


def tag(
    chosen: config.Tagger,
    files: Mapping[str, str | tuple[str, ...]] | None = None,
    engine: Engine | None = None,
    format: str = "jsonl",
) -> list[Artifact]:
    """Run a tagger configuration: one artifact a root and experiment (each tagger its own, unless one is named).

    `files` are what taggers read. Raises what `plan` and `loom.corpus.tag.tag` raise.
    """
    engine = engine or LocalEngine(1 if chosen.debug else places.workers(chosen.processes))
    made = []
    for planned in plan(chosen, files or {}, format):
        to = remote.address(planned.root)
        root = planned.root if to is None else places.staging(chosen.work_dir, to)
        if chosen.ignore_existing:
            for name in (chosen.experiment,) if chosen.experiment else chosen.taggers:
                discard(root / "attributes" / str(name), "attributes")
            clear_receipts(root)
        for artifact in run(planned.recipe, root, engine):
            if to is None:
                made.append(artifact)
                continue
            where = f"{to}/attributes/{artifact.path.name}"
            remote.publish(artifact, where)
            made.append(replace(artifact, path=Path(where)))
    return made

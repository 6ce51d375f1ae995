"""Rows from the Hugging Face Hub, when asked for: nothing else here reaches a network."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loom.console import console
from loom.errors import LoomError
from loom.evals.written.tasks import WRITTEN
from loom.tasks import data, registry

REVISION = "refs/convert/parquet"  # where the Hub keeps every data set as Parquet, <config>/<split>/*.parquet


def fetch_rows(names: Sequence[str], folder: Path | None) -> None:
    """Put the rows of tasks and suites that are missing in `folder`, as `<task>.<split>.parquet`.

    What --fetch does not get (`alpaca_eval`, `toxigen`) is said, and the rest is fetched. Raises `LoomError` if the Hub
    cannot be reached or has no such data set or split.
    """
    if folder is None:
        raise LoomError("--fetch needs --data DIR, the folder to put the rows in.")
    written = [WRITTEN[name] for name in names if name in WRITTEN]
    for task in registry.tasks([name for name in names if name not in WRITTEN]):
        parts: list[tuple[Path, tuple[str, ...], str, str, tuple[data.Place, ...]]]
        if task.subjects:
            place = folder / task.files[0]
            parts = [
                (place, (subject,), subject, task.source, data.places(task, folder, subject))
                for subject in task.subjects
            ]
        else:
            repository, _, config = task.source.partition(":")
            parts = [(folder, task.files, config, repository, ((folder, task.source),))]
        for place, files, config, repository, where in parts:
            if task.splits and not _there(files, task.splits[:1], where):
                _fetch(repository, config, task.splits[:1], place, files[0])
            if task.shots and not _there(files, data.EXAMPLES, where):
                _fetch(repository, config, data.EXAMPLES, place, files[0])
    for kind in written:
        try:
            kind.files(folder)
        except LoomError as error:
            repository, _, config = kind.source.partition(":")
            if not repository:
                console.warn(f"{kind.name} is not fetched. {error}")
                continue
            _fetch(repository, config, ("validation",), folder, kind.name)


def _there(names: Sequence[str], splits: Sequence[str], places: Sequence[data.Place]) -> bool:
    """Whether one of the splits is in one of the places."""
    return any(data.there(at, names, split, source) for split in splits for at, source in places)


def _fetch(repository: str, config: str, splits: Sequence[str], folder: Path, name: str) -> None:
    """The first of these splits that the data set has, into `folder` as `<name>.<split>.parquet`, or as
    `<name>/<split>/0000.parquet` and so on where it is several files."""
    wanted = folder / f"{name}.{splits[0]}.parquet"
    if not repository:
        raise LoomError(f"{wanted.stem} has no data set on the Hub; its rows are made here.")
    try:
        import huggingface_hub
    except ImportError:
        raise LoomError(
            f"--fetch needs the Hub's client: pip install 'loom-lm[hf]'. Or put the rows at {wanted} yourself."
        ) from None
    hub: Any = huggingface_hub
    try:
        files = hub.list_repo_files(repository, repo_type="dataset", revision=REVISION)
        there = {
            split: sorted(file for file in files if file.startswith(f"{config or 'default'}/{split}/"))
            for split in splits
        }
        split = next((split for split in splits if there[split]), None)
        if split is None:
            raise LoomError(
                f"{repository} on the Hub has no {config or 'default'}/{' or '.join(splits)}; put the rows at "
                f"{wanted} yourself."
            )
        got = []
        for file in there[split]:
            console.say(f"fetching {repository} {file}")
            got.append(hub.hf_hub_download(repository, file, repo_type="dataset", revision=REVISION))
    except LoomError:
        raise
    except Exception as error:  # the client has a dozen kinds, of network and of access
        raise LoomError(
            f"{repository} could not be fetched from the Hugging Face Hub ({type(error).__name__}). Is "
            f"there a network? Else put the rows at {wanted} yourself."
        ) from None
    single = len(got) == 1
    target = folder / f"{name}.{split}.parquet" if single else folder / name / f"{split}.part"
    if single:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".part")
        shutil.copyfile(got[0], temporary)
        temporary.replace(target)
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for number, path in enumerate(got):
        shutil.copyfile(path, target / f"{number:04d}.parquet")
    target.replace(target.with_suffix(""))

"""Rows from the Hugging Face Hub, when asked for: nothing else here reaches a network."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loom.console import console
from loom.errors import LoomError
from loom.evals.written import WRITTEN
from loom.tasks import data, registry

REVISION = "refs/convert/parquet"  # where the Hub keeps every data set as Parquet, <config>/<split>/*.parquet


def fetch_rows(names: Sequence[str], folder: Path | None) -> None:
    """Put the rows of tasks and suites that are missing in `folder`, as `<task>.<split>.parquet`.

    Raises `LoomError` if the Hub cannot be reached or has no such data set or split.
    """
    if folder is None:
        raise LoomError("--fetch needs --data DIR, the folder to put the rows in.")
    written = [WRITTEN[name] for name in names if name in WRITTEN]
    for task in registry.tasks([name for name in names if name not in WRITTEN]):
        if task.subjects:
            parts = [(task.files[0] + "/" + subject, subject, task.source) for subject in task.subjects]
        else:
            repository, _, config = task.source.partition(":")
            parts = [(task.files[0], config, repository)]
        for name, config, repository in parts:
            wanted = [*task.splits[:1], *(["dev"] if task.shots else [])]
            for split in wanted:
                if not _there(folder, name, split):
                    _fetch(repository, config, split, folder / f"{name}.{split}.parquet")
    for kind in written:
        try:
            next(iter(kind.prompts(folder)), None)
        except LoomError:
            repository, _, config = kind.source.partition(":")
            if not repository:
                raise
            _fetch(repository, config, "validation", folder / f"{kind.name}.validation.parquet")


def _there(folder: Path, name: str, split: str) -> bool:
    return any((folder / f"{name}.{split}{suffix}").is_file() for suffix in data.SUFFIXES)


def _fetch(repository: str, config: str, split: str, target: Path) -> None:
    if not repository:
        raise LoomError(f"{target.stem} has no data set on the Hub; its rows are made here.")
    try:
        import huggingface_hub
    except ImportError:
        raise LoomError(
            f"--fetch needs the Hub's client: pip install 'loom-lm[hf]'. Or put the rows at {target} yourself."
        ) from None
    hub: Any = huggingface_hub
    try:
        files = hub.list_repo_files(repository, repo_type="dataset", revision=REVISION)
        prefix = f"{config or 'default'}/{split}/"
        chosen = [file for file in files if file.startswith(prefix) and file.endswith(".parquet")]
        if len(chosen) != 1:
            raise LoomError(
                f"{repository} on the Hub has {len(chosen)} files {prefix}*.parquet where one is needed."
            )
        console.say(f"fetching {repository} {chosen[0]}")
        got = hub.hf_hub_download(repository, chosen[0], repo_type="dataset", revision=REVISION)
    except LoomError:
        raise
    except Exception as error:  # the client has a dozen kinds, of network and of access
        raise LoomError(
            f"{repository} could not be fetched from the Hugging Face Hub ({type(error).__name__}). Is "
            f"there a network? Else put the rows at {target} yourself."
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    shutil.copyfile(got, temporary)
    temporary.replace(target)

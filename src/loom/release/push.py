"""`loom push`: a release on the Hugging Face Hub, only when asked, and only what was listed before."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.artifact import MANIFEST, RUN, load
from loom.errors import LoomError
from loom.release.export import Export, export
from loom.train.checkpoint import checkpoints, read_state

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
KEPT_BACK = frozenset({RUN})  # what one machine knows: host and hour


@dataclass(frozen=True)
class Upload:
    """A file to send: where it lies, its name in the repository, the revision (branch), its size."""

    path: Path
    name: str
    revision: str
    bytes: int


def revision_name(step: int, tokens: int) -> str:
    """OLMo's name for a checkpoint's revision: step and tokens in billions, 'step1000-tokens4B'."""
    return f"step{step}-tokens{tokens // 1_000_000_000}B"


def plan_push(model: Path, every_checkpoint: bool = False, work: Path | None = None) -> list[Upload]:
    """What a push would send.

    MODEL is an export (its own files), or with `every_checkpoint` a run: each checkpoint is exported
    below `work` and goes to a revision of its own, with the recipe, the log and the reading order's
    fingerprint. Raises `LoomError` for a folder that is neither, or that was changed since.
    """
    if not every_checkpoint:
        return _release(model, "main")
    if not checkpoints(model):
        raise LoomError(f"{model} is no run with checkpoints; --every-checkpoint needs one.")
    uploads: list[Upload] = []
    place = work or model / "releases"
    for checkpoint in checkpoints(model):
        state = read_state(checkpoint)
        out = place / checkpoint.name
        export(checkpoint, out, Export())
        revision = revision_name(state.step, state.tokens_seen)
        uploads += _release(out, revision)
        for name in ("recipe.yaml", "metrics.jsonl"):
            if (model / name).is_file():
                uploads.append(_upload(model / name, name, revision))
        uploads.append(_upload(checkpoint / "state.json", "reading-order.json", revision))
    return uploads


def _release(folder: Path, revision: str) -> list[Upload]:
    if not (folder / MANIFEST).is_file() or not (folder / "config.json").is_file():
        raise LoomError(f"{folder} is not an export; make one first: loom export MODEL {folder}")
    made = load(folder, "model")
    try:
        made.verify(data=True)
    except LoomError as error:
        raise LoomError(
            f"{error} A card is changed with: loom card {folder} --out {folder}/README.md"
        ) from None
    listed = [item.path for item in made.outputs if item.path not in KEPT_BACK]
    return [_upload(folder / name, name, revision) for name in [*listed, MANIFEST]]


def _upload(path: Path, name: str, revision: str) -> Upload:
    return Upload(path, name, revision, path.stat().st_size)


def push(repository: str, uploads: Sequence[Upload], private: bool = True) -> str:
    """Send `uploads` to the Hub, revision by revision, each in one commit; gives the address.

    Needs the `hf` extra and a token in HF_TOKEN, which is read by the Hub's own client.
    """
    check_repository(repository)
    if not os.environ.get("HF_TOKEN"):
        raise LoomError(
            "HF_TOKEN is not set: a push needs a token with the right to write. --dry-run needs none."
        )
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError:
        raise LoomError("A push needs huggingface_hub: pip install 'loom-lm[hf]'.") from None
    api = HfApi()
    try:
        return _send(api, CommitOperationAdd, repository, uploads, private)
    except (
        Exception
    ) as error:  # beside its own, those of the HTTP client, which differs from version to version
        said = next(iter(str(error).strip().splitlines()), "it says no more")
        raise LoomError(
            f"The Hub at {api.endpoint} did not take {repository} ({type(error).__name__}: {said}): look at the "
            f"name, at the rights of HF_TOKEN and at the network. Revisions that were committed stay; the same "
            f"command sends the rest."
        ) from None


def _send(api: Any, add: Any, repository: str, uploads: Sequence[Upload], private: bool) -> str:
    api.create_repo(repository, private=private, exist_ok=True)
    for revision in dict.fromkeys(item.revision for item in uploads):
        mine = [item for item in uploads if item.revision == revision]
        if revision != "main":
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.create_commit(
            repository,
            [add(item.name, str(item.path)) for item in mine],
            commit_message=f"Release {revision}",
            revision=revision,
        )
    return f"{api.endpoint}/{repository}"


def check_repository(repository: str) -> None:
    """Raise `LoomError` unless it is OWNER/NAME."""
    if not REPOSITORY.fullmatch(repository):
        raise LoomError(f"{repository!r} is no repository; write OWNER/NAME.")


def listing(uploads: Sequence[Upload]) -> list[dict[str, object]]:
    """`uploads` as plain values."""
    return [{"revision": item.revision, "name": item.name, "bytes": item.bytes} for item in uploads]

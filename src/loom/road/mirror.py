"""Checkpoints at an address (`s3://bucket/prefix`) as well: uploaded when whole, fetched to go on elsewhere.

An object store has no rename, so a checkpoint's manifest is uploaded last: without it, what lies there is
no checkpoint. Uploads run beside training; nothing is ever deleted there.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from loom.corpus.remote import address, filesystem
from loom.errors import LoomError
from loom.train.callbacks import Callback, Record, RunInfo
from loom.train.checkpoint import MANIFEST, NAME, check, newest_good, step_of


def target(mirror: str) -> str:
    """The address that `train.mirror` means. Raises `LoomError` for what is none."""
    url = address(mirror)
    if url is None or not url.startswith("s3://"):
        raise LoomError(f"train.mirror is {mirror!r}: give an address such as s3://bucket/runs/mine.")
    return url.rstrip("/")


def upload(folder: Path, url: str) -> None:
    """One checkpoint, its manifest last."""
    fs = filesystem(url)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    for path in [*files, folder / MANIFEST]:
        fs.put_file(str(path), f"{url}/{folder.name}/{path.name}")


def listed(url: str) -> list[str]:
    """Names of the whole checkpoints at an address, oldest first."""
    fs = filesystem(url)
    fs.invalidate_cache()
    try:
        found = fs.find(url)
    except FileNotFoundError:
        return []
    names = {path.split("/")[-2] for path in found if path.endswith(f"/{MANIFEST}")}
    return sorted((name for name in names if NAME.match(name)), key=lambda name: int(name[5:]))


def fetch_newest(url: str, out: Path) -> list[str]:
    """Bring the newest whole checkpoint into the run at `out`, unless as new a one is there.

    A damaged one is named and the one before it taken. Gives sentences to be said.
    """
    here, _ = newest_good(out)
    known = step_of(here) if here is not None else 0
    said: list[str] = []
    for name in reversed(listed(url)):
        if int(name[5:]) <= known:
            break
        half = out / "checkpoints" / f".{name}.part"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        fs = filesystem(url)
        fs.get_file(f"{url}/{name}/{MANIFEST}", str(half / MANIFEST))
        for item in json.loads((half / MANIFEST).read_bytes())["outputs"]:
            if fs.exists(f"{url}/{name}/{item['path']}"):
                fs.get_file(f"{url}/{name}/{item['path']}", str(half / Path(item["path"]).name))
        try:
            check(half)
        except LoomError as error:
            said.append(f"{url}/{name} is damaged: {error}")
            shutil.rmtree(half)
            continue
        whole = half.with_name(name)
        shutil.rmtree(whole, ignore_errors=True)
        half.rename(whole)
        return [*said, f"fetched {url}/{name}"]
    return said


class Mirror(Callback):
    """Uploads each finished checkpoint; a failed upload ends the run, with the local checkpoint whole."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="loom-mirror")
        self.pending: list[tuple[Path, Future[None]]] = []

    def on_start(self, run: RunInfo) -> None:
        for left in (run.out / "checkpoints").glob(".*.up"):  # of a run that was stopped while uploading
            shutil.rmtree(left)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        # Retention may remove the folder while it is uploaded: hard links cost nothing and stay.
        copy = folder.parent / f".{folder.name}.up" / folder.name
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(folder, copy, copy_function=_link)
        self.pending.append((copy, self.pool.submit(upload, copy, self.url)))

    def on_step(self, record: Record) -> None:
        self._settle(wait=False)

    def on_finish(self, last_checkpoint: Path) -> None:
        self._settle(wait=True)
        self.pool.shutdown()

    def _settle(self, wait: bool) -> None:
        for copy, future in list(self.pending):
            if not (wait or future.done()):
                continue
            self.pending.remove((copy, future))
            error = future.exception()
            shutil.rmtree(copy.parent, ignore_errors=True)
            if error is not None:
                raise LoomError(
                    f"{copy.name} could not be uploaded to {self.url} ({error}). It is whole on this machine: mend the "
                    f"address or its credentials, and run the same command again."
                ) from error


def _link(source: str, to: str) -> str:
    Path(to).hardlink_to(source)
    return to

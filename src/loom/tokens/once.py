"""An array that every process of a node needs is computed by one of them and mapped by all."""

from __future__ import annotations

import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loom.errors import LoomError


def shared_array(name: str, compute: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """`compute()`, read-only, from the file `name` in this user's folder below the node's temporary one.

    The first process to come computes and writes it, the others wait and map it; whoever comes when it is
    there maps it at once. The file goes when the process that wrote it lets go of the array or ends; maps
    outlive it. Where there is no room for it, every process computes an array of its own.
    """
    folder = _folder()
    path = folder / f"{name}.npy"
    with open(folder / f"{name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mapped = _mapped(path)
        if mapped is not None:
            return mapped
        array = compute()
        half = folder / f".{path.name}.half"  # of a process that was killed: written over
        try:
            with open(half, "wb") as stream:
                np.save(stream, array)
            os.replace(half, path)
        except OSError:
            half.unlink(missing_ok=True)
            return array
        mapped = _mapped(path)
        if mapped is None:
            return array
        weakref.finalize(mapped, path.unlink, missing_ok=True)
        return mapped


def _mapped(path: Path) -> npt.NDArray[Any] | None:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError, EOFError):  # the last two: the machine went down meanwhile
        return None


def _folder() -> Path:
    """This user's own: a file that another user laid there would be read as ours."""
    folder = Path(tempfile.gettempdir()) / f"loom-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077 or folder.is_symlink():
        raise LoomError(
            f"{folder} belongs to someone else or is open to others: remove it, or set TMPDIR to a folder of yours."
        )
    return folder
